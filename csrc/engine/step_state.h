/* The step state: what changes from step to step, one row a slot, in GPU memory. Kernels advance
 * it; the host only edits it between two steps and reads the ring (shaders/include/push.h draws
 * both). */
#ifndef MRL_ENGINE_STEP_STATE_H
#define MRL_ENGINE_STEP_STATE_H

#include "ops/sample.h"

#define MRL_SLOTS_MAX 4096u

typedef struct mrl_step_state mrl_step_state;

/* All slots idle, nothing seen. slots: 1..MRL_SLOTS_MAX, vocab: 1..MRL_VOCAB_MAX, their product <
 * 2^31. Counted references; STATE error while this thread captures. */
mrl_status mrl_step_state_create(mrl_device *dev, uint32_t slots, uint32_t vocab,
                                 mrl_step_state **out, mrl_error *err);
mrl_step_state *mrl_step_state_retain(mrl_step_state *state);
void mrl_step_state_release(mrl_step_state *state); /* NULL allowed */

/* Borrowed, for the life of the state. */
const mrl_step_buffers *mrl_step_state_buffers(const mrl_step_state *state);
/* (slots) i32: 0, 1, 2 ...: the slots argument of attention in a decode step. */
mrl_buffer *mrl_step_state_slot_ids(const mrl_step_state *state);

#endif
