/* Latent attention (shaders/mla/): one cache row a position for all heads. */
#ifndef MRL_OPS_MLA_H
#define MRL_OPS_MLA_H

#include "ops/rope.h"
#include "ops/shares.h"
#include "ops/weight.h"

/* Operands; rank and rope_dim = dim - rank are those of the cache. Rows whose position or slot lies
 * outside of the cache are idle: nothing is written for them, their result is zeros. */
typedef struct mrl_mla_args {
    const mrl_weight *kv_b; /* (heads * (nope + v_dim), rank): W_uk and W_uv of each head */
    mrl_shares q_shares;    /* where q, one row, lies in shares */
    mrl_view q;             /* (rows, heads * (nope + rope_dim)) f32 | f16 | bf16 */
    mrl_view kv;            /* (rows, rank + rope_dim) f32 | f16 | bf16: the latent before its norm */
    mrl_view norm;          /* (rank) f32 */
    mrl_view freq;          /* (rope_dim / 2) f32 angular frequencies */
    mrl_view positions;     /* (rows) i32 */
    mrl_view slots;         /* (rows) i32 */
    uint32_t heads;
    uint32_t bound;   /* 1 .. context: what positions + 1 is expected to stay within. It sizes the grid; in a
                       * sequence rows beyond it may be idle, too */
    float eps;        /* of the norm */
    float scale;      /* of the scores */
    float rope_scale; /* multiplies cos and sin (YaRN); 1 */
    bool interleaved; /* pairs (2i, 2i + 1) instead of (i, i + rope_dim / 2) */
    bool sequence;    /* all rows are of one slot, at consecutive positions (padding: negative positions) */
    mrl_kernel kernel; /* MRL_KERNEL_COUNT: choose; else mla_decode, mla_decode_coopmat or, which wants a
                        * sequence, mla_prefill_coopmat */
    bool staged;      /* products with kv_b by way of shared memory on CPUs, too: for tests of what GPUs run */
} mrl_mla_args;

/* y (rows, heads * v_dim) f32 | f16 | bf16: writes the rows of the cache, then each row attends over
 * positions 0 .. positions[row] of its slot. All rows are written first, so rows may be of one slot or
 * of several; no two may name the same slot and position. */
mrl_status mrl_mla(const mrl_kv *kv, const mrl_mla_args *args, const mrl_view *y, mrl_error *err);

/* nope and v_dim of the arguments; VALUE error where the widths of q and kv_b do not give them. */
mrl_status mrl_mla_dims(const mrl_kv *kv, const mrl_mla_args *args, uint32_t *nope, uint32_t *v_dim, mrl_error *err);

#endif
