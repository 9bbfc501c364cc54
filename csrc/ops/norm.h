/* RMS norm over the last axis (shaders/norm/). */
#ifndef MRL_OPS_NORM_H
#define MRL_OPS_NORM_H

#include "ops/view.h"

/* y = s / sqrt(mean(s^2) + eps) * weight over each row, s = x, or x + residual, which sum receives.
 * x, y (..., columns) f32 | f16 | bf16; weight (columns) f32; residual and sum absent, or both of
 * x's shape and of one dtype; y may have another dtype than x. VALUE/TYPE errors as mrl_view_check.
 */
mrl_status mrl_rms_norm(const mrl_view *x, const mrl_view *weight, float eps, const mrl_view *residual,
                        const mrl_view *y, const mrl_view *sum, mrl_error *err);
/* The same of (m, columns) without a residual into a new buffer under `out`, which the caller releases. */
mrl_status mrl_rms_norm_new(const mrl_view *x, const mrl_view *weight, float eps, mrl_dtype dtype, mrl_view *out,
                            mrl_error *err);

#endif
