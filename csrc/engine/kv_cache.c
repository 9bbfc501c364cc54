#include "engine/kv_cache.h"

#include <stdlib.h>

#include "vk/program.h"

struct mrl_kv_cache {
    uint32_t layers;
    uint64_t layer_bytes;  /* of K */
    mrl_kv shape;          /* k and v NULL */
    mrl_buffer *buffers[]; /* K and V of layer 0, of layer 1 .. (V NULL in a latent cache) */
};

/* Bytes of K of one layer. Kernels count rows and 16-byte units in signed 32 bits. */
static mrl_status layer_size(const mrl_kv *shape, uint64_t *bytes, mrl_error *err)
{
    uint64_t rows;

    if (!mrl_mul_u64(shape->slots, shape->context, &rows) || !mrl_fits_i32(rows) ||
        !mrl_mul_u64(rows, (uint64_t)shape->kv_heads * shape->dim * mrl_dtype_bytes(shape->dtype), bytes) ||
        !mrl_fits_i32(*bytes / 16))
        return mrl_fail(err, MRL_ERR_VALUE, "KVCache: a layer of (%u, %u, %u, %u) %s is too large: 32 GiB is the limit",
                        shape->slots, shape->context, shape->kv_heads, shape->dim, mrl_dtype_name(shape->dtype));
    return MRL_OK;
}

mrl_status mrl_kv_cache_create(mrl_device *dev, uint32_t layers, uint32_t slots, uint32_t context, uint32_t kv_heads,
                               uint32_t dim, uint32_t rank, mrl_dtype dtype, mrl_kv_cache **out, mrl_error *err)
{
    mrl_status rc;
    mrl_kv_cache *cache = NULL;
    mrl_kv shape = {
        .dtype = dtype, .slots = slots, .context = context, .kv_heads = kv_heads, .dim = dim, .rank = rank,
    };
    uint64_t layer_bytes = 0;
    uint32_t most = rank == 0 ? MRL_HEAD_DIM_MAX : MRL_LATENT_DIM_MAX;

    *out = NULL;
    if (layers < 1 || slots < 1 || context < 1 || kv_heads < 1 || layers > 65535 || kv_heads > 65535)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "KVCache: layers, slots, context and kv_heads must be positive, got %u, %u, %u, %u", layers,
                        slots, context, kv_heads);
    if (dim < 8 || dim > most || dim % 8 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "KVCache: dim must be a multiple of 8 up to %u, got %u", most, dim);
    if (rank != 0 && (kv_heads != 1 || rank % 8 != 0 || rank >= dim))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "KVCache: a latent cache has kv_heads 1 and a rank that is a multiple of 8 below dim %u, got "
                        "kv_heads %u, rank %u",
                        dim, kv_heads, rank);
    if (dtype != MRL_DTYPE_f16 && dtype != MRL_DTYPE_f32)
        return mrl_fail(err, MRL_ERR_TYPE, "KVCache: dtype must be f16 or f32, got %s", mrl_dtype_name(dtype));
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "KVCache: not while capturing a program");
    MRL_TRY(layer_size(&shape, &layer_bytes, err));
    cache = calloc(1, sizeof *cache + 2 * (size_t)layers * sizeof cache->buffers[0]);
    if (cache == NULL) return mrl_fail(err, MRL_ERR_MEMORY, "KVCache: no host memory");
    cache->layers = layers;
    cache->layer_bytes = layer_bytes;
    cache->shape = shape;
    if (rank == 0) {
        MRL_TRY(mrl_buffer_create(dev, mrl_attention_scratch_bytes(dev, dim), MRL_MEMORY_DEVICE, &cache->shape.scratch,
                                  err));
        MRL_TRY(mrl_buffer_fill(cache->shape.scratch, 0, mrl_attention_counter_bytes(), 0, err));
    }
    for (uint32_t i = 0; i < 2 * layers; i += rank == 0 ? 1 : 2)
        MRL_TRY(mrl_buffer_create(dev, layer_bytes, MRL_MEMORY_DEVICE, &cache->buffers[i], err));
    *out = cache;
    cache = NULL;
done:
    mrl_kv_cache_free(cache);
    return rc;
}

void mrl_kv_cache_free(mrl_kv_cache *cache)
{
    if (cache == NULL) return;
    for (uint32_t i = 0; i < 2 * cache->layers; i++) mrl_buffer_release(cache->buffers[i]);
    mrl_buffer_release(cache->shape.scratch);
    free(cache);
}

uint32_t mrl_kv_cache_layers(const mrl_kv_cache *cache)
{
    return cache->layers;
}
uint64_t mrl_kv_cache_bytes(const mrl_kv_cache *cache)
{
    return (cache->shape.rank == 0 ? 2 : 1) * cache->layers * cache->layer_bytes;
}

mrl_status mrl_kv_cache_layer(const mrl_kv_cache *cache, uint32_t layer, mrl_kv *out, mrl_error *err)
{
    if (layer >= cache->layers)
        return mrl_fail(err, MRL_ERR_VALUE, "KVCache: layer must be 0 to %u, got %u", cache->layers - 1, layer);
    *out = cache->shape;
    out->k = cache->buffers[2 * layer];
    out->v = cache->buffers[2 * layer + 1];
    return MRL_OK;
}
