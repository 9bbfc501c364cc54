/* A weight matrix (n, k) in a weight format: planes in kernel layout (formats.py draws it). */
#ifndef MRL_OPS_WEIGHT_H
#define MRL_OPS_WEIGHT_H

#include "ops/view.h"

/* Scale plane types; the numbers are the specialization constant of the shaders. */
typedef enum mrl_scale {
    MRL_SCALE_NONE,
    MRL_SCALE_F32,
    MRL_SCALE_F16,
    MRL_SCALE_E8M0,
    MRL_SCALE_E4M3,
} mrl_scale;

typedef struct mrl_weight {
    mrl_format format;
    mrl_scale scale_type;
    bool has_zero;
    uint32_t n, k;
    uint32_t first;         /* rows of the planes before those of a part of a weight, which only products take; 0 */
    uint32_t k_padded;      /* k rounded up to 128: row stride of the quant plane, in weights; the tail: zero weights */
    uint32_t group;         /* weights a scale, 16..256, or 0: one scale a row */
    uint32_t groups;        /* scales a row */
    float global_scale;     /* 1 but for NV fp4 */
    mrl_buffer *quant, *scale, *zero; /* zero and scale NULL when absent */
} mrl_weight;

#endif
