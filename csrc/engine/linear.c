#include "engine/linear.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/lock.h"
#include "vk/program.h"

struct mrl_linear {
    mrl_device *dev;
    mrl_weight weight;
    mrl_lock lock; /* of bias */
    mrl_view bias; /* the buffer is retained */
};

/* ---- what formats have ---- */

enum {
    NONE = 0,
    F32 = 1 << MRL_SCALE_F32,
    F16 = 1 << MRL_SCALE_F16,
    E8M0 = 1 << MRL_SCALE_E8M0,
    E4M3 = 1 << MRL_SCALE_E4M3
};

static const struct format_row {
    const char *name;
    uint32_t scales; /* bits 1 << mrl_scale */
    bool zero;
    uint32_t default_group;
} formats[] = {
#define FORMAT(name, bits, math, scale, zero, default_group, text)                                 \
    {#name, scale, zero, default_group},
#include "formats.def"
#undef FORMAT
};

static const struct scale_row {
    const char *name;
    mrl_dtype dtype;
} scales[] = {
    [MRL_SCALE_NONE] = {"none", MRL_DTYPE_u8}, [MRL_SCALE_F32] = {"f32", MRL_DTYPE_f32},
    [MRL_SCALE_F16] = {"f16", MRL_DTYPE_f16},  [MRL_SCALE_E8M0] = {"e8m0", MRL_DTYPE_u8},
    [MRL_SCALE_E4M3] = {"e4m3", MRL_DTYPE_u8},
};
#define SCALES (sizeof scales / sizeof scales[0])

static mrl_status find_format(const char *name, mrl_format *out, mrl_error *err)
{
    char known[256] = "";
    for (int i = 0; i < MRL_FORMAT_COUNT; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            *out = (mrl_format)i;
            return MRL_OK;
        }
        if (strlen(known) + strlen(formats[i].name) + 3 < sizeof known)
            strcat(strcat(known, i ? ", " : ""), formats[i].name);
    }
    return mrl_fail(err, MRL_ERR_VALUE, "linear: unknown format '%s'; known are %s", name, known);
}

static mrl_status find_scale(const struct format_row *format, const char *name, mrl_scale *out,
                             mrl_error *err)
{
    char known[64] = "";
    *out = MRL_SCALE_NONE;
    if (format->scales == NONE && name == NULL) return MRL_OK;
    for (int i = 1; i < (int)SCALES; i++) {
        if (!(format->scales >> i & 1)) continue;
        if (strcmp(scales[i].name, name == NULL ? "f16" : name) == 0) {
            *out = (mrl_scale)i;
            return MRL_OK;
        }
        strcat(strcat(known, known[0] ? ", " : ""), scales[i].name);
    }
    if (known[0] == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: %s has no scales, got scale '%s'",
                        format->name, name);
    return mrl_fail(err, MRL_ERR_VALUE, "linear: %s takes scales of %s, got '%s'", format->name,
                    known, name);
}

/* The code of weight 0, in every weight of a word. */
static uint32_t blank_word(const mrl_weight *w)
{
    uint32_t bits = mrl_format_bits(w->format);
    return !formats[w->format].zero ? 0 : bits == 4 ? 0x88888888u : 0x80808080u;
}

static uint32_t default_zero(const mrl_weight *w)
{
    return 1u << (mrl_format_bits(w->format) - 1);
}

