/* Push-constant structs, one a kernel family, read by C and by GLSL; 128 bytes at most (the size Vulkan guarantees).
 * Addresses first, then 32-bit scalars, or an even number of those between addresses, so that both layouts agree. */
#ifndef MRL_PUSH_H
#define MRL_PUSH_H

#ifdef VULKAN /* predefined by the GLSL compiler */
#define ADDR uvec2
#define UINT uint
#define INT int
#define FLOAT float
#define PUSH_STRUCT(name) struct name
#else
#include <stdint.h>
#define ADDR uint64_t
#define UINT uint32_t
#define INT int32_t
#define FLOAT float
#define PUSH_STRUCT(name) \
    typedef struct name name; \
    struct name
#endif

/* y (m, n) = epilogue(norm(x) (m, k) . W (n, k)^T); gemv and gemm alike. A null (0) address means absent. */
PUSH_STRUCT(mrl_push_matmul)
{
    ADDR quant;       /* quant plane of W, row stride k_padded * bits / 8 bytes */
    ADDR scale;       /* scale plane (n, groups) */
    ADDR zero;        /* zero plane (n, groups) u8 */
    ADDR x;           /* (m, k) activations */
    ADDR norm;        /* (k) f32 weights of the RMS norm applied to x first */
    ADDR bias;        /* (n) f32 */
    ADDR residual;    /* (m, n_out) f32, added to the result */
    ADDR y;           /* (m, n_out); n_out = n / 2 for gated activations */
    UINT m;
    UINT n;
    UINT k;
    UINT k_padded;
    UINT groups;      /* scales per row */
    FLOAT eps;
    FLOAT global_scale;
    UINT workgroups;  /* that walk the rows of W (gemv); gl_NumWorkGroups takes a quarter of a microsecond to come */
};

/* The same over the experts of a layer, whose rows lie one expert after the other in W. A pair is a row of x and one of
 * its chosen experts: pair = row * slots + slot. */
PUSH_STRUCT(mrl_push_moe)
{
    ADDR quant;
    ADDR scale;
    ADDR zero;
    ADDR x;           /* moe_gemv, moe_gemm*: (pairs / slots, k); moe_down: (pairs, k) */
    ADDR norm;
    ADDR bias;        /* 0 */
    ADDR residual;    /* moe_down: (rows, n) f32 */
    ADDR y;           /* (pairs, n_out); moe_down: (rows, n) */
    ADDR ids;         /* (pairs) i32: the expert of a pair; negative: the row is idle */
    ADDR weights;     /* moe_down: (pairs) f32; else places of the experts in this stack, as below, or 0 */
    ADDR tiles;       /* (tiles, 3) u32: expert, first place in order, pairs; 0: a workgroup has one pair */
    ADDR order;       /* (pairs) u32: pairs by expert; without tiles an open choice (moe/open_choice.glsl) or 0 */
    UINT workgroups;  /* as above */
    UINT n;           /* rows of one expert */
    UINT k;
    UINT k_padded;
    UINT groups;
    FLOAT eps;
    FLOAT global_scale;
    UINT slots;       /* moe_down: experts a row; else pairs that share a row of x */
};

#define MRL_MOE_SLOTS_MAX 64  /* experts of a row, shared ones included */
#define MRL_MOE_TOP_K_MAX 32
#define MRL_MOE_EXPERTS_MAX 1024
/* What an open choice of experts goes by. */
#define MRL_CHOICE_SIGMOID 1     /* scores are sigmoids of the logits; else their softmax */
#define MRL_CHOICE_NORMALISE 2   /* weights are divided by their sum */
#define MRL_CHOICE_SHARED_GATE 4 /* shared experts' weight is the sigmoid of a logit of its own */
/* The work of a dispatch of the router. */
#define MRL_ROUTER_ALL 0    /* logits, and the last workgroup of a row chooses */
#define MRL_ROUTER_CHOOSE 1 /* by logits that are there */
#define MRL_ROUTER_TELL 2   /* logits, for an open choice */

