#include "engine/moe.h"

#include <stdlib.h>

#include "vk/program.h"

struct mrl_moe {
    mrl_device *dev;
    mrl_moe_layer layer; /* its buffers are retained, its weights borrowed */
};

static mrl_status zeros(mrl_device *dev, uint32_t words, mrl_buffer **out, mrl_error *err)
{
    mrl_status rc = mrl_buffer_create(dev, 4ull * words, MRL_MEMORY_DEVICE, out, err);
    return rc == MRL_OK ? mrl_buffer_fill(*out, 0, 4ull * words, 0, err) : rc;
}

static mrl_status refuse_bias(const mrl_linear *linear, const char *name, mrl_error *err)
{
    mrl_view bias = mrl_linear_bias((mrl_linear *)(uintptr_t)linear);
    mrl_buffer_release(bias.buffer);
    if (bias.buffer != NULL)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: %s must have no bias", name);
    return MRL_OK;
}

static mrl_status refuse_biases(const mrl_moe_config *config, mrl_error *err)
{
    mrl_status rc;

    MRL_TRY(refuse_bias(config->router, "router", err));
    if (config->gate_up != NULL) {
        MRL_TRY(refuse_bias(config->gate_up, "gate_up", err));
        MRL_TRY(refuse_bias(config->down, "down", err));
        goto done;
    }
    for (int i = 0; i < 3; i++) {
        mrl_view bias = mrl_trellis_linear_bias(config->trellis[i]);
        mrl_buffer_release(bias.buffer);
        if (bias.buffer != NULL)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: trellises must have no bias");
    }
done:
    return rc;
}

/* The weights and sizes of the experts. */
static void describe(const mrl_moe_config *config, mrl_moe_layer *layer)
{
    if (config->gate_up != NULL) {
        layer->gate_up = mrl_linear_weight(config->gate_up);
        layer->down = mrl_linear_weight(config->down);
        layer->hidden = layer->gate_up->k;
        layer->inner = layer->down->k;
        return;
    }
    for (int i = 0; i < 3; i++)
        layer->trellis[i] = mrl_trellis_linear_weight(config->trellis[i]);
    layer->hidden = layer->trellis[0]->k;
    layer->inner = layer->trellis[0]->n;
}

mrl_status mrl_moe_create(mrl_device *dev, const mrl_moe_config *config, mrl_moe **out, mrl_error *err)
{
    mrl_status rc;
    mrl_moe *moe = NULL;
    mrl_moe_layer layer = {.router = mrl_linear_weight(config->router),
                           .bias = config->bias,
                           .experts = config->experts,
                           .top_k = config->top_k,
                           .shared = config->shared,
                           .sigmoid = config->sigmoid,
                           .normalise = config->normalise,
                           .scale = config->scale,
                           .groups = config->groups,
                           .top_groups = config->top_groups,
                           .group_best = config->group_best,
                           .activation = config->activation};

    *out = NULL;
    describe(config, &layer);
    MRL_TRY(mrl_moe_check(dev, &layer, err));
    MRL_TRY(refuse_biases(config, err));
    if (mrl_program_capturing(dev) != NULL) /* the counters would lie in the program's arena */
        return mrl_fail(err, MRL_ERR_STATE, "moe: cannot be made while capturing");
    moe = calloc(1, sizeof *moe);
    if (moe == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "moe: out of host memory");
    moe->dev = mrl_device_retain(dev);
    moe->layer = layer;
    if (layer.bias.buffer != NULL)
        mrl_buffer_retain(layer.bias.buffer);
    MRL_TRY(zeros(dev, MRL_MOE_COUNTERS, &moe->layer.counters, err));
    MRL_TRY(zeros(dev, layer.experts, &moe->layer.usage, err));
    if (layer.gate_up == NULL)
        MRL_TRY(zeros(dev, mrl_moe_pair_counters(&layer), &moe->layer.pair_counters, err));
    *out = moe;
    moe = NULL;
done:
    mrl_moe_free(moe);
    return rc;
}

void mrl_moe_free(mrl_moe *moe)
{
    if (moe == NULL)
        return;
    mrl_buffer_release(moe->layer.bias.buffer);
    mrl_buffer_release(moe->layer.counters);
    mrl_buffer_release(moe->layer.usage);
    mrl_buffer_release(moe->layer.pair_counters);
    mrl_device_release(moe->dev);
    free(moe);
}

const mrl_moe_layer *mrl_moe_layer_of(const mrl_moe *moe) { return &moe->layer; }

mrl_view mrl_moe_usage(const mrl_moe *moe)
{
    return (mrl_view){.buffer = moe->layer.usage, .dtype = MRL_DTYPE_u32, .ndim = 1, .shape = {moe->layer.experts}};
}

mrl_status mrl_moe_reset_usage(mrl_moe *moe, mrl_error *err)
{
    if (mrl_program_capturing(moe->dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "moe: counters cannot be reset while capturing");
    return mrl_buffer_fill(moe->layer.usage, 0, 4ull * moe->layer.experts, 0, err);
}