static mrl_status describe(const mrl_linear_config *config, mrl_weight *w, mrl_error *err)
{
    mrl_status rc;
    MRL_TRY(find_format(config->format, &w->format, err));
    const struct format_row *format = &formats[w->format];
    MRL_TRY(find_scale(format, config->scale, &w->scale_type, err));

    if (config->n < 1 || config->n > MRL_LINEAR_N_MAX || config->k < 1 ||
        config->k > MRL_LINEAR_K_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: n must be 1..%u and k 1..%u, got %u and %u",
                        MRL_LINEAR_N_MAX, MRL_LINEAR_K_MAX, config->n, config->k);
    int group = config->group;
    if (group == -1) group = w->scale_type == MRL_SCALE_E4M3 ? 16 : (int)format->default_group;
    if (group != 0 && (group < 16 || group > 256 || (group & (group - 1)) != 0))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: group must be 0, 16, 32, 64, 128 or 256, got %d", group);
    if (w->scale_type == MRL_SCALE_NONE && group != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: %s has no groups, got group %d", format->name,
                        group);
    if (config->zero && !format->zero)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: %s has no zero points", format->name);
    if (w->scale_type == MRL_SCALE_E4M3) {
        if (!(config->global_scale > 0x1p-100f && config->global_scale < 0x1p100f))
            return mrl_fail(err, MRL_ERR_VALUE,
                            "linear: global_scale must be in 2^-100..2^100, got %g",
                            (double)config->global_scale);
    } else if (config->global_scale != 1.0f) {
        return mrl_fail(err, MRL_ERR_VALUE, "linear: global_scale belongs to e4m3 scales, got %g",
                        (double)config->global_scale);
    }

    w->n = config->n;
    w->k = config->k;
    w->k_padded = (uint32_t)mrl_round_up(w->k, 128);
    w->group = (uint32_t)group;
    w->groups = w->scale_type == MRL_SCALE_NONE ? 0
                : group == 0                    ? 1
                                                : mrl_div_up(w->k, (uint32_t)group);
    w->has_zero = config->zero;
    w->global_scale = config->global_scale;
    if (!mrl_fits_i32(mrl_weight_row_bytes(w) / 16 * w->n) ||
        !mrl_fits_i32((uint64_t)w->n * w->groups))
        return mrl_fail(err, MRL_ERR_VALUE, "linear: (%u, %u) in %s is too large for one matrix",
                        w->n, w->k, format->name);
done:
    return rc;
}

/* ---- life ---- */

static mrl_status make_plane(mrl_device *dev, uint64_t bytes, uint32_t word, mrl_memory_kind memory,
                             mrl_buffer **out, mrl_error *err)
{
    mrl_status rc = mrl_buffer_create(dev, bytes, memory, out, err);
    return rc == MRL_OK ? mrl_buffer_fill(*out, 0, bytes, word, err) : rc;
}

static mrl_status refuse_capture(mrl_device *dev, mrl_error *err)
{
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE,
                        "linear: cannot be made, loaded or read while capturing");
    return MRL_OK;
}

mrl_status mrl_linear_create(mrl_device *dev, const mrl_linear_config *config, mrl_linear **out,
                             mrl_error *err)
{
    mrl_status rc;
    mrl_linear *linear = NULL;
    mrl_weight weight = {0};

    *out = NULL;
    MRL_TRY(describe(config, &weight, err));
    MRL_TRY(refuse_capture(dev, err)); /* the planes would lie in the program's arena */
    linear = calloc(1, sizeof *linear);
    if (linear == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "linear: out of host memory");
    mrl_lock_init(&linear->lock);
    linear->dev = mrl_device_retain(dev);
    linear->weight = weight;

    mrl_weight *w = &linear->weight;
    uint64_t scale_bytes =
        (uint64_t)w->n * w->groups * mrl_dtype_bytes(scales[w->scale_type].dtype);
    MRL_TRY(make_plane(dev, mrl_weight_row_bytes(w) * w->n, blank_word(w), config->memory, &w->quant,
                       err));
    if (w->groups > 0) MRL_TRY(make_plane(dev, scale_bytes, 0, config->memory, &w->scale, err));
    if (w->has_zero)
        MRL_TRY(make_plane(dev, (uint64_t)w->n * w->groups, default_zero(w) * 0x01010101u,
                           config->memory, &w->zero, err));
    *out = linear;
    linear = NULL;
done:
    mrl_linear_free(linear);
    return rc;
}

void mrl_linear_free(mrl_linear *linear)
{
    if (linear == NULL) return;
    mrl_buffer_release(linear->weight.quant);
    mrl_buffer_release(linear->weight.scale);
    mrl_buffer_release(linear->weight.zero);
    mrl_buffer_release(linear->bias.buffer);
    mrl_device_release(linear->dev);
    mrl_lock_destroy(&linear->lock);
    free(linear);
}

const mrl_weight *mrl_linear_weight(const mrl_linear *linear)
{
    return &linear->weight;
}
const char *mrl_linear_format(const mrl_linear *linear)
{
    return formats[linear->weight.format].name;
}

