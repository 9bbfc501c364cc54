/* How the few-rows kernels (matmul/gemv.glsl: gemv, moe_gemv, moe_down) divide their work. */
#ifndef MRL_OPS_GEMV_H
#define MRL_OPS_GEMV_H

#include "ops/matmul.h"

#define MRL_GEMV_MAX_ROWS 16u

typedef struct mrl_gemv_work {
    const mrl_weight *w;
    uint32_t n;         /* rows of W that the workgroups along x walk: all, or those of an expert */
    uint32_t length;    /* weights along k, padding included: w->k_padded, or that of all experts of a row */
    uint32_t m;         /* rows of x that a workgroup multiplies with */
    uint32_t copies;    /* such walks: workgroups along y */
    mrl_dtype x, y;
    mrl_activation activation;
    bool norm;          /* x is normalised first */
    bool staged;        /* by way of shared memory on CPUs, too: what asking for the kernel by name means */
} mrl_gemv_work;

/* What tuners and benchmarks ask for; 0: the default. */
typedef struct mrl_gemv_tuning {
    uint32_t rows, split, prefetch, local, workgroups;
} mrl_gemv_tuning;

typedef struct mrl_gemv_plan {
    mrl_math math;
    uint32_t spec[MRL_MAX_SPEC];
    int nspec;
    uint32_t groups[3];
} mrl_gemv_plan;

/* VALUE error for a tuning that cannot run on the device. */
mrl_status mrl_plan_gemv(mrl_device *dev, const mrl_gemv_work *work, const mrl_gemv_tuning *asked, mrl_gemv_plan *plan,
                         mrl_error *err);

/* Whether x must stay f32 in the inner loops: f32 and bf16 activations may hold what f16 cannot, a normalised row
 * cannot overflow it. */
bool mrl_wants_f32(mrl_format format, mrl_dtype x, bool norm);

#endif
