#include "engine/delta_state.h"

#include <stdlib.h>

#include "vk/program.h"

struct mrl_delta_state {
    uint32_t layers;
    uint64_t ring_bytes, state_bytes; /* of a layer */
    mrl_delta sizes;                  /* ring and state NULL */
    mrl_buffer *buffers[];            /* ring and state of layer 0, of layer 1 .. */
};

static mrl_status check_sizes(uint32_t layers, const mrl_delta *s, mrl_error *err)
{
    const uint32_t most = MRL_DELTA_DIM_MAX;

    if (layers < 1 || s->slots < 1 || s->key_heads < 1 || layers > 65535 || s->value_heads > 65535)
        return mrl_fail(err, MRL_ERR_VALUE, "DeltaState: layers, slots and key_heads must be positive, got %u, %u, %u",
                        layers, s->slots, s->key_heads);
    if (s->value_heads < 1 || s->value_heads % s->key_heads != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "DeltaState: value_heads must be a multiple of key_heads %u, got %u",
                        s->key_heads, s->value_heads);
    if (s->key_dim < 8 || s->value_dim < 8 || s->key_dim % 8 != 0 || s->value_dim % 8 != 0 || s->key_dim > most ||
        s->value_dim > most)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "DeltaState: key_dim and value_dim must be multiples of 8 up to %u, got %u and %u", most,
                        s->key_dim, s->value_dim);
    if (s->taps < 1 || s->taps > MRL_DELTA_TAPS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "DeltaState: taps must be 1 to %u, got %u", MRL_DELTA_TAPS_MAX, s->taps);
    return MRL_OK;
}

/* Kernels count the channels of a row, and rows and heads of all slots, in signed 32 bits. */
static mrl_status layer_sizes(const mrl_delta *s, uint64_t *ring, uint64_t *state, mrl_error *err)
{
    const uint64_t heads = (uint64_t)s->slots * s->value_heads;

    if (!mrl_fits_i32(mrl_delta_width(s)) || !mrl_fits_i32((uint64_t)s->slots * s->taps) || !mrl_fits_i32(heads) ||
        !mrl_mul_u64((uint64_t)s->slots * s->taps, mrl_delta_channels(s) * sizeof(float), ring) ||
        !mrl_mul_u64(heads, (uint64_t)s->key_dim * s->value_dim * sizeof(float), state))
        return mrl_fail(err, MRL_ERR_VALUE, "DeltaState: %u slots of %u heads (%u, %u) are too many", s->slots,
                        s->value_heads, s->key_dim, s->value_dim);
    return MRL_OK;
}

mrl_status mrl_delta_state_create(mrl_device *dev, uint32_t layers, const mrl_delta *sizes, mrl_delta_state **out,
                                  mrl_error *err)
{
    mrl_status rc;
    mrl_delta_state *state = NULL;
    uint64_t ring_bytes = 0, state_bytes = 0;

    *out = NULL;
    MRL_TRY(check_sizes(layers, sizes, err));
    MRL_TRY(layer_sizes(sizes, &ring_bytes, &state_bytes, err));
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "DeltaState: not while capturing a program");
    state = calloc(1, sizeof *state + 2 * (size_t)layers * sizeof state->buffers[0]);
    if (state == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "DeltaState: no host memory");
    state->layers = layers;
    state->ring_bytes = ring_bytes;
    state->state_bytes = state_bytes;
    state->sizes = *sizes;
    state->sizes.ring = state->sizes.state = NULL;
    for (uint32_t i = 0; i < 2 * layers; i++)
        MRL_TRY(
            mrl_buffer_create(dev, i % 2 == 0 ? ring_bytes : state_bytes, MRL_MEMORY_DEVICE, &state->buffers[i], err));
    *out = state;
    state = NULL;
done:
    mrl_delta_state_free(state);
    return rc;
}

void mrl_delta_state_free(mrl_delta_state *state)
{
    if (state == NULL) return;
    for (uint32_t i = 0; i < 2 * state->layers; i++) mrl_buffer_release(state->buffers[i]);
    free(state);
}

uint32_t mrl_delta_state_layers(const mrl_delta_state *state)
{
    return state->layers;
}
uint64_t mrl_delta_state_bytes(const mrl_delta_state *state)
{
    return state->layers * (state->ring_bytes + state->state_bytes);
}

mrl_status mrl_delta_state_layer(const mrl_delta_state *state, uint32_t layer, mrl_delta *out, mrl_error *err)
{
    if (layer >= state->layers)
        return mrl_fail(err, MRL_ERR_VALUE, "DeltaState: layer must be 0 to %u, got %u", state->layers - 1, layer);
    *out = state->sizes;
    out->ring = state->buffers[2 * layer];
    out->state = state->buffers[2 * layer + 1];
    return MRL_OK;
}
