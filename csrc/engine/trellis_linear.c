#include "engine/trellis_linear.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "push.h"

#include "base/lock.h"
#include "engine/linear.h"
#include "vk/program.h"

struct mrl_trellis_linear {
    mrl_device *dev;
    mrl_trellis weight;
    mrl_lock lock; /* of bias */
    mrl_view bias; /* the buffer is retained */
};

static mrl_status refuse_capture(mrl_device *dev, mrl_error *err)
{
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "trellis: cannot be made, loaded or read while capturing");
    return MRL_OK;
}

static mrl_status describe(const mrl_trellis_config *config, mrl_trellis *t, mrl_error *err)
{
    const double twice = 2 * config->bits;

    for (t->codebook = 0; t->codebook < MRL_CODEBOOK_COUNT; t->codebook++)
        if (strcmp(mrl_codebook_name(t->codebook), config->codebook) == 0) break;
    if (t->codebook == MRL_CODEBOOK_COUNT)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: codebook must be 3inst, mcg or mul1, got '%s'", config->codebook);
    if (!(twice >= 2 && twice <= 16) || twice != (double)(uint32_t)twice ||
        !mrl_trellis_has_rate((uint32_t)twice, t->codebook))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "trellis: bits must be 1 .. 8 or, with codebook mul1, 1.5, 2.5 or 3.5; got %g with %s",
                        config->bits, config->codebook);
    t->rate2 = (uint32_t)twice;
    if (config->n < 1 || config->n > MRL_LINEAR_N_MAX || config->k < 1 || config->k > MRL_LINEAR_K_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: n must be 1..%u and k 1..%u, got %u and %u", MRL_LINEAR_N_MAX,
                        MRL_LINEAR_K_MAX, config->n, config->k);
    if (config->experts < 1 || config->experts > MRL_MOE_EXPERTS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: experts must be 1..%u, got %u", MRL_MOE_EXPERTS_MAX,
                        config->experts);
    t->experts = config->experts;
    t->n = config->n;
    t->k = config->k;
    t->n_padded = (uint32_t)mrl_round_up(t->n, MRL_TRELLIS_BLOCK);
    t->k_padded = (uint32_t)mrl_round_up(t->k, MRL_TRELLIS_BLOCK);
    if (!mrl_fits_i32(mrl_trellis_bytes(t) / (t->experts > 1 ? 2 : 4))) /* shaders have an expert's bytes in 32 bits */
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: (%u, %u) in %g bits is too large for one matrix", t->k, t->n,
                        config->bits);
    return MRL_OK;
}

static mrl_status make_zeros(mrl_device *dev, uint64_t bytes, mrl_memory_kind memory, mrl_buffer **out, mrl_error *err)
{
    mrl_status rc = mrl_buffer_create(dev, bytes, memory, out, err);
    return rc == MRL_OK ? mrl_buffer_fill(*out, 0, bytes, 0, err) : rc;
}

mrl_status mrl_trellis_linear_create(mrl_device *dev, const mrl_trellis_config *config, mrl_trellis_linear **out,
                                     mrl_error *err)
{
    mrl_status rc;
    mrl_trellis_linear *linear = NULL;
    mrl_trellis weight = {0};

    *out = NULL;
    MRL_TRY(describe(config, &weight, err));
    MRL_TRY(refuse_capture(dev, err));
    linear = calloc(1, sizeof *linear);
    if (linear == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "trellis: out of host memory");
    mrl_lock_init(&linear->lock);
    linear->dev = mrl_device_retain(dev);
    linear->weight = weight;

    mrl_trellis *t = &linear->weight;
    MRL_TRY(make_zeros(dev, t->experts * mrl_trellis_bytes(t), config->memory, &t->units, err));
    MRL_TRY(make_zeros(dev, 2ull * t->experts * t->k_padded, config->memory, &t->suh, err));
    MRL_TRY(make_zeros(dev, 2ull * t->experts * t->n_padded, config->memory, &t->svh, err));
    MRL_TRY(make_zeros(dev, t->n_padded / MRL_TRELLIS_BLOCK * 4ull, MRL_MEMORY_DEVICE, &t->counters, err));
    *out = linear;
    linear = NULL;
done:
    mrl_trellis_linear_free(linear);
    return rc;
}

void mrl_trellis_linear_free(mrl_trellis_linear *linear)
{
    if (linear == NULL) return;
    mrl_buffer_release(linear->weight.units);
    mrl_buffer_release(linear->weight.suh);
    mrl_buffer_release(linear->weight.svh);
    mrl_buffer_release(linear->weight.counters);
    mrl_buffer_release(linear->bias.buffer);
    mrl_device_release(linear->dev);
    mrl_lock_destroy(&linear->lock);
    free(linear);
}

const mrl_trellis *mrl_trellis_linear_weight(const mrl_trellis_linear *linear)
{
    return &linear->weight;
}

uint64_t mrl_trellis_linear_bytes(const mrl_trellis_linear *linear)
{
    const mrl_trellis *t = &linear->weight;
    return t->experts * (mrl_trellis_bytes(t) + 2ull * t->k_padded + 2ull * t->n_padded);
}

/* ---- loading ---- */

