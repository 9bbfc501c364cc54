/* A mixture of experts: y = residual + sum over the chosen experts of weight * down(act(gate(x)) * up(x)).
 *
 * Rows by themselves (one row; few that share no experts; software devices):
 *     router -> (row, slot) ids, weights -> moe_gemv gate and up of each pair -> moe_down over all slots of a row
 * where one row of a single stack may leave the choice to gate and up (ops/choice.h).
 * Rows that share experts, so that a chosen expert is read once for a tile of pairs:
 *     router -> moe_plan -> gate and up of each tile -> down of each tile -> moe_combine
 * with moe_gemv for small tiles, moe_gemm and moe_gemm_coopmat for large ones.
 * Experts that are EXL3 trellises, any number of rows, at most mrl_trellis_pairs pairs at a time:
 *     router [-> moe_plan] -> trellis_moe_gemv gate of each pair or tile -> the same, up -> down -> moe_combine
 * Experts of several formats lie in a stack each. Every product is one dispatch a stack, beside each other, into the
 * same buffers: a workgroup whose expert lies in another stack leaves. Then moe_combine, as after tiles. */
#ifndef MRL_OPS_MOE_H
#define MRL_OPS_MOE_H

#include "ops/matmul.h"
#include "ops/trellis.h"

#define MRL_MOE_COUNTERS 1024u /* rows whose logits the router computes itself, at most */

#define MRL_MOE_STACKS_MAX 32u /* of a layer */

/* Experts of one format, one behind the other. */
typedef struct mrl_moe_stack {
    uint32_t experts;
    const mrl_weight *gate_up; /* (experts * 2 * inner, hidden): gate 0, up 0, gate 1, ... of each expert */
    const mrl_weight *down;    /* (experts * hidden, inner) */
    const mrl_trellis *trellis[3]; /* instead of those two: gate, up (hidden to inner), down (inner to hidden) */
    mrl_buffer *places;        /* (experts and shared ones of the layer) i32: where in this stack each lies, -1 of those
                                * in others; NULL with one stack, which has all in their order */
} mrl_moe_stack;

/* What a layer has; checked by mrl_moe_check once. */
typedef struct mrl_moe_layer {
    const mrl_weight *router;  /* (experts [+ 1], hidden) f32, f16 or bf16: the row more gates the shared experts */
    const mrl_moe_stack *stacks;
    uint32_t nstacks;          /* 1 .. MRL_MOE_STACKS_MAX */
    uint32_t hidden, inner;
    mrl_view bias;             /* (experts) f32, added to the scores that are compared, or absent */
    uint32_t experts, top_k;
    uint32_t shared;           /* experts that every row goes to, behind the others */
    bool sigmoid;              /* scores are sigmoids of the logits; else their softmax */
    bool normalise;            /* weights are divided by their sum */
    float scale;               /* then multiplied by this */
    uint32_t groups, top_groups, group_best; /* see shaders/moe/router.comp */
    mrl_activation activation; /* a gated one */
    mrl_buffer *counters;      /* MRL_MOE_COUNTERS u32, zero */
    mrl_buffer *pair_counters; /* mrl_moe_pair_counters u32, zero; NULL for none */
    mrl_buffer *choice;        /* mrl_moe_choice_words u32, zero: what the router tells, how often each was chosen */
} mrl_moe_layer;

static inline uint32_t mrl_moe_slots(const mrl_moe_layer *layer) { return layer->top_k + layer->shared; }

/* What is in the buffer `choice`, as shaders/moe/open_choice.glsl has it. */
uint32_t mrl_moe_choice_words(uint32_t experts);
mrl_view mrl_moe_told(const mrl_moe_layer *layer);
mrl_view mrl_moe_usage_of(const mrl_moe_layer *layer); /* (experts) u32, counted up by every choice */

typedef struct mrl_moe_args {
    const mrl_moe_layer *layer;
    mrl_view x;         /* (m, hidden) f32, f16 or bf16 */
    mrl_view norm;      /* (hidden) f32 or absent: x becomes x * rsqrt(mean(x^2) + eps) * norm first */
    mrl_view residual;  /* (m, hidden) f32 or absent; may be the memory of y */
    mrl_view positions; /* (m) i32 or absent: rows with a negative one are idle, their y is undefined */
    mrl_view y;         /* (m, hidden) */
    float eps;
    mrl_dtype dtype;    /* of activations between gate_up and down */
    bool int8;          /* products of pairs with trellises, all mul1, take activations in 8 bits */
    mrl_shares *open;   /* count 0, or NULL. If it is no longer 0, y, of one row, has not been written: it stays in
                         * these shares, which the caller releases, to be added to the residual, which is read then */
    const char *kernel; /* "rows@tuning of gate_up/of down" (ops/gemv.h), "moe_gemv@tile", "moe_gemm",
                         * "moe_gemm_coopmat@tile,columns / 128", or NULL to choose; with trellises
                         * "trellis_moe_gemv@tile,splits", where stacks that are none go through moe_gemv */
} mrl_moe_args;

/* u32s that the trellises of a layer need to add up sums of several workgroups; 0 without trellises. */
uint32_t mrl_moe_pair_counters(const mrl_moe_layer *layer);

/* VALUE error for matrices and numbers that do not belong together, TYPE for a router in a quantized format. */
mrl_status mrl_moe_check(mrl_device *dev, const mrl_moe_layer *layer, mrl_error *err);

/* Whether gate and up choose the experts of a single row, so that the router's workgroups wait for nobody. */
bool mrl_moe_leaves_choice(mrl_device *dev, const mrl_moe_layer *layer);

/* VALUE or TYPE error for x, norm and positions that do not fit the layer. */
mrl_status mrl_moe_check_input(mrl_device *dev, const mrl_moe_args *args, mrl_error *err);

mrl_status mrl_op_moe(mrl_device *dev, const mrl_moe_args *args, mrl_error *err);
/* The router alone: ids (m, top_k + shared) i32 and weights of that shape f32. y, residual and dtype are not used. */
mrl_status mrl_op_route(mrl_device *dev, const mrl_moe_args *args, const mrl_view *ids, const mrl_view *weights,
                        mrl_error *err);

#endif
