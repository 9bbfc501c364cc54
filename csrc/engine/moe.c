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

mrl_status mrl_moe_create(mrl_device *dev, const mrl_moe_config *config, mrl_moe **out, mrl_error *err)
{
    mrl_status rc;
    mrl_moe *moe = NULL;
    mrl_moe_layer layer = {.router = mrl_linear_weight(config->router),
                           .gate_up = mrl_linear_weight(config->gate_up),
                           .down = mrl_linear_weight(config->down),
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
    MRL_TRY(mrl_moe_check(dev, &layer, err));
    MRL_TRY(refuse_bias(config->router, "router", err));
    MRL_TRY(refuse_bias(config->gate_up, "gate_up", err));
    MRL_TRY(refuse_bias(config->down, "down", err));
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