uint64_t mrl_linear_bytes(const mrl_linear *linear)
{
    static const char *const names[] = {"quant", "scale", "zero"};
    uint64_t bytes = 0;
    mrl_plane plane;
    for (int i = 0; i < 3; i++)
        if (mrl_linear_plane(linear, names[i], &plane, NULL) == MRL_OK) bytes += plane.bytes;
    return bytes;
}

mrl_status mrl_linear_plane(const mrl_linear *linear, const char *name, mrl_plane *out,
                            mrl_error *err)
{
    const mrl_weight *w = &linear->weight;
    const struct scale_row *scale = &scales[w->scale_type];
    mrl_plane quant = {w->quant, w->n, (uint32_t)mrl_weight_row_bytes(w), "u8", 0};
    mrl_plane planes[] = {
        quant, {w->scale, w->n, w->groups, scale->name, 0}, {w->zero, w->n, w->groups, "u8", 0}};
    static const char *const names[] = {"quant", "scale", "zero"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(names[i], name) != 0 || planes[i].buffer == NULL) continue;
        *out = planes[i];
        out->bytes =
            (uint64_t)out->rows * out->columns * (i == 1 ? mrl_dtype_bytes(scale->dtype) : 1);
        return MRL_OK;
    }
    return mrl_fail(err, MRL_ERR_VALUE, "linear: no plane '%s'; it has quant%s%s", name,
                    w->scale ? ", scale" : "", w->zero ? ", zero" : "");
}

/* ---- chunks ---- */

static uint32_t chunk_rows(uint64_t row_bytes, uint32_t rows)
{
    uint64_t most = MRL_CHUNK_BYTES / row_bytes;
    return most == 0 ? 1 : most < rows ? (uint32_t)most : rows;
}

/* The i-th chunk of rows: `first` source rows lie before it. */
static mrl_rows chunk_of(const mrl_rows *rows, uint32_t first, uint32_t count)
{
    uint32_t left = rows->count - first;
    return (mrl_rows){count < left ? count : left, rows->start + first * rows->stride,
                      rows->stride};
}

/* ---- dense rows ---- */

mrl_status mrl_linear_load_rows(mrl_linear *linear, const mrl_source *source, const mrl_rows *rows,
                                mrl_error *err)
{
    mrl_status rc;
    const mrl_weight *w = &linear->weight;
    mrl_dtype dtype = mrl_dtype_parse(source->dtype);
    uint32_t status_words[MRL_QUANTIZE_STATUS] = {0, 0, UINT32_MAX};
    mrl_buffer *status = NULL, *buffer = NULL;
    mrl_reader r = {0};

    r.fd = -1;
    if (dtype == MRL_DTYPE_COUNT || !mrl_dtype_is_float(dtype))
        return mrl_fail(err, MRL_ERR_TYPE, "linear: rows must be f32, f16 or bf16, got '%s'",
                        source->dtype);
    MRL_TRY(refuse_capture(linear->dev, err));
    MRL_TRY(mrl_rows_check(rows, w->n, "linear", err));
    uint64_t row_bytes = (uint64_t)w->k * mrl_dtype_bytes(dtype);
    if (source->bytes != rows->count * row_bytes)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: %u rows of %u %s are %" PRIu64 " bytes, got %" PRIu64, rows->count,
                        w->k, source->dtype, rows->count * row_bytes, source->bytes);
    MRL_TRY(mrl_reader_open(&r, source, err));

    uint32_t step = chunk_rows(row_bytes, rows->count);
    MRL_TRY(mrl_buffer_create(linear->dev, sizeof status_words, MRL_MEMORY_DEVICE, &status, err));
    MRL_TRY(mrl_buffer_write(status, 0, status_words, sizeof status_words, err));
    MRL_TRY(mrl_buffer_create(linear->dev, step * row_bytes, MRL_MEMORY_DEVICE, &buffer, err));
    for (uint32_t first = 0; first < rows->count; first += step) {
        mrl_rows chunk = chunk_of(rows, first, step);
        mrl_view x = {buffer, 0, dtype, 2, {chunk.count, w->k}};
        MRL_TRY(mrl_reader_to_device(&r, first * row_bytes, chunk.count * row_bytes, buffer, err));
        MRL_TRY(mrl_op_quantize(linear->dev, w, &chunk, &x, status, err));
    }
    MRL_TRY(mrl_buffer_read(status, 0, status_words, sizeof status_words, err));
    if (status_words[0] != 0)
        rc = mrl_fail(err, MRL_ERR_VALUE, "linear: row %u holds inf or nan", status_words[2]);
    else if (status_words[1] != 0)
        rc = mrl_fail(err, MRL_ERR_VALUE, "linear: row %u holds values too large for %s%s%s",
                      status_words[2], mrl_linear_format(linear),
                      w->groups ? " with scales of " : "",
                      w->groups ? scales[w->scale_type].name : "");
