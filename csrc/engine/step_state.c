#include "engine/step_state.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "push.h"
#include "vk/program.h"

struct mrl_step_state {
    atomic_int refs;
    mrl_step_buffers buffers;
    mrl_buffer *slot_ids;
};

static mrl_status filled(mrl_device *dev, uint64_t words, mrl_memory_kind kind, uint32_t word,
                         mrl_buffer **out, mrl_error *err)
{
    mrl_status rc = mrl_buffer_create(dev, words * 4, kind, out, err);
    return rc != MRL_OK ? rc : mrl_buffer_fill(*out, 0, words * 4, word, err);
}

static mrl_status write_slot_ids(mrl_buffer *buffer, uint32_t slots, mrl_error *err)
{
    mrl_status rc;
    int32_t *ids = malloc(slots * sizeof *ids);

    if (ids == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "step state: no host memory for %u slots", slots);
    for (uint32_t i = 0; i < slots; i++) ids[i] = (int32_t)i;
    rc = mrl_buffer_write(buffer, 0, ids, slots * sizeof *ids, err);
    free(ids);
    return rc;
}

mrl_status mrl_step_state_create(mrl_device *dev, uint32_t slots, uint32_t vocab,
                                 mrl_step_state **out, mrl_error *err)
{
    mrl_status rc;
    mrl_step_state *state = NULL;

    *out = NULL;
    if (slots < 1 || slots > MRL_SLOTS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "step state: slots must be 1 to %u, got %u",
                        MRL_SLOTS_MAX, slots);
    if (vocab < 1 || vocab > MRL_VOCAB_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "step state: vocab must be 1 to %u, got %u",
                        MRL_VOCAB_MAX, vocab);
    if ((uint64_t)slots * vocab > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "step state: slots * vocab must be below 2^31, got %u * %u", slots, vocab);
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "step state: not while capturing a program");
    state = calloc(1, sizeof *state);
    if (state == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "step state: no host memory");
    state->refs = 1;
    state->buffers.slots = slots;
    state->buffers.vocab = vocab;
    mrl_step_buffers *b = &state->buffers;
    uint64_t ring = (uint64_t)MRL_RING_STEPS * slots * MRL_RING_WORDS;
    MRL_TRY(filled(dev, slots, MRL_MEMORY_DEVICE, 0, &b->tokens, err));
    MRL_TRY(filled(dev, slots, MRL_MEMORY_DEVICE, UINT32_MAX, &b->positions, err));
    MRL_TRY(filled(dev, (uint64_t)slots * MRL_SLOT_WORDS, MRL_MEMORY_DEVICE, 0, &b->params, err));
    MRL_TRY(
        filled(dev, (uint64_t)slots * mrl_div_up(vocab, 32), MRL_MEMORY_DEVICE, 0, &b->seen, err));
    MRL_TRY(filled(dev, (uint64_t)slots * MRL_BIAS_MAX * 2, MRL_MEMORY_DEVICE, 0, &b->bias, err));
    MRL_TRY(filled(dev, 2, MRL_MEMORY_DEVICE, 0, &b->step, err));
    MRL_TRY(filled(dev, ring, MRL_MEMORY_HOST, 0, &b->ring, err));
    MRL_TRY(
        mrl_buffer_create(dev, slots * sizeof(int32_t), MRL_MEMORY_DEVICE, &state->slot_ids, err));
    MRL_TRY(write_slot_ids(state->slot_ids, slots, err));
    *out = state;
    state = NULL;
done:
    mrl_step_state_release(state);
    return rc;
}

mrl_step_state *mrl_step_state_retain(mrl_step_state *state)
{
    atomic_fetch_add(&state->refs, 1);
    return state;
}

void mrl_step_state_release(mrl_step_state *state)
{
    if (state == NULL || atomic_fetch_sub(&state->refs, 1) > 1) return;
    mrl_step_buffers *b = &state->buffers;
    mrl_buffer *buffers[] = {b->tokens, b->positions, b->params, b->seen,
                             b->bias,   b->ring,      b->step,   state->slot_ids};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) mrl_buffer_release(buffers[i]);
    free(state);
}

const mrl_step_buffers *mrl_step_state_buffers(const mrl_step_state *state)
{
    return &state->buffers;
}
mrl_buffer *mrl_step_state_slot_ids(const mrl_step_state *state)
{
    return state->slot_ids;
}
