/* MoE: the experts of a layer over Linears and TrellisLinears, their usage counters, and the call. */
#ifndef MRL_ENGINE_MOE_H
#define MRL_ENGINE_MOE_H

#include "engine/linear.h"
#include "engine/trellis_linear.h"
#include "ops/moe.h"

typedef struct mrl_moe mrl_moe;

/* Borrowed: they must outlive the mrl_moe. Without biases. */
typedef struct mrl_moe_weights {
    const mrl_linear *gate_up, *down;
    mrl_trellis_linear *trellis[3]; /* gate, up, down instead of those two */
} mrl_moe_weights;

typedef struct mrl_moe_config {
    const mrl_linear *router; /* borrowed likewise */
    mrl_moe_weights stacks[MRL_MOE_STACKS_MAX];
    uint32_t nstacks;
    const uint32_t *stack_of; /* (experts + shared) which stack each lies in, in order of their numbers; NULL: one */
    mrl_view bias;                             /* (experts) f32 or absent; its buffer is retained */
    uint32_t experts, top_k, shared;
    bool sigmoid, normalise;
    float scale;
    uint32_t groups, top_groups, group_best;
    mrl_activation activation;
} mrl_moe_config;

/* VALUE and TYPE errors as mrl_moe_check; STATE while this thread captures. */
mrl_status mrl_moe_create(mrl_device *dev, const mrl_moe_config *config, mrl_moe **out, mrl_error *err);
void mrl_moe_free(mrl_moe *moe); /* NULL allowed */

const mrl_moe_layer *mrl_moe_layer_of(const mrl_moe *moe); /* lives as long as the moe */
/* (experts) u32: how often each was chosen since the last reset. Borrowed. */
mrl_view mrl_moe_usage(const mrl_moe *moe);
bool mrl_moe_open_choice(const mrl_moe *moe); /* mrl_moe_leaves_choice of its layer */
mrl_status mrl_moe_reset_usage(mrl_moe *moe, mrl_error *err);

#endif