/* A device buffer for chunks of whole blocks of 128 rows; *rows: tile rows of one. */
static mrl_status make_chunk(const mrl_trellis_linear *linear, uint32_t *rows, mrl_buffer **out, mrl_error *err)
{
    const mrl_trellis *t = &linear->weight;
    const uint64_t block_bytes = mrl_trellis_bytes(t) / (t->k_padded / MRL_TRELLIS_BLOCK);
    uint64_t blocks = MRL_CHUNK_BYTES / block_bytes;

    if (blocks < 1) blocks = 1;
    if (blocks > t->k_padded / MRL_TRELLIS_BLOCK) blocks = t->k_padded / MRL_TRELLIS_BLOCK;
    *rows = (uint32_t)blocks * 8;
    return mrl_buffer_create(linear->dev, blocks * block_bytes, MRL_MEMORY_DEVICE, out, err);
}

mrl_status mrl_trellis_linear_load(mrl_trellis_linear *linear, uint32_t expert, const mrl_source *source,
                                   mrl_error *err)
{
    mrl_status rc;
    const mrl_trellis *t = &linear->weight;
    const uint64_t bytes = mrl_trellis_bytes(t), row_bytes = bytes / (t->k_padded / 16);
    mrl_buffer *chunk = NULL;
    mrl_reader r = {0};
    uint32_t step;

    r.fd = -1;
    MRL_TRY(refuse_capture(linear->dev, err));
    if (source->bytes != bytes)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: (%u, %u) in %g bits is %" PRIu64 " bytes, got %" PRIu64,
                        t->k_padded, t->n_padded, t->rate2 / 2.0, bytes, source->bytes);
    MRL_TRY(mrl_reader_open(&r, source, err));
    MRL_TRY(make_chunk(linear, &step, &chunk, err));
    for (uint32_t row = 0; row < t->k_padded / 16; row += step) {
        const uint32_t left = t->k_padded / 16 - row, rows = left < step ? left : step;
        MRL_TRY(mrl_reader_to_device(&r, row * row_bytes, rows * row_bytes, chunk, err));
        MRL_TRY(mrl_op_trellis_pack(linear->dev, t, expert, chunk, row, rows, false, err));
    }
done:
    mrl_reader_close(&r);
    mrl_buffer_release(chunk);
    return rc;
}

mrl_status mrl_trellis_linear_read(mrl_trellis_linear *linear, uint32_t expert, void *data, mrl_error *err)
{
    mrl_status rc;
    const mrl_trellis *t = &linear->weight;
    const uint64_t row_bytes = mrl_trellis_bytes(t) / (t->k_padded / 16);
    mrl_buffer *chunk = NULL;
    uint32_t step;

    MRL_TRY(refuse_capture(linear->dev, err));
    MRL_TRY(make_chunk(linear, &step, &chunk, err));
    for (uint32_t row = 0; row < t->k_padded / 16; row += step) {
        const uint32_t left = t->k_padded / 16 - row, rows = left < step ? left : step;
        MRL_TRY(mrl_op_trellis_pack(linear->dev, t, expert, chunk, row, rows, true, err));
        MRL_TRY(mrl_buffer_read(chunk, 0, (uint8_t *)data + row * row_bytes, rows * row_bytes, err));
    }
done:
    mrl_buffer_release(chunk);
    return rc;
}

/* A transformed x is at most sqrt(128) max|x| max|suh|: the power of two that keeps this below 2^16 for f16 x. */
static int exponent_for(uint16_t largest)
{
    const int exponent = (largest >> 10) - 15 + 1; /* |suh| < 2^exponent; 2^4 > sqrt(128) */
    return exponent + 4 > 0 ? -(exponent + 4) : 0;
}

mrl_status mrl_trellis_linear_set_scales(mrl_trellis_linear *linear, uint32_t expert, bool output, const uint16_t *data,
                                         uint64_t bytes, mrl_error *err)
{
    mrl_status rc;
    mrl_trellis *t = &linear->weight;
    const char *name = output ? "svh" : "suh";
    const uint32_t size = output ? t->n_padded : t->k_padded;
    uint16_t largest = 0;

    MRL_TRY(refuse_capture(linear->dev, err));
    if (bytes != 2ull * size)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %s must be (%u) f16, got %" PRIu64 " bytes", name, size, bytes);
    for (uint32_t i = 0; i < size; i++) {
        const uint16_t magnitude = data[i] & 0x7fff;
        if (magnitude >= 0x7c00)
            return mrl_fail(err, MRL_ERR_VALUE, "trellis: %s of channel %u is inf or nan", name, i);
        largest = magnitude > largest ? magnitude : largest;
    }
    MRL_TRY(mrl_buffer_write(output ? t->svh : t->suh, expert * bytes, data, bytes, err));
    if (!output) { /* of several experts the one with the largest scales decides */
        const int exponent = exponent_for(largest);
        t->x_exponent = t->experts == 1 || exponent < t->x_exponent ? exponent : t->x_exponent;
    }
done:
    return rc;
}

/* ---- bias ---- */

mrl_status mrl_trellis_linear_set_bias(mrl_trellis_linear *linear, const mrl_view *bias, mrl_error *err)
{
    const uint64_t n = linear->weight.n;
    mrl_view next = {0}, old;

    if (bias != NULL && bias->buffer != NULL) {
        mrl_status rc = mrl_view_check(bias, linear->dev, "trellis", "bias", MRL_DTYPE_BIT(f32), 1, &n, err);
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

mrl_view mrl_trellis_linear_bias(mrl_trellis_linear *linear)
{
    mrl_lock_acquire(&linear->lock);
    mrl_view bias = linear->bias;
    if (bias.buffer != NULL) mrl_buffer_retain(bias.buffer);
    mrl_lock_release(&linear->lock);
    return bias;
}
