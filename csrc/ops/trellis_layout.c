/* Trellises between the file's layout and the kernels', and decoded. */
#include "ops/trellis_layout.h"

mrl_status mrl_trellis_copy(mrl_device *dev, const mrl_trellis *t, mrl_kernel kernel, uint32_t option,
                            const mrl_push_trellis_copy *push, const uint32_t *groups, mrl_range read, mrl_range write,
                            mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    const uint32_t local = kernel == MRL_KERNEL_trellis_pack ? 256 : 64;
    const bool software = mrl_device_info_of(dev)->kind == MRL_DEVICE_SOFTWARE;
    const uint32_t spec[] = {local, t->rate2, (uint32_t)t->codebook, option, software};
    const mrl_range reads[] = {read, mrl_range_of(t->suh)};

    MRL_TRY(mrl_pipeline_get(dev, kernel, MRL_FORMAT_NONE, MRL_MATH_NONE, spec,
                             kernel == MRL_KERNEL_trellis_pack ? 4 : 5, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = push,
        .push_bytes = sizeof *push,
        .groups = {groups[0], groups[1], groups[2]},
        .reads = reads,
        .nreads = 2,
        .writes = &write,
        .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    return rc;
}

mrl_status mrl_op_trellis_pack(mrl_device *dev, const mrl_trellis *t, uint32_t expert, mrl_buffer *file, uint32_t row,
                               uint32_t rows, bool back, mrl_error *err)
{
    const uint64_t words = (uint64_t)rows * (t->n_padded / 16) * 4 * t->rate2;
    const mrl_push_trellis_copy push = {
        .file = mrl_buffer_address(file),
        .trellis = mrl_trellis_units_at(t, expert),
        .row = row,
        .rows = rows,
        .k = t->k_padded,
        .n = t->n_padded,
    };
    const uint32_t groups[3] = {(uint32_t)((words + 255) / 256 < 32768 ? (words + 255) / 256 : 32768), 1, 1};
    const mrl_range in_file = {file, 0, words * 4};

    if (row % 8 != 0 || rows % 8 != 0 || (uint64_t)row + rows > t->k_padded / 16 || words > INT32_MAX ||
        words * 4 > mrl_buffer_bytes(file))
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: tile rows %u .. %u cannot be packed", row, row + rows);
    const mrl_range units = mrl_range_of(t->units);
    return mrl_trellis_copy(dev, t, MRL_KERNEL_trellis_pack, back, &push, groups, back ? units : in_file,
                            back ? in_file : units, err);
}

mrl_status mrl_op_trellis_inner(mrl_device *dev, const mrl_trellis *t, uint32_t expert, const mrl_view *y,
                                mrl_error *err)
{
    mrl_status rc;
    const mrl_push_trellis_copy push = {
        .file = mrl_view_address(y),
        .trellis = mrl_trellis_units_at(t, expert),
        .k = t->k_padded,
        .n = t->n_padded,
    };
    const uint32_t groups[3] = {t->n_padded / 16, t->k_padded / MRL_TRELLIS_BLOCK, 1};

    MRL_TRY(mrl_view_check(y, dev, "inner", "out", MRL_DTYPE_BIT(f16), 2, (uint64_t[]){t->k_padded, t->n_padded}, err));
    MRL_TRY(mrl_trellis_copy(dev, t, MRL_KERNEL_trellis_dequantize, 0, &push, groups, mrl_range_of(t->units),
                             mrl_view_range(y), err));
done:
    return rc;
}
