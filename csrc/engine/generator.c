#include "engine/generator.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/lock.h"

#define GREEDY_BELOW 1e-5f
#define SEEN_MAX     (1u << 24)

typedef struct slot_row {
    bool running;
    uint32_t position, limit; /* as admitted */
    uint64_t first_step;      /* the step that takes the admitted token */
} slot_row;

struct mrl_generator {
    mrl_lock lock;
    mrl_step_state *state;
    mrl_device *dev;
    mrl_step_program *programs;
    size_t nprograms;
    uint32_t depth;
    slot_row *slots;
    uint32_t running;
    bool realign; /* the device's step counter may have been moved by others */
    uint64_t submitted, retired;
    uint64_t values[MRL_RING_STEPS]; /* timeline value of an unread step */
    mrl_edit *edits;                 /* waiting for the next pump */
    size_t nedits, edit_room;
};

/* ---- creation ---- */

static mrl_status check_programs(const mrl_step_program *programs, size_t count, uint32_t depth,
                                 mrl_error *err)
{
    if (count == 0)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "generator: programs must hold at least one (bound, Program)");
    for (size_t i = 0; i < count; i++)
        if (programs[i].bound == 0 || programs[i].bound > INT32_MAX ||
            (i > 0 && programs[i].bound <= programs[i - 1].bound))
            return mrl_fail(err, MRL_ERR_VALUE,
                            "generator: bounds must be positive and grow, got %u at index %zu",
                            programs[i].bound, i);
    if (depth < 1 || depth > MRL_RING_STEPS)
        return mrl_fail(err, MRL_ERR_VALUE, "generator: depth must be 1 to %d, got %u",
                        MRL_RING_STEPS, depth);
    return MRL_OK;
}

mrl_status mrl_generator_create(mrl_step_state *state, const mrl_step_program *programs,
                                size_t count, uint32_t depth, mrl_generator **out, mrl_error *err)
{
    mrl_generator *g;
    const mrl_step_buffers *buffers = mrl_step_state_buffers(state);
    mrl_status rc = check_programs(programs, count, depth, err);

    *out = NULL;
    if (rc != MRL_OK) return rc;
    g = calloc(1, sizeof *g);
    if (g == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "generator: no host memory");
    mrl_lock_init(&g->lock);
    g->slots = calloc(buffers->slots, sizeof *g->slots);
    g->programs = calloc(count, sizeof *g->programs);
    if (g->slots == NULL || g->programs == NULL) {
        mrl_generator_destroy(g);
        return mrl_fail(err, MRL_ERR_MEMORY, "generator: no host memory");
    }
    for (size_t i = 0; i < count; i++)
        g->programs[g->nprograms++] =
            (mrl_step_program){programs[i].bound, mrl_program_retain(programs[i].program)};
    g->state = mrl_step_state_retain(state);
    g->dev = mrl_device_retain(mrl_buffer_device(buffers->tokens));
    g->depth = depth;
    g->realign = true;
    *out = g;
    return MRL_OK;
}

void mrl_generator_destroy(mrl_generator *g)
{
    if (g == NULL) return;
    for (size_t i = 0; i < g->nprograms; i++) mrl_program_release(g->programs[i].program);
    mrl_step_state_release(g->state);
    mrl_device_release(g->dev);
    mrl_lock_destroy(&g->lock);
    free(g->programs);
    free(g->slots);
    free(g->edits);
    free(g);
}

/* ---- edits ---- */

/* Of a slot's waiting edits only the last admission or release counts. */
static void drop_edits(mrl_generator *g, uint32_t slot)
{
    size_t left = 0;
    for (size_t i = 0; i < g->nedits; i++)
        if (g->edits[i].slot != slot) g->edits[left++] = g->edits[i];
    g->nedits = left;
}

static mrl_status reserve_edits(mrl_generator *g, size_t more, mrl_error *err)
{
    size_t want = g->nedits + more, room = g->edit_room > 0 ? g->edit_room : 64;
    mrl_edit *grown;

    if (want <= g->edit_room) return MRL_OK;
    while (room < want) room *= 2;
    grown = room > UINT32_MAX / 3 ? NULL : realloc(g->edits, room * sizeof *grown);
    if (grown == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "generator: no host memory for %zu edits", want);
    g->edits = grown;
    g->edit_room = room;
    return MRL_OK;
}

static void edit(mrl_generator *g, uint32_t slot, uint32_t field, uint32_t value)
{
    g->edits[g->nedits++] = (mrl_edit){slot, field, value};
}

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static mrl_status apply_edits(mrl_generator *g, mrl_error *err)
{
    mrl_status rc = MRL_OK;

    if (g->nedits > 0)
        rc = mrl_edit_slots(g->edits, (uint32_t)g->nedits, mrl_step_state_buffers(g->state), err);
    if (rc == MRL_OK) g->nedits = 0;
    return rc;
}