PUSH_STRUCT(mrl_push_router) /* scores of all experts for each row, and the choice of the best */
{
    ADDR w;           /* (experts, k_padded) f32, f16 or bf16 */
    ADDR x;           /* (rows, k) */
    ADDR norm;
    ADDR bias;        /* (experts) f32, added to the scores that are compared */
    ADDR logits;      /* (rows, experts) f32, experts counting the row that gates the shared ones; or what is told */
    ADDR counters;    /* (rows) u32, zero between dispatches */
    ADDR positions;   /* (rows) i32 or 0: rows with a negative one are idle */
    ADDR ids;         /* (rows, slots) i32 */
    ADDR weights;     /* (rows, slots) f32 */
    ADDR usage;       /* (experts) u32, counted up */
    UINT k;
    UINT k_padded;
    FLOAT eps;
    FLOAT scale;      /* of the weights */
};

PUSH_STRUCT(mrl_push_moe_plan) /* pairs sorted by expert, and tiles of pairs with one expert */
{
    ADDR ids;
    ADDR tiles;
    ADDR order;
    UINT pairs;
    UINT bound;       /* entries of tiles; those not needed get 0 pairs */
};

PUSH_STRUCT(mrl_push_moe_combine) /* y (rows, n) = residual + sum over slots of weight * x (rows * slots, n) */
{
    ADDR x;
    ADDR ids;
    ADDR weights;
    ADDR residual;
    ADDR y;
    UINT n;
    UINT slots;
};

PUSH_STRUCT(mrl_push_dequantize) /* w (rows, k) = dequantized W, or rows gathered by ids (embedding) */
{
    ADDR quant;
    ADDR scale;
    ADDR zero;
    ADDR ids;         /* (rows) i32; embedding only */
    ADDR y;           /* (rows, k) */
    UINT rows;
    UINT n;           /* rows of W: ids are clamped to it */
    UINT k;
    UINT k_padded;
    UINT group;       /* weights a scale; 0: the row */
    UINT groups;      /* scales a row */
    FLOAT global_scale;
};

PUSH_STRUCT(mrl_push_quantize) /* planes of W rows row_start + i * row_stride = round-to-nearest of x (rows, k) */
{
    ADDR x;
    ADDR quant;
    ADDR scale;
    ADDR zero;
    ADDR status;      /* (3) u32: inf and nan met, numbers too large, first such row (see quantize.comp) */
    UINT rows;
    UINT k;
    UINT k_padded;
    UINT group;       /* weights a scale; 0: the row */
    UINT groups;      /* scales a row */
    UINT row_start;
    UINT row_stride;
    FLOAT global_scale;
};

/* y (m, n) = epilogue(norm(x) (m, k) . W), W an EXL3 trellis: gemv and gemm; and the transforms on their own. */
PUSH_STRUCT(mrl_push_trellis) /* bytes 16 to 79, a line of NVIDIA's constant cache, are what loads begin with */
{
    ADDR partial;     /* what workgroups tell, as gemv.glsl has it; or what lies between two dispatches */
    ADDR y;           /* (m, y_stride), from its first column on */
    ADDR trellis;     /* units in kernel layout (include/trellis.glsl) */
    ADDR suh;         /* (k_padded) f16 */
    ADDR x;           /* (m, k) activations */
    ADDR norm;        /* (k) f32 weights of the RMS norm applied to x first, or 0 */
    ADDR svh;         /* (n_padded) f16 */
    ADDR counters;    /* (n_padded / 128) u32, zero between calls */
    UINT k;
    UINT k_padded;    /* rows and columns of the trellis: multiples of 128 */
    UINT types;       /* for gemv: of x, 16 times that of y, 256 times the blocks of 128 rows of Q of a workgroup, and
                       * 65536 times the shares of x; then residual is what they are added to, gate where that goes */
    UINT n_padded;
    ADDR gate;        /* like x, with gated activations: x becomes act(gate) * x */
    ADDR residual;    /* (m, n) f32 or 0, added to the result */
    ADDR bias;        /* (n) f32 or 0 */
    UINT m;
    UINT n;
    UINT y_stride;    /* elements */
    FLOAT eps;
    FLOAT x_scale;    /* power of two that x was multiplied by, to stay in range of f16 (gemm) */
};

