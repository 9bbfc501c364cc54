/* Weight planes: encode, decode, copy. One shader each (shaders/quantize/). Callers pass a weight
 * that engine/linear.h made: its planes are complete and within the limits that it documents. */
#ifndef MRL_OPS_QUANTIZE_H
#define MRL_OPS_QUANTIZE_H

#include "ops/weight.h"

/* Bits of a weight in the quant plane; bytes of one of its rows. */
uint32_t mrl_format_bits(mrl_format format);
static inline uint64_t mrl_weight_row_bytes(const mrl_weight *w)
{
    return (uint64_t)w->k_padded * mrl_format_bits(w->format) / 8;
}

/* Of one of its scales. */
static inline uint32_t mrl_scale_bytes(mrl_scale type)
{
    return type == MRL_SCALE_F32 ? 4 : type == MRL_SCALE_F16 ? 2 : type == MRL_SCALE_NONE ? 0 : 1;
}

static inline uint64_t mrl_plane_address(mrl_buffer *buffer)
{
    return buffer == NULL ? 0 : mrl_buffer_address(buffer);
}

/* Which rows of a weight: count rows, the i-th is start + i * stride. */
typedef struct mrl_rows {
    uint32_t count, start, stride;
} mrl_rows;

/* VALUE error unless the rows lie within n; stride >= 1, count >= 1. */
mrl_status mrl_rows_check(const mrl_rows *rows, uint32_t n, const char *op, mrl_error *err);

/* Those rows of w = x (rows, k) f32 | f16 | bf16, rounded to nearest (marlin/formats.py `pack`,
 * same bytes). status: MRL_QUANTIZE_STATUS u32 words on the device, added to: values that are inf
 * or nan, values or scales too large for the format, then the lowest row with either (start it at
 * UINT32_MAX). */
#define MRL_QUANTIZE_STATUS 3
mrl_status mrl_op_quantize(mrl_device *dev, const mrl_weight *w, const mrl_rows *rows,
                           const mrl_view *x, mrl_buffer *status, mrl_error *err);

/* y (n, k) f32 | f16 | bf16 = the weights as numbers, value * (scale * global scale). */
mrl_status mrl_op_dequantize(mrl_device *dev, const mrl_weight *w, const mrl_view *y,
                             mrl_error *err);

/* What dequantize and embedding share: rows of w, those of ids or all of them, decoded by kernel to
 * y. */
mrl_status mrl_decode_rows(mrl_device *dev, mrl_kernel kernel, const mrl_weight *w,
                           const mrl_view *ids, const mrl_view *y, mrl_error *err);

/* Rows of a plane from rows already in file form. */
typedef struct mrl_plane_copy {
    mrl_range src;       /* rows back to back */
    mrl_range dst;       /* the plane */
    mrl_dtype src_dtype; /* f32, f16 and bf16 convert among each other; u8, u16, u32: as they are */
    mrl_dtype dst_dtype;
    uint32_t columns;     /* elements copied of a row */
    uint32_t dst_columns; /* elements from row to row of the plane */
    mrl_rows rows;
    bool broadcast; /* src is one row, for all */
    uint32_t bias;  /* added to every byte modulo 256; u8, or 0 or 128 with u32 */
} mrl_plane_copy;
mrl_status mrl_op_copy(mrl_device *dev, const mrl_plane_copy *copy, mrl_error *err);

/* dst = src in another of f32, f16, bf16 (round to nearest even); as many elements, any shapes. */
mrl_status mrl_op_convert(mrl_device *dev, const mrl_view *src, const mrl_view *dst,
                          mrl_error *err);

#endif
