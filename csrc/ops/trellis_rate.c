/* How fast weights are decoded from registers: for benchmarks. */
#include "ops/trellis.h"
#include "push.h"

#define RATE_LANES 128u

mrl_status mrl_op_trellis_rate(mrl_device *dev, uint32_t rate2, mrl_codebook codebook, mrl_trellis_way way,
                               uint32_t rounds, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    const uint64_t lanes = y->ndim == 1 ? y->shape[0] : 0;
    const uint32_t spec[] = {RATE_LANES, rate2, (uint32_t)codebook, (uint32_t)way};
    const mrl_push_trellis_copy push = {.file = mrl_view_address(y), .rows = rounds};
    const mrl_range writes[] = {mrl_view_range(y)};

    if (!mrl_trellis_has_rate(rate2, codebook))
        return mrl_fail(err, MRL_ERR_VALUE, "trellis_rate: %s has no %g bits", mrl_codebook_name(codebook),
                        rate2 / 2.0);
    if (way == (codebook == MRL_CODEBOOK_MUL1 ? MRL_WAY_APART : MRL_WAY_INT8))
        return mrl_fail(err, MRL_ERR_VALUE, "trellis_rate: %s has no such way", mrl_codebook_name(codebook));
    if (lanes == 0 || lanes % RATE_LANES != 0 || lanes / RATE_LANES > mrl_device_info_of(dev)->max_groups[0])
        return mrl_fail(err, MRL_ERR_VALUE, "trellis_rate: out must have a multiple of %u elements, %u times at most",
                        RATE_LANES, mrl_device_info_of(dev)->max_groups[0]);
    MRL_TRY(mrl_view_check(y, dev, "trellis_rate", "out", MRL_DTYPE_BIT(f32), 1, &lanes, err));
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_trellis_rate, MRL_FORMAT_NONE, MRL_MATH_F16, spec, 4, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {(uint32_t)(lanes / RATE_LANES), 1, 1},
        .writes = writes,
        .nwrites = 1,
        .flops = 64.0 * rounds * lanes,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    return rc;
}