done:
    mrl_reader_close(&r);
    mrl_buffer_release(buffer);
    mrl_buffer_release(status);
    return rc;
}

/* ---- planes ---- */

/* How rows of a source become rows of a plane, and what the host looks at on the way. */
typedef struct recipe {
    mrl_plane plane;
    mrl_dtype from, to;   /* element types of the copy */
    uint32_t columns;     /* elements of a source row */
    uint32_t dst_columns; /* elements of a plane row */
    uint32_t bias;        /* added to bytes */
    bool check;           /* elements whose bits & mask are not in low..high are refused */
    uint32_t mask, low, high;
} recipe;

static mrl_status bad_dtype(const char *plane, const char *wanted, const char *got, mrl_error *err)
{
    return mrl_fail(err, MRL_ERR_TYPE, "linear: %s takes %s, got '%s'", plane, wanted, got);
}

static mrl_status quant_recipe(const mrl_weight *w, const mrl_source *source, uint32_t rows,
                               recipe *out, mrl_error *err)
{
    uint64_t exact = ((uint64_t)w->k * mrl_format_bits(w->format) + 7) / 8,
             padded = mrl_round_up(exact, 4);
    bool flip = strcmp(source->dtype, "i8") == 0;
    if (flip ? w->format != MRL_FORMAT_int8
             : strcmp(source->dtype, "u8") && strcmp(source->dtype, "i32") &&
                   strcmp(source->dtype, "u32"))
        return bad_dtype("quant",
                         w->format == MRL_FORMAT_int8 ? "u8, i8, i32 or u32" : "u8, i32 or u32",
                         source->dtype, err);
    if (source->bytes != exact * rows && source->bytes != padded * rows)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: %u rows of quant are %" PRIu64 " bytes, got %" PRIu64, rows,
                        exact * rows, source->bytes);
    uint64_t bytes = source->bytes / rows;
    bool words = bytes % 4 == 0;
    out->from = out->to = words ? MRL_DTYPE_u32 : MRL_DTYPE_u8;
    out->columns = (uint32_t)(words ? bytes / 4 : bytes);
    out->dst_columns = words ? out->plane.columns / 4 : out->plane.columns;
    out->bias = flip ? 128 : 0;
    return MRL_OK;
}

static mrl_status scale_recipe(const mrl_weight *w, const mrl_source *source, recipe *out,
                               mrl_error *err)
{
    const struct scale_row *scale = &scales[w->scale_type];
    mrl_dtype dtype = mrl_dtype_parse(source->dtype);
    bool half = w->scale_type == MRL_SCALE_F16;

    out->to = scale->dtype;
    out->from = scale->dtype == MRL_DTYPE_u8 ? MRL_DTYPE_u8 : dtype;
    out->check = true;
    if (scale->dtype == MRL_DTYPE_u8) {
        if (strcmp(source->dtype, scale->name) != 0 && dtype != MRL_DTYPE_u8)
            return bad_dtype("scale", w->scale_type == MRL_SCALE_E8M0 ? "e8m0 or u8" : "e4m3 or u8",
                             source->dtype, err);
        out->mask = w->scale_type == MRL_SCALE_E8M0 ? 0xff : 0x7f; /* all ones is nan in both */
        out->high = out->mask - 1;
    } else if (dtype == MRL_DTYPE_f32) {
        out->mask = 0x7fffffff;
        out->high =
            half ? 0x477fefff : 0x7f7fffff; /* the last that rounds to 65504; the largest f32 */
    } else if (dtype == MRL_DTYPE_bf16) {
        out->mask = 0x7fff;
        out->high = half ? 0x477f : 0x7f7f;
    } else if (dtype == MRL_DTYPE_f16) {
        out->mask = 0x7fff;
        out->high = 0x7bff;
    } else {
        return bad_dtype("scale", "f32, f16 or bf16", source->dtype, err);
    }
    return MRL_OK;
}

