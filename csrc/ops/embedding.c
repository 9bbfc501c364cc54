#include "ops/embedding.h"

#include "../shaders/include/push.h"
#include "ops/quantize.h"

#define LANES 64u
#define GROUPS_MAX 65535u
#define UNIT_BYTES 16u

static mrl_range whole(mrl_buffer *buffer)
{
    return (mrl_range){buffer, 0, buffer == NULL ? 0 : mrl_buffer_bytes(buffer)};
}
static uint64_t address(mrl_buffer *buffer) { return buffer == NULL ? 0 : mrl_buffer_address(buffer); }

mrl_status mrl_op_embedding(mrl_device *dev, const mrl_weight *w, const mrl_view *ids, const mrl_view *y,
                            mrl_error *err)
{
    mrl_status rc;
    uint64_t rows = ids->buffer != NULL && ids->ndim == 1 ? ids->shape[0] : 1, shape[2] = {rows, w->k};
    uint32_t spec[] = {LANES, y->dtype, w->scale_type, w->has_zero};
    uint32_t units = (uint32_t)(mrl_weight_row_bytes(w) / UNIT_BYTES);
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_view_check(ids, dev, "embedding", "ids", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(y, dev, "embedding", "y", MRL_DTYPES_ACT, 2, shape, err));
    if (!mrl_fits_i32(rows))
        return mrl_fail(err, MRL_ERR_VALUE, "embedding: ids may have 2147483647 rows, got %llu",
                        (unsigned long long)rows);
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_embedding, w->format, MRL_MATH_NONE, spec, 4, &pipeline, err));
    mrl_push_dequantize push = {
        .quant = address(w->quant), .scale = address(w->scale), .zero = address(w->zero),
        .ids = mrl_view_address(ids), .y = mrl_view_address(y), .rows = (uint32_t)rows, .n = w->n, .k = w->k,
        .k_padded = w->k_padded, .group = w->group, .groups = w->groups, .global_scale = w->global_scale,
    };
    mrl_range reads[] = {whole(w->quant), whole(w->scale), whole(w->zero), mrl_view_range(ids)};
    mrl_range writes[] = {mrl_view_range(y)};
    mrl_dispatch dispatch = {
        .pipeline = pipeline, .push = &push, .push_bytes = sizeof push,
        .groups = {mrl_div_up(units, LANES), rows < GROUPS_MAX ? (uint32_t)rows : GROUPS_MAX, 1},
        .reads = reads, .nreads = 4, .writes = writes, .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}
