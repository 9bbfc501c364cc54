#include "ops/quantize.h"

#include "../shaders/include/push.h"

_Static_assert(sizeof(mrl_push_quantize) <= 128 && sizeof(mrl_push_dequantize) <= 128 &&
                   sizeof(mrl_push_copy) <= 128,
               "push constants");

#define LANES      64u    /* a group of 256 is 32 lanes of 8; more would idle on short rows */
#define GROUPS_MAX 65535u /* what every device allows in each dimension; the shaders stride */
#define UNIT_BYTES 16u

static uint32_t least(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

uint32_t mrl_format_bits(mrl_format format)
{
    static const uint8_t bits[] = {
#define FORMAT(name, bits, math, scale, zero, default_group, text) bits,
#include "formats.def"
#undef FORMAT
    };
    return bits[format];
}

mrl_status mrl_rows_check(const mrl_rows *rows, uint32_t n, const char *op, mrl_error *err)
{
    if (rows->count == 0 || rows->stride == 0 || rows->start >= n ||
        (uint64_t)(rows->count - 1) * rows->stride > n - 1 - rows->start)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "%s: %u rows from row %u, every %u, are not within 0..%u", op, rows->count,
                        rows->start, rows->stride, n - 1);
    return MRL_OK;
}

mrl_status mrl_op_quantize(mrl_device *dev, const mrl_weight *w, const mrl_rows *rows,
                           const mrl_view *x, mrl_buffer *status, mrl_error *err)
{
    mrl_status rc;
    uint64_t shape[2] = {rows->count, w->k};
    uint32_t spec[] = {LANES, x->dtype, w->scale_type, w->has_zero};
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_view_check(x, dev, "quantize", "x", MRL_DTYPES_ACT, 2, shape, err));
    MRL_TRY(mrl_rows_check(rows, w->n, "quantize", err));
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_quantize, w->format, MRL_MATH_NONE, spec, 4, &pipeline,
                             err));
    mrl_push_quantize push = {
        .x = mrl_view_address(x),
        .quant = mrl_plane_address(w->quant),
        .scale = mrl_plane_address(w->scale),
        .zero = mrl_plane_address(w->zero),
        .status = mrl_plane_address(status),
        .rows = rows->count,
        .k = w->k,
        .k_padded = w->k_padded,
        .group = w->group,
        .groups = w->groups,
        .row_start = rows->start,
        .row_stride = rows->stride,
        .global_scale = w->global_scale,
    };
    mrl_range reads[] = {mrl_view_range(x), mrl_range_of(status)};
    mrl_range writes[] = {mrl_range_of(w->quant), mrl_range_of(w->scale),
                          mrl_range_of(w->zero), mrl_range_of(status)};
    bool by_row =
        w->group == 0 && w->scale_type != MRL_SCALE_NONE; /* such a row is one workgroup's */
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {by_row ? 1 : mrl_div_up(w->k_padded / 8, LANES), least(rows->count, GROUPS_MAX),
                   1},
        .reads = reads,
        .nreads = 2,
        .writes = writes,
        .nwrites = 4,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

mrl_status mrl_decode_rows(mrl_device *dev, mrl_kernel kernel, const mrl_weight *w,
                           const mrl_view *ids, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    uint32_t rows = (uint32_t)y->shape[0], spec[] = {LANES, y->dtype, w->scale_type, w->has_zero};
    uint32_t units = (uint32_t)(mrl_weight_row_bytes(w) / UNIT_BYTES);
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_pipeline_get(dev, kernel, w->format, MRL_MATH_NONE, spec, 4, &pipeline, err));
    mrl_push_dequantize push = {
        .quant = mrl_plane_address(w->quant),
        .scale = mrl_plane_address(w->scale),
        .zero = mrl_plane_address(w->zero),
        .ids = mrl_view_address(ids),
        .y = mrl_view_address(y),
        .rows = rows,
        .n = w->n,
        .k = w->k,
        .k_padded = w->k_padded,
        .group = w->group,
        .groups = w->groups,
        .global_scale = w->global_scale,
    };
    mrl_range reads[] = {mrl_range_of(w->quant), mrl_range_of(w->scale),
                         mrl_range_of(w->zero), mrl_view_range(ids)};
    mrl_range writes[] = {mrl_view_range(y)};
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {mrl_div_up(units, LANES), least(rows, GROUPS_MAX), 1},
        .reads = reads,
        .nreads = 4,
        .writes = writes,
        .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