/* ---- admit, release ---- */

#define IN_RANGE(value, low, high) ((value) >= (low) && (value) <= (high)) /* false for NaN */

static mrl_status check_ids(const char *what, const uint32_t *ids, size_t count, size_t most,
                            uint32_t vocab, mrl_error *err)
{
    if (count > most)
        return mrl_fail(err, MRL_ERR_VALUE, "admit: at most %zu %s, got %zu", most, what, count);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocab)
            return mrl_fail(err, MRL_ERR_VALUE,
                            "admit: %s must be below the vocabulary's %u, got %u", what, vocab,
                            ids[i]);
    return MRL_OK;
}

static mrl_status check_sampling(const mrl_admission *a, mrl_error *err)
{
    if (!IN_RANGE(a->temperature, 0.0f, 3e38f))
        return mrl_fail(err, MRL_ERR_VALUE, "admit: temperature must be finite and >= 0, got %g",
                        a->temperature);
    if (!IN_RANGE(a->top_p, 0.0f, 1.0f))
        return mrl_fail(err, MRL_ERR_VALUE, "admit: top_p must be 0 to 1, got %g", a->top_p);
    if (!IN_RANGE(a->min_p, 0.0f, 1.0f))
        return mrl_fail(err, MRL_ERR_VALUE, "admit: min_p must be 0 to 1, got %g", a->min_p);
    if (!IN_RANGE(a->repetition_penalty, 1e-6f, 1e6f))
        return mrl_fail(err, MRL_ERR_VALUE, "admit: repetition_penalty must be 1e-6 to 1e6, got %g",
                        a->repetition_penalty);
    if (a->logprobs > MRL_TOPS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "admit: logprobs must be 0 to %d, got %u", MRL_TOPS_MAX,
                        a->logprobs);
    return MRL_OK;
}

static mrl_status check_admission(const mrl_generator *g, const mrl_admission *a, mrl_error *err)
{
    const mrl_step_buffers *state = mrl_step_state_buffers(g->state);
    uint32_t bound = g->programs[g->nprograms - 1].bound;
    mrl_status rc;

    if (a->slot >= state->slots)
        return mrl_fail(err, MRL_ERR_VALUE, "admit: slot must be 0 to %u, got %u", state->slots - 1,
                        a->slot);
    if (g->slots[a->slot].running)
        return mrl_fail(err, MRL_ERR_STATE, "admit: slot %u is running, release it first", a->slot);
    MRL_TRY(check_ids("token", &a->token, 1, 1, state->vocab, err));
    if (a->limit > bound)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "admit: limit must be at most %u, the largest bound, got %u", bound,
                        a->limit);
    if (a->position >= a->limit)
        return mrl_fail(err, MRL_ERR_VALUE, "admit: position must be below the limit %u, got %u",
                        a->limit, a->position);
    MRL_TRY(check_sampling(a, err));
    MRL_TRY(check_ids("stop_ids", a->stop_ids, a->nstops, MRL_STOP_MAX, state->vocab, err));
    MRL_TRY(check_ids("seen", a->seen, a->nseen, SEEN_MAX, state->vocab, err));
    if (a->nbiases > MRL_BIAS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "admit: at most %d bias, got %zu", MRL_BIAS_MAX,
                        a->nbiases);
    for (size_t i = 0; i < a->nbiases; i++) {
        MRL_TRY(check_ids("bias", &a->biases[i].id, 1, 1, state->vocab, err));
        if (!(a->biases[i].value < INFINITY))
            return mrl_fail(err, MRL_ERR_VALUE,
                            "admit: bias of token %u must be finite or -inf, got %g",
                            a->biases[i].id, a->biases[i].value);
    }
done:
    return rc;
}

static int by_id(const void *left, const void *right)
{
    uint32_t a = ((const mrl_bias *)left)->id, b = ((const mrl_bias *)right)->id;
    return (a > b) - (a < b);
}

static mrl_status sort_biases(const mrl_admission *a, mrl_bias *sorted, mrl_error *err)
{
    if (a->nbiases > 0) memcpy(sorted, a->biases, a->nbiases * sizeof *sorted);
    qsort(sorted, a->nbiases, sizeof *sorted, by_id);
    for (size_t i = 1; i < a->nbiases; i++)
        if (sorted[i].id == sorted[i - 1].id)
            return mrl_fail(err, MRL_ERR_VALUE, "admit: bias names token %u twice", sorted[i].id);
    return MRL_OK;
}

