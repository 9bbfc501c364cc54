/* Linear layers of EXL3 trellis weights: W (k, n) = diag(suh) P Q P diag(svh), Q decoded from the trellis, P blocks
 * of 128 x 128 Hadamard. The NumPy reference is tests/ref/exl3.py; include/trellis.glsl draws the layouts. */
#ifndef MRL_OPS_TRELLIS_H
#define MRL_OPS_TRELLIS_H

#include "ops/matmul.h"
#include "ops/choice.h"
#include "ops/shares.h"

#define MRL_TRELLIS_BLOCK 128u

/* The numbers are the specialization constant of the shaders. */
typedef enum mrl_codebook {
    MRL_CODEBOOK_3INST,
    MRL_CODEBOOK_MCG,
    MRL_CODEBOOK_MUL1,
    MRL_CODEBOOK_COUNT
} mrl_codebook;
const char *mrl_codebook_name(mrl_codebook codebook);

typedef struct mrl_trellis {
    uint32_t rate2;              /* twice the bits a weight: 2 .. 8, 10, 12, 14, 16; the odd ones with mul1 only */
    mrl_codebook codebook;
    uint32_t n, k;               /* outputs and inputs of the layer */
    uint32_t n_padded, k_padded; /* of the trellis: rounded up to 128 */
    uint32_t experts;            /* matrices of this size, one behind the other; 1 for an ordinary layer */
    int x_exponent;              /* x after its transform times 2^x_exponent is in range of f16 for all f16 x */
    mrl_buffer *units;           /* (experts) times mrl_trellis_bytes, kernel layout */
    mrl_buffer *suh, *svh;       /* (experts, k_padded), (experts, n_padded) f16 */
    mrl_buffer *counters;        /* (n_padded / 128) u32, zero between calls */
} mrl_trellis;

/* Bytes of the trellis of one expert, in either layout. */
static inline uint64_t mrl_trellis_bytes(const mrl_trellis *t)
{
    return (uint64_t)t->n_padded * t->k_padded / 16 * t->rate2;
}

/* Whether EXL3 has weights of rate2 / 2 bits in this codebook. */
static inline bool mrl_trellis_has_rate(uint32_t rate2, mrl_codebook codebook)
{
    return rate2 >= 2 && rate2 <= 16 && (rate2 % 2 == 0 || (rate2 < 8 && codebook == MRL_CODEBOOK_MUL1));
}

typedef struct mrl_trellis_args {
    const mrl_trellis *t;
    uint32_t expert;    /* the matrix of t that multiplies */
    mrl_view x;         /* (m, k) f32, f16 or bf16 */
    mrl_view norm;      /* (k) f32 or absent: x becomes x * rsqrt(mean(x^2) + eps) * norm first */
    mrl_view bias;      /* (n) f32 or absent, added before the activation */
    mrl_view residual;  /* (m, n) f32 or absent, added last; may be the memory of y */
    mrl_view gate;      /* like x, with a gated activation and no norm: x becomes activation(gate) * x first */
    mrl_view y;         /* (m, columns) f32, f16 or bf16; columns y_column .. y_column + n - 1 are written */
    uint32_t y_column;
    float eps;
    mrl_activation activation;
    bool int8;          /* activations in 8 bits where a kernel has them: mul1, at most 16 rows */
    const char *kernel; /* a row of kernels.def, or NULL to choose */
    mrl_shares x_shares; /* where x, one row, is base and these; no residual and no gate then, and f16 where x of dtype
                         * f16 would be multiplied so */
    mrl_view base, total; /* (1, k) f32: what they are added to, and, or absent, where the sum is written */
    mrl_shares *open;   /* y, of which shape and dtype are given, stays in shares: the caller releases them. As many as
                         * mrl_trellis_shares says, which must not be 0; no bias or activation of y, and the residual,
                         * which is not added, is their base */
} mrl_trellis_args;

mrl_status mrl_op_trellis(mrl_device *dev, const mrl_trellis_args *args, mrl_error *err);
/* What mrl_op_trellis does first: VALUE or TYPE error for operands that do not belong together. */
mrl_status mrl_trellis_check(mrl_device *dev, const mrl_trellis_args *args, mrl_error *err);

/* In how many shares y may stay; 0: it may not, or no workgroup waits for another anyway. */
uint32_t mrl_trellis_shares(mrl_device *dev, const mrl_trellis_args *args);

#define MRL_TRELLIS_PAIRS 2048u /* pairs, or tiles of them, of one mrl_op_trellis_experts */

/* True where tiles of 16 pairs and more go through cooperative matrices. */
bool mrl_trellis_matrices(mrl_device *dev);
/* Pairs of one mrl_op_trellis_experts at most, in tiles of so many (0: without tiles) of `experts` experts. */
uint32_t mrl_trellis_pairs(uint32_t tile, uint32_t experts);

/* y[pair] = norm(x[pair / slots]) W[ids[pair]], W the experts of t, or of activation(gate) * x; shapes are the caller's
 * to check. */