mrl_status mrl_op_dequantize(mrl_device *dev, const mrl_weight *w, const mrl_view *y,
                             mrl_error *err)
{
    uint64_t shape[2] = {w->n, w->k};
    mrl_status rc = mrl_view_check(y, dev, "dequantize", "y", MRL_DTYPES_ACT, 2, shape, err);
    return rc != MRL_OK ? rc : mrl_decode_rows(dev, MRL_KERNEL_dequantize, w, NULL, y, err);
}

mrl_status mrl_op_copy(mrl_device *dev, const mrl_plane_copy *copy, mrl_error *err)
{
    mrl_status rc;
    uint32_t spec[] = {LANES, copy->src_dtype, copy->dst_dtype};
    uint64_t total = (uint64_t)copy->rows.count * copy->columns;
    mrl_pipeline *pipeline;

    if (total == 0 || !mrl_fits_i32(total) ||
        copy->src.bytes <
            (copy->broadcast ? copy->columns : total) * mrl_dtype_bytes(copy->src_dtype) ||
        copy->columns > copy->dst_columns)
        return mrl_fail(err, MRL_ERR_VALUE, "copy: %u rows of %u elements do not fit their memory",
                        copy->rows.count, copy->columns);
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_copy, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 3,
                             &pipeline, err));
    mrl_push_copy push = {
        .src = mrl_buffer_address(copy->src.buffer) + copy->src.offset,
        .dst = mrl_buffer_address(copy->dst.buffer) + copy->dst.offset,
        .rows = copy->rows.count,
        .columns = copy->columns,
        .src_stride = copy->broadcast ? 0 : copy->columns,
        .dst_stride = copy->dst_columns,
        .row_start = copy->rows.start,
        .row_stride = copy->rows.stride,
        .bias = copy->bias,
    };
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {least((total + LANES - 1) / LANES, GROUPS_MAX), 1, 1},
        .reads = &copy->src,
        .nreads = 1,
        .writes = &copy->dst,
        .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

mrl_status mrl_op_convert(mrl_device *dev, const mrl_view *src, const mrl_view *dst, mrl_error *err)
{
    const uint64_t most = 1u << 30; /* elements of a dispatch: the shader counts in 32 bits */
    mrl_status rc;
    uint64_t elements = mrl_view_elements(src);

    MRL_TRY(mrl_view_check(src, dev, "convert", "src", MRL_DTYPES_ACT, src->ndim, src->shape, err));
    MRL_TRY(mrl_view_check(dst, dev, "convert", "dst", MRL_DTYPES_ACT, dst->ndim, dst->shape, err));
    if (mrl_view_elements(dst) != elements)
        return mrl_fail(err, MRL_ERR_VALUE, "convert: dst has %llu elements, src %llu",
                        (unsigned long long)mrl_view_elements(dst), (unsigned long long)elements);
    for (uint64_t at = 0; at < elements; at += most) {
        uint32_t count = least(elements - at, (uint32_t)most);
        uint32_t from = mrl_dtype_bytes(src->dtype), to = mrl_dtype_bytes(dst->dtype);
        mrl_plane_copy copy = {
            .src = {src->buffer, src->offset + at * from, (uint64_t)count * from},
            .dst = {dst->buffer, dst->offset + at * to, (uint64_t)count * to},
            .src_dtype = src->dtype,
            .dst_dtype = dst->dtype,
            .columns = count,
            .dst_columns = count,
            .rows = {1, 0, 1},
        };
        MRL_TRY(mrl_op_copy(dev, &copy, err));
    }
    rc = MRL_OK;
done:
    return rc;
}
