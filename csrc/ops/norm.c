#include "ops/norm.h"

#include "../shaders/include/push.h"

static uint32_t local_size(mrl_device *dev, uint64_t columns)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    uint32_t lanes = info->subgroup_max;

    /* A CPU pays for every subgroup; a GPU wants the row loaded at once, 4 elements a lane. */
    if (info->kind != MRL_DEVICE_SOFTWARE)
        while (lanes < 1024 && lanes * 2 <= info->max_workgroup && lanes * 4u < columns) lanes *= 2;
    return lanes;
}

static bool aligned(const mrl_view *view)
{
    return view->buffer == NULL || mrl_view_address(view) % (4 * mrl_dtype_bytes(view->dtype)) == 0;
}

mrl_status mrl_rms_norm(const mrl_view *x, const mrl_view *weight, float eps, const mrl_view *residual,
                        const mrl_view *y, const mrl_view *sum, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    uint64_t columns, rows;

    if (x->buffer == NULL || x->ndim < 1) return mrl_fail(err, MRL_ERR_TYPE, "rms_norm: x must be a tensor");
    mrl_device *dev = mrl_buffer_device(x->buffer);
    columns = x->shape[x->ndim - 1];
    MRL_TRY(mrl_view_check(x, dev, "rms_norm", "x", MRL_DTYPES_ACT, x->ndim, x->shape, err));
    MRL_TRY(mrl_view_check(weight, dev, "rms_norm", "weight", MRL_DTYPE_BIT(f32), 1, &columns, err));
    MRL_TRY(mrl_view_check(y, dev, "rms_norm", "out", MRL_DTYPES_ACT, x->ndim, x->shape, err));
    if (residual->buffer != NULL) {
        MRL_TRY(mrl_view_check(residual, dev, "rms_norm", "residual", MRL_DTYPES_ACT, x->ndim, x->shape, err));
        MRL_TRY(mrl_view_check(sum, dev, "rms_norm", "sum", 1u << residual->dtype, x->ndim, x->shape, err));
    }
    if (mrl_view_elements(x) == 0) return MRL_OK;
    rows = mrl_view_elements(x) / columns;
    if (rows > mrl_device_info_of(dev)->max_groups[0] || columns > INT32_MAX / 4)
        return mrl_fail(err, MRL_ERR_VALUE, "rms_norm: %llu rows of %llu are more than the device takes",
                        (unsigned long long)rows, (unsigned long long)columns);

    bool fours = columns % 4 == 0 && aligned(x) && aligned(weight) && aligned(residual);
    uint32_t spec[] = {
        local_size(dev, columns),
        x->dtype,
        residual->buffer == NULL ? MRL_DTYPE_f32 : residual->dtype,
        y->dtype,
        fours ? 4 : 1,
    };
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_rms_norm, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 5, &pipeline, err));
    mrl_push_rms_norm push = {
        .x = mrl_view_address(x),
        .residual = mrl_view_address(residual),
        .weight = mrl_view_address(weight),
        .y = mrl_view_address(y),
        .sum = residual->buffer == NULL ? 0 : mrl_view_address(sum),
        .rows = (uint32_t)rows,
        .columns = (uint32_t)columns,
        .eps = eps,
    };
    mrl_range reads[] = {mrl_view_range(x), mrl_view_range(weight), mrl_view_range(residual)};
    mrl_range writes[] = {mrl_view_range(y), residual->buffer == NULL ? (mrl_range){0} : mrl_view_range(sum)};
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {(uint32_t)rows, 1, 1},
        .reads = reads,
        .nreads = 3,
        .writes = writes,
        .nwrites = 2,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

mrl_status mrl_rms_norm_new(const mrl_view *x, const mrl_view *weight, float eps, mrl_dtype dtype, mrl_view *out,
                            mrl_error *err)
{
    const mrl_view absent = {0};
    mrl_device *dev = mrl_buffer_device(x->buffer);
    mrl_status rc = mrl_view_create(dev, dtype, x->shape[0], x->shape[1], out, err);
    return rc == MRL_OK ? mrl_rms_norm(x, weight, eps, &absent, out, &absent, err) : rc;
}
