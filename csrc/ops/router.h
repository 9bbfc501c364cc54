/* The router of a mixture of experts: which ones a row goes to (shaders/moe/router.comp). */
#ifndef MRL_OPS_ROUTER_H
#define MRL_OPS_ROUTER_H

#include "ops/moe.h"

/* ids (rows, slots) i32 and weights of that shape f32, for checked arguments. */
mrl_status mrl_route(mrl_device *dev, const mrl_moe_args *args, const mrl_view *ids, const mrl_view *weights,
                     mrl_error *err);

/* Whether the choice of a single row can stay open. */
bool mrl_route_can_stay_open(mrl_device *dev, const mrl_moe_layer *layer);

/* The same up to the choice. ids and weights, which lie behind them, are what the choice will be written to. */
mrl_status mrl_route_open(mrl_device *dev, const mrl_moe_args *args, const mrl_view *ids, const mrl_view *weights,
                          mrl_choice *choice, mrl_error *err);

#endif