/* y (pairs, n) = epilogue(norm(x[pair / slots]) . W[expert of the pair]), experts of one size behind each other. */
PUSH_STRUCT(mrl_push_trellis_moe) /* in that order too */
{
    ADDR partial;     /* what workgroups tell, as gemv.glsl has it */
    ADDR y;           /* (pairs, n), or (rows, n) */
    ADDR ids;         /* (pairs) i32: the expert of a pair; negative: the row is idle */
    ADDR order;       /* (pairs) u32: pairs by expert; without tiles an open choice (moe/open_choice.glsl) or 0 */
    ADDR trellis;     /* (experts) units in kernel layout */
    ADDR suh;         /* (experts, k_padded) f16 */
    ADDR x;           /* (pairs / slots, k) activations */
    ADDR svh;         /* (experts, n_padded) f16 */
    UINT n;
    UINT k;
    UINT types;       /* of x, y and a workgroup's blocks as above, and 65536 times the pairs of a row: those that
                       * share a row of x, or are summed up; then they are 15 at most, and 2^20 times the shares of x
                       * follow (gemv.glsl) */
    FLOAT eps;        /* of the norm; where x is or was transformed, the power of two that it is multiplied by */
    ADDR weights;     /* (pairs) f32, by which the pairs of a row are summed up; or 0 */
    ADDR tiles;       /* (tiles, 3) u32: expert, first place in order, pairs; 0: a workgroup has one pair */
    ADDR places;      /* (experts of the layer) i32: where an expert lies here, negative: elsewhere; 0: in order */
    ADDR norm;        /* (k) f32 or 0; with weights, whose x is gated and has no norm: (rows, n) f32 or 0, added to y */
    ADDR gate;        /* like x, with gated activations: x becomes act(gate) * x */
    ADDR counters;    /* (pairs or tiles, n_padded / 128) u32, zero between calls */
};

#define MRL_TRELLIS_SUM_MAX 12 /* pairs of a row that one workgroup sums up */

/* A trellis in the file's layout to kernel layout or back, or decoded. */
PUSH_STRUCT(mrl_push_trellis_copy)
{
    ADDR file;        /* (k / 16, n / 16, 16 * bits) u16, from tile row `row` on; or the decoded matrix */
    ADDR trellis;     /* units */
    ADDR suh;         /* (k) f16 */
    UINT row;         /* first tile row; a multiple of 8 */
    UINT rows;        /* tile rows */
    UINT k;
    UINT n;
};

/* Strided copy with conversion of plane rows: used by weight loading (segments) and Tensor.astype. */
PUSH_STRUCT(mrl_push_copy)
{
    ADDR src;
    ADDR dst;
    UINT rows;
    UINT columns;     /* elements a row */
    UINT src_stride;  /* elements; 0: one source row for all */
    UINT dst_stride;
    UINT row_start;   /* destination row of source row 0 */
    UINT row_stride;  /* destination rows between source rows */
    UINT bias;        /* added to every byte, modulo 256 */
};

PUSH_STRUCT(mrl_push_rms_norm) /* y = (x + residual) * rsqrt(mean square + eps) * weight; sum = x + residual */
{
    ADDR x;
    ADDR residual;
    ADDR weight;
    ADDR y;
    ADDR sum;
    UINT rows;
    UINT columns;
    FLOAT eps;
};

/* Attention over one layer's cache. qkv rows: [heads * dim | kv_heads * dim | kv_heads * dim]; with gates each of the
 * heads is followed by a gate of dim (output_gate.glsl).
 * Used by rope (which also writes the cache) and by both attention kernels. */