static mrl_status zero_recipe(const mrl_weight *w, const mrl_source *source, recipe *out,
                              mrl_error *err)
{
    bool is_signed = strcmp(source->dtype, "i8") == 0;
    if (!is_signed && strcmp(source->dtype, "u8") != 0)
        return bad_dtype("zero", "u8 or i8", source->dtype, err);
    out->from = out->to = MRL_DTYPE_u8;
    out->bias = is_signed ? default_zero(w) : 0;
    out->check = true;
    out->mask = 0xff;
    out->high = 2 * default_zero(w) - 1;
    return MRL_OK;
}

static mrl_status plane_recipe(const mrl_linear *linear, const char *name, const mrl_source *source,
                               uint32_t rows, recipe *out, mrl_error *err)
{
    mrl_status rc;
    const mrl_weight *w = &linear->weight;

    *out = (recipe){0};
    MRL_TRY(mrl_linear_plane(linear, name, &out->plane, err));
    if (out->plane.buffer == w->quant) return quant_recipe(w, source, rows, out, err);
    out->columns = out->dst_columns = w->groups;
    MRL_TRY(out->plane.buffer == w->scale ? scale_recipe(w, source, out, err)
                                          : zero_recipe(w, source, out, err));
    uint64_t row_bytes = (uint64_t)w->groups * mrl_dtype_bytes(out->from);
    if (source->bytes != rows * row_bytes && source->bytes != row_bytes)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: %u rows of %s are %" PRIu64 " bytes, got %" PRIu64, rows, name,
                        rows * row_bytes, source->bytes);
done:
    return rc;
}

/* Looks at count elements; returns the index of the first that is out of range, or count. */
static uint64_t first_bad(const recipe *how, const uint8_t *data, uint64_t count)
{
    uint32_t size = mrl_dtype_bytes(how->from);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        memcpy(&bits, data + i * size,
               size); /* little-endian hosts only, as the file formats are */
        if (size == 1) bits = (bits + how->bias) & 0xff;
        if ((bits & how->mask) > how->high) return i;
    }
    return count;
}

/* Chunk rows first.. into buffer, looked at by the host where the recipe says so. */
static mrl_status fetch(const mrl_linear *linear, const char *name, const recipe *how, mrl_reader *r,
                        uint32_t first, uint32_t count, uint8_t *bounce, mrl_buffer *buffer,
                        mrl_error *err)
{
    mrl_status rc;
    uint64_t row_bytes = (uint64_t)how->columns * mrl_dtype_bytes(how->from),
             bytes = count * row_bytes;
    if (!how->check) return mrl_reader_to_device(r, first * row_bytes, bytes, buffer, err);
    MRL_TRY(mrl_reader_to_host(r, first * row_bytes, bytes, bounce, err));
    uint64_t elements = (uint64_t)count * how->columns, bad = first_bad(how, bounce, elements);
    if (bad < elements)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: %s of source row %" PRIu64 ", group %" PRIu64
                        " is not a number that %s with %s %s can have",
                        name, first + bad / how->columns, bad % how->columns,
                        mrl_linear_format(linear), how->plane.type, name);
    MRL_TRY(mrl_buffer_write(buffer, 0, bounce, bytes, err));
done:
    return rc;
}

