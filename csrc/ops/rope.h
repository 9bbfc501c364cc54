/* The block between the qkv projection and attention: head norms, rotation, cache write
 * (shaders/rope/). */
#ifndef MRL_OPS_ROPE_H
#define MRL_OPS_ROPE_H

#include "ops/view.h"

#define MRL_HEAD_DIM_MAX 256u
#define MRL_LATENT_DIM_MAX 1024u /* of a row of a latent cache */

/* A layer of the KV cache as ops see it; borrowed from mrl_kv_cache (engine/kv_cache.h), which has
 * checked the sizes: slots * context rows and 16-byte units of a layer are below 2^31. */
typedef struct mrl_kv {
    mrl_buffer *k, *v;   /* (slots, context, kv_heads, dim) */
    mrl_buffer *scratch; /* mrl_attention_scratch_bytes, its counters zero between dispatches */
    mrl_dtype dtype;     /* f16 | f32 */
    uint32_t slots, context, kv_heads, dim;
    uint32_t rank;       /* 0, or the cache is latent (ops/mla.h): one head, the values are the first
                          * rank elements of the rows of k, v and scratch are NULL */
} mrl_kv;

/* Operands of rope and of attention. Data on the device cannot be checked: kernels treat a row
 * whose position or slot lies outside of the cache like an idle one (position < 0): nothing is
 * written, its result is zeros. */
typedef struct mrl_rope_args {
    mrl_view qkv;            /* (rows, (heads + 2 kv_heads) * dim) f32 | f16 | bf16; gated: (2 heads + 2 kv_heads) */
    mrl_view positions;      /* (rows) i32 */
    mrl_view slots;          /* (rows) i32 */
    mrl_view freq;           /* (rope_dim / 2) f32 angular frequencies, 0 <= position * freq < 2^24 */
    mrl_view q_norm, k_norm; /* (dim) f32, or absent: RMS norm of each head before the rotation */
    uint32_t heads;
    float eps;        /* of the norms */
    float rope_scale; /* multiplies cos and sin (YaRN); 1 */
    bool interleaved; /* pairs (2i, 2i + 1) instead of (i, i + rope_dim / 2) */
    bool gated;       /* each head of q is followed by a gate of dim, whose sigmoid multiplies the head's result in
                       * attention; rope skips the gates */
} mrl_rope_args;

/* Checks all of it against the cache; op begins the texts. */
mrl_status mrl_rope_check(const mrl_kv *kv, const mrl_rope_args *args, const char *op, mrl_error *err);

/* y (rows, heads * dim) f32 | f16 | bf16 = rotated q; k (rotated) and v go to the cache. No two
 * rows may name the same slot and position. */
mrl_status mrl_rope(const mrl_kv *kv, const mrl_rope_args *args, const mrl_view *y, mrl_error *err);

#endif