PUSH_STRUCT(mrl_push_attention)
{
    ADDR qkv;         /* (rows, (heads + 2 kv_heads) * dim) */
    ADDR q_norm;      /* (dim) f32 or 0: per-head RMS norm of q and k before rope (Qwen3) */
    ADDR k_norm;
    ADDR freq;        /* (rope_dim / 2) f32 angular frequencies */
    ADDR positions;   /* (rows) i32; a negative position marks an idle row: nothing is written */
    ADDR slots;       /* (rows) i32 */
    ADDR cache_k;     /* (slots * context, kv_heads, dim) */
    ADDR cache_v;
    ADDR y;           /* (rows, heads * dim); in rope: (rows, heads * dim) rotated q */
    ADDR partial;     /* split-KV scratch: u32 counters, then (rows, kv_heads * blocks, chunks) of
                       * (group * (dim + 2)) f32, each at a multiple of 16 bytes */
    ADDR gate;        /* qkv where its rows have gates, else 0 */
    UINT rows;
    UINT heads;
    UINT kv_heads;
    UINT context;     /* positions a slot */
    UINT chunks;      /* grid size along the cache */
    FLOAT eps;
    FLOAT scale;      /* softmax scale */
    FLOAT rope_scale; /* multiplies cos and sin (YaRN) */
};

/* Latent attention, all kernels of shaders/mla. Sizes are specialization constants. */
#define MRL_MLA_CHUNKS 132 /* of the positions, at most */
#define MRL_MLA_MERGE 17   /* results of chunks that a thread of mla_value asks for, at most: 8 threads have them all */
PUSH_STRUCT(mrl_push_mla)
{
    ADDR x;           /* what the kernel works on: kv, q, absorbed q, partial results */
    ADDR y;
    ADDR positions;   /* (rows) i32; negative: idle */
    ADDR slots;       /* (rows) i32 */
    ADDR freq;        /* (rope_dim / 2) f32 */
    ADDR norm;        /* (rank) f32, of the latent */
    ADDR cache;       /* (slots * context, rank + rope_dim) */
    ADDR quant;       /* kv_b (heads * (nope + v_dim), rank): planes as in mrl_push_matmul; prefill_coopmat: of it */
    ADDR scale;
    ADDR zero;
    UINT context;     /* positions a slot */
    UINT chunks;      /* grid size along the cache */
    UINT k_padded;
    UINT groups;
    FLOAT global_scale;
    FLOAT eps;
    FLOAT softmax;    /* scale of the scores */
    FLOAT rope_scale; /* multiplies cos and sin (YaRN) */
    UINT rows;
    UINT first_head;  /* prefill_coopmat: that of workgroup (., 0) */
    UINT shares;      /* query: that x, of one row, lies in (include/shares.glsl) */
};

/* A gated delta net, all kernels of shaders/delta (delta.glsl draws the rows). Sizes are specialization constants. */
PUSH_STRUCT(mrl_push_delta)
{
    ADDR x;           /* (rows, key_heads * (2 key_dim + 2 ratio * value_dim)): q, k, v, z */
    ADDR ba;          /* (rows, 2 * value_heads): b and a */
    ADDR conv;        /* (channels, taps) f32: the filter */
    ADDR a_log;       /* (value_heads) f32 */
    ADDR dt_bias;     /* (value_heads) f32 */
    ADDR norm;        /* (value_dim) f32 */
    ADDR positions;   /* (rows) i32; negative: idle */
    ADDR slots;       /* (rows) i32 */
    ADDR ring;        /* (slots, taps, channels) f32: the last rows of x */
    ADDR state;       /* (slots, value_heads, key_dim, value_dim) f32 */
    ADDR mixed;       /* prefill: (rows, channels + 2 * value_heads, to a multiple of 4) f32 */
    ADDR o;           /* prefill: (rows, value_heads * value_dim) f32; in chunks, rows to a multiple of them */
    ADDR chunks;      /* prefill in chunks: what delta/chunk.glsl keeps of each */
    ADDR y;           /* (rows, value_heads * value_dim) */
    UINT first_row;   /* delta_scan: where it begins; 0 */
    UINT rows;        /* delta_scan: where it ends */
    FLOAT eps;        /* of the norm */
};