mrl_status mrl_linear_load_plane(mrl_linear *linear, const char *name, const mrl_source *source,
                                 const mrl_rows *rows, mrl_error *err)
{
    mrl_status rc;
    recipe how;
    mrl_buffer *buffer = NULL;
    uint8_t *bounce = NULL;
    mrl_reader r = {0};

    r.fd = -1;
    MRL_TRY(refuse_capture(linear->dev, err));
    MRL_TRY(mrl_rows_check(rows, linear->weight.n, "linear", err));
    MRL_TRY(plane_recipe(linear, name, source, rows->count, &how, err));
    MRL_TRY(mrl_reader_open(&r, source, err));

    uint64_t row_bytes = (uint64_t)how.columns * mrl_dtype_bytes(how.from);
    bool broadcast = source->bytes == row_bytes && rows->count > 1;
    uint32_t step = broadcast ? rows->count : chunk_rows(row_bytes, rows->count);
    uint64_t bytes = broadcast ? row_bytes : step * row_bytes;
    MRL_TRY(mrl_buffer_create(linear->dev, bytes, MRL_MEMORY_DEVICE, &buffer, err));
    if (how.check && (bounce = malloc(bytes)) == NULL)
        MRL_TRY(mrl_fail(err, MRL_ERR_MEMORY, "linear: out of host memory"));
    for (uint32_t first = 0; first < rows->count; first += step) {
        mrl_rows chunk = chunk_of(rows, first, step);
        uint32_t count = broadcast ? 1 : chunk.count;
        mrl_plane_copy copy = {
            .src = {buffer, 0, count * row_bytes},
            .dst = {how.plane.buffer, 0, how.plane.bytes},
            .src_dtype = how.from,
            .dst_dtype = how.to,
            .columns = how.columns,
            .dst_columns = how.dst_columns,
            .rows = chunk,
            .broadcast = broadcast,
            .bias = how.bias,
        };
        MRL_TRY(fetch(linear, name, &how, &r, first, count, bounce, buffer, err));
        MRL_TRY(mrl_op_copy(linear->dev, &copy, err));
    }
done:
    mrl_reader_close(&r);
    free(bounce);
    mrl_buffer_release(buffer);
    return rc;
}

mrl_status mrl_linear_repeat_rows(mrl_linear *linear, uint32_t count, mrl_error *err)
{
    static const char *const names[] = {"quant", "scale", "zero"};
    const uint32_t n = linear->weight.n;
    mrl_plane plane;
    mrl_status rc;

    if (count < 1 || count > n)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: rows to repeat must be 1..%u, got %u", n, count);
    MRL_TRY(refuse_capture(linear->dev, err));
    for (int i = 0; i < 3; i++) {
        if (mrl_linear_plane(linear, names[i], &plane, NULL) != MRL_OK) continue;
        const uint64_t row = plane.bytes / n;
        for (uint64_t done = count; done < n; done *= 2) {
            const uint64_t next = done < n - done ? done : n - done;
            MRL_TRY(mrl_stream_copy(linear->dev, (mrl_range){plane.buffer, 0, next * row},
                                    (mrl_range){plane.buffer, done * row, next * row}, err));
        }
    }
done:
    return rc;
}

mrl_status mrl_linear_read_plane(mrl_linear *linear, const char *name, void *data, mrl_error *err)
{
    mrl_plane plane;
    mrl_status rc;
    MRL_TRY(refuse_capture(linear->dev, err));
    MRL_TRY(mrl_linear_plane(linear, name, &plane, err));
    MRL_TRY(mrl_buffer_read(plane.buffer, 0, data, plane.bytes, err));
done:
    return rc;
}

/* ---- bias ---- */

mrl_status mrl_linear_set_bias(mrl_linear *linear, const mrl_view *bias, mrl_error *err)
{
    uint64_t n = linear->weight.n;
    mrl_view next = {0}, old;

    if (bias != NULL && bias->buffer != NULL) {
        mrl_status rc =
            mrl_view_check(bias, linear->dev, "linear", "bias", MRL_DTYPE_BIT(f32), 1, &n, err);
        if (rc != MRL_OK) return rc;
        next = *bias;
        mrl_buffer_retain(next.buffer);
    }
    mrl_lock_acquire(&linear->lock);
    old = linear->bias;
    linear->bias = next;
    mrl_lock_release(&linear->lock);
    mrl_buffer_release(old.buffer);
    return MRL_OK;
}

mrl_view mrl_linear_bias(mrl_linear *linear)
{
    mrl_lock_acquire(&linear->lock);
    mrl_view bias = linear->bias;
    if (bias.buffer != NULL) mrl_buffer_retain(bias.buffer);
    mrl_lock_release(&linear->lock);
    return bias;
}
