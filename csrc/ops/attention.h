/* Attention of qkv rows over the KV cache (shaders/attention/). */
#ifndef MRL_OPS_ATTENTION_H
#define MRL_OPS_ATTENTION_H

#include "ops/rope.h"

typedef struct mrl_attention_args {
    mrl_rope_args rope;
    uint32_t bound;    /* 1 .. context: what positions + 1 is expected to stay within. It sizes the
                        * grid of a capture; larger positions are still right, only slower. */
    float scale;       /* of the scores, 1 / sqrt(dim) as a rule */
    bool sequence;     /* all rows are of one slot, at consecutive positions (padding: negative
                        * positions) */
    mrl_kernel kernel; /* MRL_KERNEL_COUNT: choose; else attention_decode, attention_prefill or
                        * attention_prefill_coopmat */
} mrl_attention_args;

/* y (rows, heads * dim) f32 | f16 | bf16: row r = softmax(q K^T * scale) V over positions 0 ..
 * positions[r] of its slot, after the rope block of r was done (ops/rope.h): one dispatch. Without
 * sequence no two rows may be of the same slot, unless what they see of each other is in the cache
 * already. With sequence: two dispatches. */
mrl_status mrl_attention(const mrl_kv *kv, const mrl_attention_args *args, const mrl_view *y, mrl_error *err);

/* How attention on cooperative matrices (attention/prefill_coopmat.glsl) divides its work. */
typedef struct mrl_coopmat_attention {
    uint32_t subgroups, subgroup; /* of a workgroup; lanes of one */
    uint32_t lines;               /* query lines a workgroup */
} mrl_coopmat_attention;

/* False where the device cannot do it, or keys of k_dim and values of v_dim elements do not fit. */
bool mrl_attention_coopmat_plan(mrl_device *dev, mrl_kernel kernel, uint32_t k_dim, uint32_t v_dim,
                                mrl_coopmat_attention *out);

/* Bytes of mrl_kv.scratch for heads of this dim. The first mrl_attention_counter_bytes must be 0
 * before first use. */
uint64_t mrl_attention_scratch_bytes(mrl_device *dev, uint32_t dim);
uint64_t mrl_attention_counter_bytes(void);

#endif
