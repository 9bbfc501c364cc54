/* Linear: a weight matrix (n, k) in a weight format, its planes in device memory, an optional bias.
 *
 * Planes (csrc/formats.def draws the layout):
 *   quant  (n, row bytes) u8; a row is k rounded up to 128 weights, whose tail holds the code of
 * weight 0 scale  (n, groups) f32 | f16 | e8m0 | e4m3, absent in f32, f16 and bf16 zero   (n,
 * groups) u8, where asked for A new Linear is all zeros. Loading streams a file or host memory
 * through a device buffer of at most 32 MiB and is done when the call returns; when one fails
 * half-way, rows that it reached hold anything. Calls that load or read wait for the device, so all
 * raise STATE while this thread captures. */
#ifndef MRL_ENGINE_LINEAR_H
#define MRL_ENGINE_LINEAR_H

#include "engine/source.h"
#include "ops/quantize.h"

#define MRL_LINEAR_N_MAX (1u << 24)
#define MRL_LINEAR_K_MAX (1u << 20)

typedef struct mrl_linear mrl_linear;

typedef struct mrl_linear_config {
    uint32_t n, k;
    const char *format; /* a row of formats.def */
    int group; /* weights a scale: 16 .. 256, 0 for the row, -1 for the default of the format */
    const char *scale;  /* "f32", "f16", "e8m0", "e4m3" as the format allows; NULL: f16 */
    bool zero;          /* with a plane of zero points */
    float global_scale; /* beside e4m3 scales, 2^-100 .. 2^100; else 1 */
    mrl_memory_kind memory; /* HOST: kernels read the planes over the bus */
} mrl_linear_config;

/* VALUE error for what the format does not have and for sizes beyond the limits: n and k as above,
 * and the quant plane has fewer than 2^31 units of 16 bytes, the scale plane fewer than 2^31
 * scales. */
mrl_status mrl_linear_create(mrl_device *dev, const mrl_linear_config *config, mrl_linear **out,
                             mrl_error *err);
void mrl_linear_free(mrl_linear *linear); /* NULL allowed */

const mrl_weight *mrl_linear_weight(const mrl_linear *linear); /* lives as long as the linear */
const char *mrl_linear_format(const mrl_linear *linear);
uint64_t mrl_linear_bytes(const mrl_linear *linear); /* of all planes; the bias is the caller's */

/* A plane by name; VALUE error when this linear has none. type: "u8", "f32", "f16", "e8m0", "e4m3".
 */
typedef struct mrl_plane {
    mrl_buffer *buffer;
    uint32_t rows, columns;
    const char *type;
    uint64_t bytes;
} mrl_plane;
mrl_status mrl_linear_plane(const mrl_linear *linear, const char *name, mrl_plane *out,
                            mrl_error *err);

/* Dense rows (rows, k) f32 | f16 | bf16, rounded to the format on the device. IO error when the
 * file cannot be read, FORMAT when it is shorter than offset + bytes, VALUE when bytes is not that
 * of the rows, when the rows are not within 0..n, for inf and nan, and for values that the format
 * cannot hold. */
mrl_status mrl_linear_load_rows(mrl_linear *linear, const mrl_source *source, const mrl_rows *rows,
                                mrl_error *err);

/* Rows of one plane, already quantized. Errors as above; nan scales and zero points beyond the
 * format are VALUE errors too. quant  u8, i32 or u32: rows of ceil(k * bits / 8) bytes, or those
 * rounded up to 4; i8 with int8: 128 is added scale  f32, f16, bf16 to a plane of f32 or f16; u8 or
 * the type itself to one of e8m0 or e4m3 zero   u8; i8 with symmetric origin: 8 (int4) or 128
 * (int8) is added A scale or zero source that is one row long serves all the rows. */
mrl_status mrl_linear_load_plane(mrl_linear *linear, const char *plane, const mrl_source *source,
                                 const mrl_rows *rows, mrl_error *err);

/* Copies the first count rows, 1..n, over those behind, again and again: for weights that only have to be there. */
mrl_status mrl_linear_repeat_rows(mrl_linear *linear, uint32_t count, mrl_error *err);

/* The whole plane; data has room for its bytes. */
mrl_status mrl_linear_read_plane(mrl_linear *linear, const char *plane, void *data, mrl_error *err);

/* bias (n) f32, or absent to take it away. Its memory is shared, not copied. Thread-safe. */
mrl_status mrl_linear_set_bias(mrl_linear *linear, const mrl_view *bias, mrl_error *err);
/* The bias, or an absent view. The caller releases bias.buffer. */
mrl_view mrl_linear_bias(mrl_linear *linear);

#endif
