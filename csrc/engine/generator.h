/* The generator: replays captured decode steps ahead of the host and reads their tokens behind.
 *
 *     step   s-3     s-2     s-1     s        in order on the GPU, at most `depth` unread
 *     ring   read    unread  unread  unread   one entry a slot, at step % MRL_RING_STEPS
 *            ^ retired               ^ submitted
 *
 * The device ends a slot by itself (stop id, limit, NaN); the host learns of it `depth` steps later
 * at most, and drops what a slot left in steps that were submitted before it was admitted.
 * Thread-safe: one lock an object. While slots run, nothing else may run sample on the state. */
#ifndef MRL_ENGINE_GENERATOR_H
#define MRL_ENGINE_GENERATOR_H

#include "push.h"
#include "engine/step_state.h"
#include "vk/program.h"

#define MRL_TOPS_MAX (MRL_RING_TOP_LOGPROBS - MRL_RING_TOP_IDS)

typedef struct mrl_generator mrl_generator;

/* One decode step of all slots, good for positions below bound. */
typedef struct mrl_step_program {
    uint32_t bound;
    mrl_program *program;
} mrl_step_program;

typedef struct mrl_bias {
    uint32_t id;
    float value; /* added to the logit; -INFINITY bans the token */
} mrl_bias;

/* What a slot shall do. Pointers are borrowed for the call. */
typedef struct mrl_admission {
    uint32_t slot;
    uint32_t token, position; /* the next input and where it stands */
    uint32_t limit; /* the slot ends when its next input would stand here; <= the largest bound */
    float temperature;        /* >= 0; below 1e-5 is greedy */
    uint32_t top_k;           /* 0: off */
    float top_p, min_p;       /* 0..1; 1 and 0: off */
    float repetition_penalty; /* > 0; 1: off */
    uint64_t seed;
    uint32_t draws;    /* draws done with this seed before */
    uint32_t logprobs; /* 0..MRL_TOPS_MAX */
    const uint32_t *stop_ids;
    const mrl_bias *biases;        /* any order, no id twice */
    const uint32_t *seen;          /* ids that the repetition penalty starts with */
    size_t nstops, nbiases, nseen; /* up to MRL_STOP_MAX, MRL_BIAS_MAX, 2^24 */
} mrl_admission;

/* A token of a slot. */
typedef struct mrl_generated {
    uint32_t slot;
    int32_t token;   /* -1 with MRL_FINISH_NAN */
    uint32_t finish; /* MRL_FINISH_* */
    float logprob;
    uint32_t tops;
    uint32_t top_ids[MRL_TOPS_MAX];
    float top_logprobs[MRL_TOPS_MAX];
} mrl_generated;

/* programs by growing bound, all on the state's device and sampling into the state; retained, as
 * the state is. depth: steps in flight, 1..MRL_RING_STEPS. */
mrl_status mrl_generator_create(mrl_step_state *state, const mrl_step_program *programs,
                                size_t count, uint32_t depth, mrl_generator **out, mrl_error *err);
void mrl_generator_destroy(
    mrl_generator *generator); /* NULL allowed; steps in flight run on harmlessly */

/* Starts a slot with the next step submitted. VALUE for anything out of range, STATE when the slot
 * runs; then nothing has changed. */
mrl_status mrl_generator_admit(mrl_generator *generator, const mrl_admission *admission,
                               mrl_error *err);
/* Stops a slot, running or not; what it has in flight is dropped. */
mrl_status mrl_generator_release(mrl_generator *generator, uint32_t slot, mrl_error *err);

/* Submits up to depth steps ahead while slots run, waits up to wait_ms for the oldest and gives its
 * rows (room for slots of them). *again: time ran out before there was one, call again. *count 0
 * without *again: no slot runs. */
mrl_status mrl_generator_pump(mrl_generator *generator, uint32_t wait_ms, mrl_generated *rows,
                              uint32_t *count, bool *again, mrl_error *err);

uint32_t mrl_generator_running(mrl_generator *generator); /* slots not known to have ended */
uint64_t mrl_generator_steps(mrl_generator *generator);   /* steps submitted so far */
uint32_t mrl_generator_depth(const mrl_generator *generator);

#endif
