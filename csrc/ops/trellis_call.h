/* What the dispatches of a trellis product share: trellis.c and trellis_transform.c. */
#ifndef MRL_OPS_TRELLIS_CALL_H
#define MRL_OPS_TRELLIS_CALL_H

#include "../shaders/include/push.h"

#include "ops/trellis.h"
#include "vk/pipeline.h"

typedef struct trellis_call {
    mrl_device *dev;
    const mrl_trellis_args *args;
    mrl_push_trellis push;
    mrl_range y; /* what is written of it */
} trellis_call;

typedef enum mrl_trellis_side { MRL_TRELLIS_INPUT, MRL_TRELLIS_OUTPUT } mrl_trellis_side;

mrl_status mrl_trellis_record(const trellis_call *c, mrl_kernel kernel, mrl_math math, const uint32_t *spec, int nspec,
                              const uint32_t *groups, const mrl_range *reads, int nreads, const mrl_range *writes,
                              int nwrites, double flops, mrl_error *err);

/* Lanes that transform 128 values where that is done in registers. */
uint32_t mrl_trellis_transform_lanes(const mrl_device_info *info);

/* The activation that acts on y; gated ones act on x. */
mrl_activation mrl_trellis_y_activation(const mrl_trellis_args *args);

/* Whether kernels can take four columns of y at once, as the constants FOURS of their shaders have it. */
bool mrl_trellis_fours_of_y(const trellis_call *c);

/* The transform of one side of a product: x into `partial`, or the sums in it, `splits` shares, to y. c->push has
 * partial. */
mrl_status mrl_trellis_transform(const trellis_call *c, mrl_trellis_side side, mrl_dtype y_type, uint32_t splits,
                                 mrl_buffer *partial, mrl_error *err);

/* x of all pairs to `out` (places, k_padded) f16, as their experts want it. */
mrl_status mrl_trellis_transform_pairs(mrl_device *dev, const mrl_trellis_experts_args *args,
                                       mrl_push_trellis_moe *push, mrl_buffer *out, mrl_error *err);

#endif