/* Step state, one row a slot (structure of arrays; see csrc/engine/step_state.h). */
PUSH_STRUCT(mrl_push_sample)
{
    ADDR logits;      /* (slots, vocab) f32 */
    ADDR tokens;      /* (slots) i32: next input token */
    ADDR positions;   /* (slots) i32: its position; -1 when the slot is idle */
    ADDR params;      /* (slots, MRL_SLOT_WORDS) u32 */
    ADDR seen;        /* (slots, ceil(vocab / 32)) u32: tokens that the repetition penalty knows */
    ADDR bias;        /* (slots, MRL_BIAS_MAX, 2) u32: token id, f32 bits */
    ADDR ring;        /* (MRL_RING_STEPS, slots, MRL_RING_WORDS) u32, host-visible */
    ADDR step;        /* (2) u32: steps done, workgroups of the running step that are done */
    UINT slots;
    UINT vocab;
};

PUSH_STRUCT(mrl_push_edit) /* applies count triples (slot, field, value) to the step state between two steps */
{
    ADDR edits;       /* (count, 3) u32 */
    ADDR tokens;
    ADDR positions;
    ADDR params;
    ADDR seen;
    ADDR bias;
    UINT count;
    UINT slots;
    UINT vocab;
};

/* Fields of a params row. */
#define MRL_SLOT_WORDS 32
#define MRL_SLOT_LIMIT 0        /* i32: the slot finishes when its next position would reach this */
#define MRL_SLOT_SEED_LO 1
#define MRL_SLOT_SEED_HI 2
#define MRL_SLOT_DRAWS 3        /* u32: draws done; the counter of the generator */
#define MRL_SLOT_TEMPERATURE 4  /* f32; 0 is greedy */
#define MRL_SLOT_TOP_K 5        /* u32; 0 is off */
#define MRL_SLOT_TOP_P 6        /* f32; 1 is off */
#define MRL_SLOT_MIN_P 7        /* f32; 0 is off */
#define MRL_SLOT_REPEAT 8       /* f32 repetition penalty; 1 is off */
#define MRL_SLOT_BIASES 9       /* u32: entries of the bias list */
#define MRL_SLOT_LOGPROBS 10    /* u32: top logprobs to report, 0..20; the drawn token's own is always reported */
#define MRL_SLOT_STOPS 11       /* u32: stop ids */
#define MRL_SLOT_STOP_0 12      /* .. 12 + MRL_STOP_MAX - 1 */
#define MRL_STOP_MAX 16
#define MRL_BIAS_MAX 1024

/* A ring entry: what the host reads of one step of one slot. */
#define MRL_RING_STEPS 64
#define MRL_RING_WORDS 44
#define MRL_RING_TOKEN 0        /* i32, -1 when the slot was idle */
#define MRL_RING_FINISH 1       /* MRL_FINISH_* */
#define MRL_RING_LOGPROB 2      /* f32 of the drawn token, of the raw distribution (temperature 1, no filters) */
#define MRL_RING_TOPS 3         /* u32 count, then ids (20), then f32 logprobs (20) */
#define MRL_RING_TOP_IDS 4
#define MRL_RING_TOP_LOGPROBS 24
#define MRL_FINISH_NONE 0
#define MRL_FINISH_STOP 1       /* a stop id was drawn */
#define MRL_FINISH_LENGTH 2     /* the limit was reached */
#define MRL_FINISH_NAN 3        /* logits held NaN or no finite value */

/* Field numbers of an edit beyond params (0 .. MRL_SLOT_WORDS-1). */
#define MRL_EDIT_TOKEN 64
#define MRL_EDIT_POSITION 65
#define MRL_EDIT_CLEAR_SEEN 66  /* value ignored */
#define MRL_EDIT_SEEN 67        /* value = token id to mark */
#define MRL_EDIT_BIAS_ID 1024   /* + entry index: token id */
#define MRL_EDIT_BIAS_VALUE 4096 /* + entry index: f32 bits */

#endif