static void edit_admission(mrl_generator *g, const mrl_admission *a, const mrl_bias *biases)
{
    uint32_t slot = a->slot;

    edit(g, slot, MRL_SLOT_LIMIT, a->limit);
    edit(g, slot, MRL_SLOT_SEED_LO, (uint32_t)a->seed);
    edit(g, slot, MRL_SLOT_SEED_HI, (uint32_t)(a->seed >> 32));
    edit(g, slot, MRL_SLOT_DRAWS, a->draws);
    edit(g, slot, MRL_SLOT_TEMPERATURE,
         float_bits(a->temperature < GREEDY_BELOW ? 0.0f : a->temperature));
    edit(g, slot, MRL_SLOT_TOP_K, a->top_k);
    edit(g, slot, MRL_SLOT_TOP_P, float_bits(a->top_p));
    edit(g, slot, MRL_SLOT_MIN_P, float_bits(a->min_p));
    edit(g, slot, MRL_SLOT_REPEAT, float_bits(a->repetition_penalty));
    edit(g, slot, MRL_SLOT_BIASES, (uint32_t)a->nbiases);
    edit(g, slot, MRL_SLOT_LOGPROBS, a->logprobs);
    edit(g, slot, MRL_SLOT_STOPS, (uint32_t)a->nstops);
    for (uint32_t i = 0; i < a->nstops; i++) edit(g, slot, MRL_SLOT_STOP_0 + i, a->stop_ids[i]);
    for (uint32_t i = 0; i < a->nbiases; i++) {
        edit(g, slot, MRL_EDIT_BIAS_ID + i, biases[i].id);
        edit(g, slot, MRL_EDIT_BIAS_VALUE + i, float_bits(biases[i].value));
    }
    edit(g, slot, MRL_EDIT_CLEAR_SEEN, 0);
    for (size_t i = 0; a->repetition_penalty != 1.0f && i < a->nseen; i++)
        edit(g, slot, MRL_EDIT_SEEN, a->seen[i]);
    edit(g, slot, MRL_EDIT_TOKEN, a->token);
    edit(g, slot, MRL_EDIT_POSITION, a->position);
}
#define FIXED_EDITS 15

static mrl_status admit_locked(mrl_generator *g, const mrl_admission *a, mrl_error *err)
{
    mrl_status rc;
    mrl_bias biases[MRL_BIAS_MAX];

    MRL_TRY(check_admission(g, a, err));
    MRL_TRY(sort_biases(a, biases, err));
    MRL_TRY(reserve_edits(g, FIXED_EDITS + a->nstops + 2 * a->nbiases + a->nseen, err));
    drop_edits(g, a->slot);
    edit_admission(g, a, biases);
    g->realign |= g->running == 0;
    g->running++;
    g->slots[a->slot] = (slot_row){true, a->position, a->limit, g->submitted};
done:
    return rc;
}

mrl_status mrl_generator_admit(mrl_generator *g, const mrl_admission *admission, mrl_error *err)
{
    mrl_status rc = mrl_device_check(g->dev, err); /* before the lock, which a forked child may find taken */
    if (rc != MRL_OK) return rc;
    mrl_lock_acquire(&g->lock);
    rc = admit_locked(g, admission, err);
    mrl_lock_release(&g->lock);
    return rc;
}

static mrl_status release_locked(mrl_generator *g, uint32_t slot, mrl_error *err)
{
    const mrl_step_buffers *state = mrl_step_state_buffers(g->state);
    mrl_status rc;

    if (slot >= state->slots)
        return mrl_fail(err, MRL_ERR_VALUE, "release: slot must be 0 to %u, got %u",
                        state->slots - 1, slot);
    MRL_TRY(reserve_edits(g, 1, err));
    drop_edits(g, slot);
    edit(g, slot, MRL_EDIT_POSITION, UINT32_MAX);
    g->running -= g->slots[slot].running;
    g->slots[slot].running = false;
done:
    return rc;
}

mrl_status mrl_generator_release(mrl_generator *g, uint32_t slot, mrl_error *err)
{
    mrl_lock_acquire(&g->lock);
    mrl_status rc = release_locked(g, slot, err);
    mrl_lock_release(&g->lock);
    return rc;
}

/* ---- pump ---- */

/* One more than the highest position that a slot may have in the next step; 0 when none can still
 * run. */
static uint64_t next_bound(const mrl_generator *g)
{
    uint64_t bound = 0;
    for (uint32_t i = 0; i < mrl_step_state_buffers(g->state)->slots; i++) {
        const slot_row *slot = &g->slots[i];
        uint64_t position = slot->position + (g->submitted - slot->first_step);
        if (slot->running && position < slot->limit && position >= bound) bound = position + 1;
    }
    return bound;
}

/* Overwrites the ring entry of step submitted - MRL_RING_STEPS: read long ago, as depth bounds what
 * is unread. */
