#include "engine/moe.h"

#include <stdlib.h>
#include <string.h>

#include "vk/program.h"

struct mrl_moe {
    mrl_device *dev;
    mrl_moe_layer layer; /* its buffers are retained, its weights borrowed */
    mrl_moe_stack stacks[MRL_MOE_STACKS_MAX]; /* of layer */
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

static mrl_status refuse_biases(const mrl_moe_weights *stack, mrl_error *err)
{
    mrl_status rc = MRL_OK;

    if (stack->gate_up != NULL) {
        MRL_TRY(refuse_bias(stack->gate_up, "gate_up", err));
        MRL_TRY(refuse_bias(stack->down, "down", err));
        goto done;
    }
    for (int i = 0; i < 3; i++) {
        mrl_view bias = mrl_trellis_linear_bias(stack->trellis[i]);
        mrl_buffer_release(bias.buffer);
        if (bias.buffer != NULL)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: trellises must have no bias");
    }
done:
    return rc;
}

/* The weights of the stacks and the sizes of their experts. */
static void describe(const mrl_moe_config *config, mrl_moe_layer *layer, mrl_moe_stack *stacks)
{
    for (uint32_t s = 0; s < config->nstacks; s++) {
        const mrl_moe_weights *weights = &config->stacks[s];
        if (weights->gate_up != NULL) {
            stacks[s].gate_up = mrl_linear_weight(weights->gate_up);
            stacks[s].down = mrl_linear_weight(weights->down);
        } else {
            for (int i = 0; i < 3; i++)
                stacks[s].trellis[i] = mrl_trellis_linear_weight(weights->trellis[i]);
        }
    }
    const bool trellis = stacks[0].gate_up == NULL;
    layer->hidden = trellis ? stacks[0].trellis[0]->k : stacks[0].gate_up->k;
    layer->inner = trellis ? stacks[0].trellis[0]->n : stacks[0].down->k;
}

/* How many experts each stack has. */
static mrl_status count_experts(const mrl_moe_config *config, mrl_moe_stack *stacks, mrl_error *err)
{
    const uint32_t all = config->experts + config->shared;

    if (config->nstacks < 1 || config->nstacks > MRL_MOE_STACKS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: experts must lie in 1 to %u stacks, got %u", MRL_MOE_STACKS_MAX,
                        config->nstacks);
    if (config->nstacks == 1 && config->stack_of == NULL)
        stacks[0].experts = all;
    for (uint32_t i = 0; i < all && config->stack_of != NULL; i++) {
        if (config->stack_of[i] >= config->nstacks)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: expert %u must lie in stack 0 to %u, got %u", i,
                            config->nstacks - 1, config->stack_of[i]);
        stacks[config->stack_of[i]].experts++;
    }
    for (uint32_t s = 0; s < config->nstacks; s++)
        if (all > 0 && stacks[s].experts == 0)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: no expert lies in stack %u", s);
    return MRL_OK;
}

/* The tables by which kernels find the experts of their stack. */
static mrl_status make_places(mrl_moe *moe, const mrl_moe_config *config, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    const uint32_t all = config->experts + config->shared;
    int32_t *places = NULL;

    if (config->nstacks == 1)
        return MRL_OK;
    places = malloc(all * sizeof *places);
    if (places == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "moe: out of host memory");
    for (uint32_t s = 0; s < config->nstacks; s++) {
        mrl_buffer **buffer = &moe->stacks[s].places;
        int32_t next = 0;
        for (uint32_t i = 0; i < all; i++)
            places[i] = config->stack_of[i] == s ? next++ : -1;
        MRL_TRY(mrl_buffer_create(moe->dev, all * sizeof *places, MRL_MEMORY_DEVICE, buffer, err));
        MRL_TRY(mrl_buffer_write(*buffer, 0, places, all * sizeof *places, err));
    }
done:
    free(places);
    return rc;
}

mrl_status mrl_moe_create(mrl_device *dev, const mrl_moe_config *config, mrl_moe **out, mrl_error *err)
{
    mrl_status rc;
    mrl_moe *moe = NULL;
    mrl_moe_stack stacks[MRL_MOE_STACKS_MAX] = {0};
    mrl_moe_layer layer = {.router = mrl_linear_weight(config->router),
                           .stacks = stacks,
                           .nstacks = config->nstacks,
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
    MRL_TRY(count_experts(config, stacks, err));
    describe(config, &layer, stacks);
    MRL_TRY(mrl_moe_check(dev, &layer, err));
    MRL_TRY(refuse_bias(config->router, "router", err));
    for (uint32_t s = 0; s < config->nstacks; s++)
        MRL_TRY(refuse_biases(&config->stacks[s], err));
    if (mrl_program_capturing(dev) != NULL) /* the counters would lie in the program's arena */
        return mrl_fail(err, MRL_ERR_STATE, "moe: cannot be made while capturing");
    moe = calloc(1, sizeof *moe);
    if (moe == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "moe: out of host memory");
    moe->dev = mrl_device_retain(dev);
    moe->layer = layer;
    moe->layer.stacks = moe->stacks;
    memcpy(moe->stacks, stacks, sizeof stacks);
    if (layer.bias.buffer != NULL)
        mrl_buffer_retain(layer.bias.buffer);
    MRL_TRY(zeros(dev, MRL_MOE_COUNTERS, &moe->layer.counters, err));
    MRL_TRY(zeros(dev, mrl_moe_choice_words(layer.experts), &moe->layer.choice, err));
    if (mrl_moe_pair_counters(&layer) > 0)
        MRL_TRY(zeros(dev, mrl_moe_pair_counters(&layer), &moe->layer.pair_counters, err));
    MRL_TRY(make_places(moe, config, err));
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
    mrl_buffer_release(moe->layer.choice);
    mrl_buffer_release(moe->layer.pair_counters);
    for (uint32_t s = 0; s < MRL_MOE_STACKS_MAX; s++)
        mrl_buffer_release(moe->stacks[s].places);
    mrl_device_release(moe->dev);
    free(moe);
}

const mrl_moe_layer *mrl_moe_layer_of(const mrl_moe *moe) { return &moe->layer; }

mrl_view mrl_moe_usage(const mrl_moe *moe) { return mrl_moe_usage_of(&moe->layer); }

bool mrl_moe_open_choice(const mrl_moe *moe) { return mrl_moe_leaves_choice(moe->dev, &moe->layer); }

mrl_status mrl_moe_reset_usage(mrl_moe *moe, mrl_error *err)
{
    const mrl_view usage = mrl_moe_usage(moe);
    if (mrl_program_capturing(moe->dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "moe: counters cannot be reset while capturing");
    return mrl_buffer_fill(usage.buffer, usage.offset, mrl_view_bytes(&usage), 0, err);
}
