/* y = epilogue(norm(x) W^T): one call for every number of rows; the kernel rows below are tried in order. */
#ifndef MRL_OPS_MATMUL_H
#define MRL_OPS_MATMUL_H

#include "ops/weight.h"

typedef enum mrl_activation {
    MRL_ACTIVATION_NONE,
    MRL_ACTIVATION_SILU,
    MRL_ACTIVATION_GELU,       /* erf */
    MRL_ACTIVATION_GELU_TANH,
    MRL_ACTIVATION_SWIGLU,     /* gated: rows of W alternate gate, up; y has n / 2 columns: act(gate) * up */
    MRL_ACTIVATION_GEGLU,
    MRL_ACTIVATION_GEGLU_TANH,
} mrl_activation;

static inline bool mrl_activation_gated(mrl_activation activation)
{
    return activation >= MRL_ACTIVATION_SWIGLU;
}

typedef struct mrl_matmul_args {
    const mrl_weight *w;
    mrl_view x;         /* (m, k) f32, f16 or bf16 */
    mrl_view norm;      /* (k) f32 or absent: x becomes x * rsqrt(mean(x^2) + eps) * norm first */
    mrl_view bias;      /* (n) f32 or absent, added before the activation */
    mrl_view residual;  /* (m, n_out) f32 or absent, added last; may be the memory of y */
    mrl_view y;         /* (m, n_out) f32, f16 or bf16 */
    float eps;
    mrl_activation activation;
    const char *kernel; /* a row of kernels.def, or NULL to choose */
} mrl_matmul_args;

mrl_status mrl_op_matmul(mrl_device *dev, const mrl_matmul_args *args, mrl_error *err);

#endif
