/* The KV cache of a model: K and V of every layer, and the scratch of split attention. */
#ifndef MRL_ENGINE_KV_CACHE_H
#define MRL_ENGINE_KV_CACHE_H

#include "ops/attention.h"

typedef struct mrl_kv_cache mrl_kv_cache;

/* K and V (slots, context, kv_heads, dim) f16 | f32 for each layer, contents undefined: attention
 * reads no position that it has not written. dim: a multiple of 8 up to MRL_HEAD_DIM_MAX. VALUE/TYPE
 * errors for sizes, STATE while this thread captures (the memory must outlive the program). rank: 0, or the cache
 * is latent: rows of dim elements up to MRL_LATENT_DIM_MAX for all heads (kv_heads 1), whose first rank, a multiple
 * of 8, are also the values; there is no V. */
mrl_status mrl_kv_cache_create(mrl_device *dev, uint32_t layers, uint32_t slots, uint32_t context, uint32_t kv_heads,
                               uint32_t dim, uint32_t rank, mrl_dtype dtype, mrl_kv_cache **out, mrl_error *err);
void mrl_kv_cache_free(mrl_kv_cache *cache); /* NULL allowed */

uint32_t mrl_kv_cache_layers(const mrl_kv_cache *cache);
uint64_t mrl_kv_cache_bytes(const mrl_kv_cache *cache); /* of K and V in all layers */
/* What ops take, borrowed for the life of the cache; VALUE when there is no such layer. */
mrl_status mrl_kv_cache_layer(const mrl_kv_cache *cache, uint32_t layer, mrl_kv *out, mrl_error *err);

#endif