typedef struct mrl_trellis_experts_args {
    const mrl_trellis *t;
    mrl_view x;           /* (pairs / slots, k) f32, f16 or bf16 */
    mrl_view norm;        /* (k) f32 or absent, as it must be for tiles of 16 pairs and more */
    mrl_view ids;         /* (pairs) i32 below t->experts; of negative ones nothing is written. Not read where choice
                           * says what was told of the experts */
    mrl_choice choice;
    mrl_buffer *places;   /* (experts of the layer) i32: ids and tiles count those, which lie in t at these places;
                           * where one is negative nothing is written. NULL: ids and tiles say the place */
    mrl_view tiles;       /* (bound, 3) and order (pairs) as moe_plan makes them, bound <= pairs; or absent */
    mrl_view order;
    uint32_t tile;        /* pairs of a tile at most, 1 .. 16, or 16, 32 or 64 with matrices; without tiles 1 */
    mrl_view gate;        /* like x, with a gated activation: x becomes activation(gate) * x; or absent */
    mrl_shares x_shares, gate_shares; /* x and gate where they lie in shares, equally many; with weights only */
    mrl_view y;           /* (pairs, n), no more than mrl_trellis_pairs of them; or see weights. With a shape but
                           * without a buffer the result stays in shares, as many as mrl_trellis_experts_shares says */
    mrl_range counters;   /* (MRL_TRELLIS_PAIRS, n_padded / 128) u32 or more, zero between calls */
    uint32_t slots;       /* pairs that share a row of x, or are summed up */
    mrl_view weights;     /* (pairs) f32, or absent. With them y (pairs / slots, n) = residual + the products of a row's
                           * pairs, each times its weight, where mrl_trellis_sums; x (pairs, k) is gated then, all
                           * experts lie in t, and there are no tiles */
    mrl_view residual;    /* (pairs / slots, n) f32, or absent; may be the memory of y */
    uint32_t splits;      /* workgroups that share 128 columns of a pair; 0: choose */
    float eps;
    mrl_activation activation;
    bool int8;            /* activations in 8 bits: mul1; not in tiles that go through matrices */
    bool beside;          /* for other pairs than the dispatches since the last barrier (see mrl_dispatch) */
} mrl_trellis_experts_args;

/* Gives a device that was just opened the feature `fragments`, if its matrices lie as trellis/fragments.glsl fills them
 * and `disable` has not that bit. */
mrl_status mrl_op_probe_fragments(mrl_device *dev, uint32_t disable, mrl_error *err);

/* Whether so many products can be summed up in one dispatch. */
bool mrl_trellis_sums(uint32_t slots);

/* In how many shares the result of a pair may stay, 1 among them; 0: it may not, as in tiles of pairs. With weights
 * those of all pairs of a row are the row's. */
uint32_t mrl_trellis_experts_shares(mrl_device *dev, const mrl_trellis_experts_args *args);

/* *sums: a buffer that the dispatch works in, or the result that stays in shares, or NULL. The caller releases it,
 * after what goes beside the dispatch. */
mrl_status mrl_op_trellis_experts(mrl_device *dev, const mrl_trellis_experts_args *args, mrl_buffer **sums,
                                  mrl_error *err);

/* Tile rows row .. row + rows - 1 (multiples of 8) between `file` (as in a checkpoint, from its start) and the units of
 * an expert. */
mrl_status mrl_op_trellis_pack(mrl_device *dev, const mrl_trellis *t, uint32_t expert, mrl_buffer *file, uint32_t row,
                               uint32_t rows, bool back, mrl_error *err);
/* y (k_padded, n_padded) f16 = Q of an expert, exact. */
mrl_status mrl_op_trellis_inner(mrl_device *dev, const mrl_trellis *t, uint32_t expert, const mrl_view *y,
                                mrl_error *err);
/* y (k, n) f32, f16 or bf16 = W of an expert. */
mrl_status mrl_op_trellis_dequantize(mrl_device *dev, const mrl_trellis *t, uint32_t expert, const mrl_view *y,
                                     mrl_error *err);
/* How a kernel could multiply with decoded weights; numbers are the specialization constant of trellis/rate.comp. */
typedef enum mrl_trellis_way {
    MRL_WAY_STATES,
    MRL_WAY_F32,
    MRL_WAY_PAIRS,
    MRL_WAY_APART, /* 3inst and mcg */
    MRL_WAY_INT8,  /* mul1 */
    MRL_WAYS
} mrl_trellis_way;

/* y (a multiple of 128 lanes) f32: sums over `rounds` times 32 weights that each lane makes up; for benchmarks. */
mrl_status mrl_op_trellis_rate(mrl_device *dev, uint32_t rate2, mrl_codebook codebook, mrl_trellis_way way,
                               uint32_t rounds, const mrl_view *y, mrl_error *err);

/* y (m, k) f32 or f16 = (x * scales) P, k a multiple of 128; scales (k) f16 or absent. With y in f16 the product is
 * rounded to f16 before the transform, as ExLlamaV3 does. */
mrl_status mrl_op_hadamard(mrl_device *dev, const mrl_view *x, const mrl_view *scales, const mrl_view *y,
                           mrl_error *err);

#endif