static mrl_status submit_locked(mrl_generator *g, uint64_t bound, mrl_error *err)
{
    mrl_status rc;
    size_t i = 0;

    if (g->realign) {
        uint32_t step[2] = {(uint32_t)g->submitted, 0};
        MRL_TRY(
            mrl_buffer_write(mrl_step_state_buffers(g->state)->step, 0, step, sizeof step, err));
        g->realign = false;
    }
    while (g->programs[i].bound <
           bound) /* admit has checked that the last one reaches every limit */
        i++;
    MRL_TRY(
        mrl_program_replay(g->programs[i].program, &g->values[g->submitted % MRL_RING_STEPS], err));
    g->submitted++;
done:
    return rc;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Sleeps grow with the wait: an eighth late at most, and little load beside a software device. */
static bool wait_done(mrl_device *dev, uint64_t value, uint32_t wait_ms)
{
    uint64_t start = now_ns(), elapsed = 0;

    while (!mrl_device_done(dev, value)) {
        elapsed = now_ns() - start;
        if (elapsed >= wait_ms * 1000000ull) return false;
        uint64_t ns = elapsed / 8 < 20000 ? 20000 : elapsed / 8 > 2000000 ? 2000000 : elapsed / 8;
        nanosleep(&(struct timespec){0, (long)ns}, NULL);
    }
    return true;
}

static void read_row(const uint32_t *entry, uint32_t slot, mrl_generated *row)
{
    row->slot = slot;
    row->token = (int32_t)entry[MRL_RING_TOKEN];
    row->finish = entry[MRL_RING_FINISH];
    row->logprob = bits_float(entry[MRL_RING_LOGPROB]);
    row->tops = entry[MRL_RING_TOPS] < MRL_TOPS_MAX ? entry[MRL_RING_TOPS] : MRL_TOPS_MAX;
    memcpy(row->top_ids, entry + MRL_RING_TOP_IDS, sizeof row->top_ids);
    memcpy(row->top_logprobs, entry + MRL_RING_TOP_LOGPROBS, sizeof row->top_logprobs);
}

/* Reads the oldest step, which is done. */
static void retire(mrl_generator *g, mrl_generated *rows, uint32_t *count)
{
    const mrl_step_buffers *state = mrl_step_state_buffers(g->state);
    const uint32_t *entry = (const uint32_t *)mrl_buffer_mapped(state->ring) +
                            g->retired % MRL_RING_STEPS * state->slots * MRL_RING_WORDS;

    for (uint32_t i = 0; i < state->slots; i++, entry += MRL_RING_WORDS) {
        slot_row *slot = &g->slots[i];
        bool idle = (int32_t)entry[MRL_RING_TOKEN] < 0 && entry[MRL_RING_FINISH] == MRL_FINISH_NONE;
        if (!slot->running || g->retired < slot->first_step || idle) continue;
        read_row(entry, i, &rows[(*count)++]);
        if (entry[MRL_RING_FINISH] != MRL_FINISH_NONE) {
            slot->running = false;
            g->running--;
        }
    }
    g->retired++;
}

static mrl_status pump_locked(mrl_generator *g, uint32_t wait_ms, mrl_generated *rows,
                              uint32_t *count, bool *again, mrl_error *err)
{
    mrl_status rc;
    uint64_t bound;

    MRL_TRY(apply_edits(g, err));
    while (g->running > 0 && *count == 0) {
        while (g->submitted - g->retired < g->depth && (bound = next_bound(g)) > 0)
            MRL_TRY(submit_locked(g, bound, err));
        if (g->submitted == g->retired)
            return mrl_fail(
                err, MRL_ERR_STATE,
                "pump: a slot stopped without a finish: something else ran sample on its state");
        uint64_t value = g->values[g->retired % MRL_RING_STEPS];
        *again = !wait_done(g->dev, value, wait_ms);
        if (*again) break;
        MRL_TRY(mrl_device_wait(g->dev, value, err)); /* done, or a lost device: this tells */
        retire(g, rows, count);
    }
done:
    return rc;
}

mrl_status mrl_generator_pump(mrl_generator *g, uint32_t wait_ms, mrl_generated *rows,
                              uint32_t *count, bool *again, mrl_error *err)
{
    *count = 0;
    *again = false;
    mrl_status rc = mrl_device_check(g->dev, err);
    if (rc != MRL_OK) return rc;
    mrl_lock_acquire(&g->lock);
    rc = pump_locked(g, wait_ms, rows, count, again, err);
    mrl_lock_release(&g->lock);
    return rc;
}

uint32_t mrl_generator_running(mrl_generator *g)
{
    mrl_lock_acquire(&g->lock);
    uint32_t running = g->running;
    mrl_lock_release(&g->lock);
    return running;
}

uint64_t mrl_generator_steps(mrl_generator *g)
{
    mrl_lock_acquire(&g->lock);
    uint64_t steps = g->submitted;
    mrl_lock_release(&g->lock);
    return steps;
}

uint32_t mrl_generator_depth(const mrl_generator *g)
{
    return g->depth;
}
