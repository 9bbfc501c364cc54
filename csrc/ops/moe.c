#include "ops/moe.h"

#include <stdio.h>
#include <string.h>

#include "push.h"

#include "ops/gemv.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/router.h"
#include "ops/trellis.h"

#define PAIRS_MAX 32768u /* of one walk through the kernels: more rows take several */
#define GEMM_TILE 64u
#define COOPMAT_SHARED(rows, columns) (((rows) + (columns)) * 80u) /* bytes of a tile of moe_gemm_coopmat */

/* How the pairs of a call are multiplied. */
typedef struct strategy {
    mrl_kernel kernel; /* moe_gemv, moe_gemm, moe_gemm_coopmat, trellis_moe_gemv */
    uint32_t tile;     /* pairs of one expert that go together; 0: every pair by itself */
    uint32_t columns;  /* of a tile of moe_gemm_coopmat; 0: by the number of tiles */
    mrl_gemv_tuning gate_up, down; /* of pairs by themselves */
} strategy;

/* What the dispatches of one call share. */
typedef struct routed {
    mrl_device *dev;
    const mrl_moe_args *args;
    uint32_t rows, slots, pairs, inner, hidden;
    mrl_view x, norm;    /* what gate and up read: the normalised rows and no norm, or as given */
    mrl_view ids, weights, act;
    mrl_choice choice;   /* that gate and up make, if it is open */
    strategy how;
    mrl_view tiles, order; /* absent without tiles */
    uint32_t bound;        /* tiles at most */
} routed;

static bool is_trellis(const mrl_moe_stack *stack) { return stack->trellis[0] != NULL; }
static bool has_trellises(const mrl_moe_layer *layer)
{
    for (uint32_t i = 0; i < layer->nstacks; i++)
        if (is_trellis(&layer->stacks[i]))
            return true;
    return false;
}
static bool has_matrices(const mrl_moe_layer *layer)
{
    bool found = false;
    for (uint32_t i = 0; i < layer->nstacks; i++)
        found |= !is_trellis(&layer->stacks[i]);
    return found;
}

/* ---- what the router tells ---- */

uint32_t mrl_moe_choice_words(uint32_t experts) { return ((2 * experts + 5) & ~3u) + experts; }

mrl_view mrl_moe_told(const mrl_moe_layer *layer)
{
    return (mrl_view){
        .buffer = layer->choice, .dtype = MRL_DTYPE_u32, .ndim = 1, .shape = {2 * (uint64_t)layer->experts + 2}};
}

mrl_view mrl_moe_usage_of(const mrl_moe_layer *layer)
{
    return (mrl_view){.buffer = layer->choice,
                      .offset = 4ull * (mrl_moe_choice_words(layer->experts) - layer->experts),
                      .dtype = MRL_DTYPE_u32,
                      .ndim = 1,
                      .shape = {layer->experts}};
}

/* ---- the products ---- */

/* What one dispatch over the experts of a stack computes. */
typedef struct product {
    const mrl_weight *w;
    mrl_buffer *places; /* see mrl_moe_stack */
    const mrl_view *x, *y;
    mrl_view norm, residual; /* or absent */
    uint32_t n, slots;       /* rows of an expert in w; pairs that share a row of x */
    mrl_activation activation;
    bool beside;             /* see mrl_dispatch */
    const mrl_choice *choice; /* or NULL */
} product;

/* moe_down: over all slots of a row at once. */
static mrl_status dispatch_product(const routed *r, const product *p, mrl_kernel kernel, mrl_gemv_plan *plan,
                                   mrl_error *err)
{
    static const mrl_choice closed;
    mrl_status rc;
    mrl_pipeline *pipeline;
    const mrl_weight *w = p->w;
    const mrl_choice *choice = p->choice != NULL ? p->choice : &closed;
    const mrl_view *order = choice->told.buffer != NULL ? &choice->told : &r->order;
    const bool down = kernel == MRL_KERNEL_moe_down;
    const uint64_t places = p->places != NULL ? mrl_buffer_address(p->places) : 0;
    const mrl_push_moe push = {.quant = mrl_buffer_address(w->quant),
                               .scale = mrl_plane_address(w->scale),
                               .zero = mrl_plane_address(w->zero),
                               .x = mrl_view_address(p->x),
                               .norm = mrl_view_address(&p->norm),
                               .residual = mrl_view_address(&p->residual),
                               .y = mrl_view_address(p->y),
                               .ids = mrl_view_address(&r->ids),
                               .weights = down ? mrl_view_address(&r->weights) : places,
                               .tiles = mrl_view_address(&r->tiles),
                               .order = mrl_view_address(order),
                               .workgroups = plan->groups[0],
                               .n = p->n,
                               .k = w->k,
                               .k_padded = w->k_padded,
                               .groups = w->groups,
                               .eps = r->args->eps,
                               .global_scale = w->global_scale,
                               .slots = p->slots};
    const mrl_range reads[] = {mrl_range_of(w->quant), mrl_range_of(w->scale), mrl_range_of(w->zero),
                               mrl_view_range(p->x), mrl_view_range(&p->norm), mrl_view_range(&p->residual),
                               mrl_view_range(&r->ids), mrl_view_range(&r->weights), mrl_view_range(&r->tiles),
                               mrl_view_range(order), mrl_range_of(p->places)};
    const mrl_range writes[] = {mrl_view_range(p->y), mrl_view_range(&choice->ids), mrl_view_range(&choice->weights),
                                mrl_view_range(&choice->usage)};

    plan->nspec = (int)mrl_choice_specialise(choice, plan->spec, (uint32_t)plan->nspec);
    MRL_TRY(mrl_pipeline_get(r->dev, kernel, w->format, plan->math, plan->spec, plan->nspec, &pipeline, err));
    const mrl_dispatch d = {.pipeline = pipeline,
                            .push = &push,
                            .push_bytes = sizeof push,
                            .groups = {plan->groups[0], plan->groups[1], plan->groups[2]},
                            .reads = reads,
                            .nreads = sizeof reads / sizeof *reads,
                            .writes = writes,
                            .nwrites = sizeof writes / sizeof *writes,
                            .flops = 2.0 * r->pairs * p->n * w->k,
                            .beside = p->beside};
    MRL_TRY(mrl_stream_dispatch(r->dev, &d, err));
done:
    return rc;
}

/* Wide tiles read x least and pass most products to the matrix units between two barriers, but there must be enough of
 * them; tiles of 256 rows are large as they are. */
static uint32_t coopmat_columns(const routed *r, uint32_t n)
{
    const uint32_t tiles = r->pairs / r->how.tile + r->args->layer->experts / 2;
    const bool fits = mrl_device_info_of(r->dev)->shared_bytes >= COOPMAT_SHARED(r->how.tile, 256);

    if (r->how.columns != 0)
        return r->how.columns;
    return fits && r->how.tile < 256 && (uint64_t)tiles * mrl_div_up(n, 256) >= 264 ? 256 : 128;
}

static void plan_gemm(const routed *r, const product *p, mrl_gemv_plan *plan)
{
    const mrl_weight *w = p->w;
    const bool coopmat = r->how.kernel == MRL_KERNEL_moe_gemm_coopmat;
    const uint32_t columns = coopmat ? coopmat_columns(r, p->n) : GEMM_TILE;
    const uint32_t spec[] = {256,         (uint32_t)p->x->dtype, (uint32_t)p->y->dtype,   (uint32_t)w->scale_type,
                             w->has_zero, w->group,              (uint32_t)p->activation, columns,
                             1,           r->how.tile};

    plan->math = coopmat ? MRL_MATH_F16 : MRL_MATH_NONE;
    plan->nspec = coopmat ? 10 : 7;
    memcpy(plan->spec, spec, sizeof spec);
    plan->groups[0] = mrl_div_up(p->n, columns);
    plan->groups[1] = r->bound;
    plan->groups[2] = 1;
}

/* y (pairs, n_out) = activation(norm(x) W[expert]^T) by the kernel of the strategy, for the experts of a stack. */
static mrl_status pair_product(const routed *r, const product *p, mrl_error *err)
{
    const bool gemm = r->how.kernel == MRL_KERNEL_moe_gemm || r->how.kernel == MRL_KERNEL_moe_gemm_coopmat;
    mrl_gemv_plan plan = {0};

    if (!gemm) {
        const mrl_gemv_work work = {.w = p->w,
                                    .n = p->n,
                                    .length = p->w->k_padded,
                                    .m = r->how.tile ? r->how.tile : 1,
                                    .copies = r->how.tile ? r->bound : r->pairs,
                                    .x = p->x->dtype,
                                    .y = p->y->dtype,
                                    .activation = p->activation,
                                    .norm = p->norm.buffer != NULL,
                                    .staged = r->args->kernel != NULL};
        mrl_status rc = mrl_plan_gemv(r->dev, &work, &r->how.gate_up, &plan, err);
        if (rc != MRL_OK)
            return rc;
    } else {
        plan_gemm(r, p, &plan);
    }
    return dispatch_product(r, p, gemm ? r->how.kernel : MRL_KERNEL_moe_gemv, &plan, err);
}

static mrl_status gate_up(const routed *r, const mrl_moe_stack *stack, bool beside, mrl_error *err)
{
    const product p = {.w = stack->gate_up,
                       .places = stack->places,
                       .x = &r->x,
                       .y = &r->act,
                       .norm = r->norm,
                       .n = 2 * r->inner,
                       .slots = r->slots,
                       .activation = r->args->layer->activation,
                       .beside = beside,
                       .choice = &r->choice};
    return pair_product(r, &p, err);
}

static mrl_status down_of_pairs(const routed *r, const mrl_moe_stack *stack, const mrl_view *parts, bool beside,
                                mrl_error *err)
{
    const product p = {.w = stack->down,
                       .places = stack->places,
                       .x = &r->act,
                       .y = parts,
                       .n = r->hidden,
                       .slots = 1,
                       .beside = beside};
    return pair_product(r, &p, err);
}

/* The weighted sums as well, where all experts lie in one stack. */
static mrl_status down_by_rows(const routed *r, mrl_error *err)
{
    const mrl_weight *w = r->args->layer->stacks[0].down;
    const mrl_gemv_work work = {.w = w,
                                .n = r->hidden,
                                .length = r->slots * w->k_padded,
                                .m = 1,
                                .copies = r->rows,
                                .x = r->act.dtype,
                                .y = r->args->y.dtype,
                                .staged = r->args->kernel != NULL};
    const product p = {.w = w,
                       .x = &r->act,
                       .y = &r->args->y,
                       .residual = r->args->residual,
                       .n = r->hidden,
                       .slots = r->slots};
    mrl_gemv_plan plan = {0};

    mrl_status rc = mrl_plan_gemv(r->dev, &work, &r->how.down, &plan, err);
    return rc != MRL_OK ? rc : dispatch_product(r, &p, MRL_KERNEL_moe_down, &plan, err);
}

static mrl_status plan_tiles(const routed *r, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    const mrl_device_info *info = mrl_device_info_of(r->dev);
    const uint32_t most = info->max_workgroup < 1024 ? info->max_workgroup : 1024;
    const uint32_t lanes = mrl_device_is_software(r->dev) ? info->subgroup_max : most;
    const uint32_t spec[] = {lanes, r->args->layer->experts + r->args->layer->shared, r->how.tile};
    const mrl_push_moe_plan push = {.ids = mrl_view_address(&r->ids),
                                    .tiles = mrl_view_address(&r->tiles),
                                    .order = mrl_view_address(&r->order),
                                    .pairs = r->pairs,
                                    .bound = r->bound};
    const mrl_range reads[] = {mrl_view_range(&r->ids)};
    const mrl_range writes[] = {mrl_view_range(&r->tiles), mrl_view_range(&r->order)};

    MRL_TRY(mrl_pipeline_get(r->dev, MRL_KERNEL_moe_plan, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 3, &pipeline, err));
    const mrl_dispatch d = {.pipeline = pipeline, .push = &push,     .push_bytes = sizeof push, .groups = {1, 1, 1},
                            .reads = reads,       .nreads = 1,       .writes = writes,          .nwrites = 2};
    MRL_TRY(mrl_stream_dispatch(r->dev, &d, err));
done:
    return rc;
}

static mrl_status combine(const routed *r, const mrl_view *parts, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    const mrl_moe_args *args = r->args;
    const uint32_t lanes = mrl_device_is_software(r->dev) ? mrl_device_info_of(r->dev)->subgroup_max : 256;
    const uint32_t spec[] = {lanes, (uint32_t)args->y.dtype};
    const mrl_push_moe_combine push = {.x = mrl_view_address(parts),
                                       .ids = mrl_view_address(&r->ids),
                                       .weights = mrl_view_address(&r->weights),
                                       .residual = mrl_view_address(&args->residual),
                                       .y = mrl_view_address(&args->y),
                                       .n = r->hidden,
                                       .slots = r->slots};
    const mrl_range reads[] = {mrl_view_range(parts), mrl_view_range(&r->ids), mrl_view_range(&r->weights),
                               mrl_view_range(&args->residual)};
    const mrl_range writes[] = {mrl_view_range(&args->y)};

    MRL_TRY(mrl_pipeline_get(r->dev, MRL_KERNEL_moe_combine, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 2, &pipeline, err));
    const mrl_dispatch d = {.pipeline = pipeline,
                            .push = &push,
                            .push_bytes = sizeof push,
                            .groups = {mrl_div_up(r->hidden, lanes), r->rows, 1},
                            .reads = reads,
                            .nreads = 4,
                            .writes = writes,
                            .nwrites = 1};
    MRL_TRY(mrl_stream_dispatch(r->dev, &d, err));
done:
    return rc;
}

/* ---- trellises ---- */

enum { GATE, UP, DOWN };

/* Of "trellis_moe_gemv@tile,splits"; 0: none. */
static uint32_t splits_asked(const mrl_moe_args *args)
{
    uint32_t splits = 0;
    return args->kernel != NULL && sscanf(args->kernel, "%*[a-z_]@%*u,%u", &splits) == 1 ? splits : 0;
}

/* Whether the products of DOWN are summed up where they are made. */
static bool trellis_sums(const routed *r)
{
    const mrl_moe_layer *layer = r->args->layer;
    return layer->nstacks == 1 && is_trellis(&layer->stacks[0]) && layer->stacks[0].places == NULL &&
           r->how.tile == 0 && mrl_trellis_sums(r->slots);
}

static mrl_trellis_experts_args trellis_args(const routed *r, const mrl_moe_stack *stack, int which,
                                             const mrl_view *gate, const mrl_view *y, bool beside)
{
    const bool sum = which == DOWN && trellis_sums(r);
    const mrl_moe_layer *layer = r->args->layer;
    const uint64_t counters = mrl_moe_pair_counters(layer) / 2 * sizeof(uint32_t);
    mrl_choice choice = r->choice;
    if (which == DOWN)
        choice.told = (mrl_view){0};
    if (which != GATE)
        choice.ids = choice.weights = choice.usage = (mrl_view){0};
    return (mrl_trellis_experts_args){.t = stack->trellis[which],
                                      .x = which == DOWN ? r->act : r->x,
                                      .norm = which == DOWN ? (mrl_view){0} : r->norm,
                                      .ids = r->ids,
                                      .places = stack->places,
                                      .tiles = r->tiles,
                                      .order = r->order,
                                      .tile = r->how.tile ? r->how.tile : 1,
                                      .gate = which == DOWN ? *gate : (mrl_view){0},
                                      .y = *y,
                                      .counters = {layer->pair_counters, which == UP ? counters : 0, counters},
                                      .slots = which == DOWN && !sum ? 1 : r->slots,
                                      .weights = sum ? r->weights : (mrl_view){0},
                                      .residual = sum ? r->args->residual : (mrl_view){0},
                                      .splits = splits_asked(r->args),
                                      .eps = r->args->eps,
                                      .activation = layer->activation, /* of the gate, where there is one */
                                      .int8 = r->args->int8,
                                      .beside = beside,
                                      .choice = choice};
}

static mrl_status trellis_product(const routed *r, const mrl_moe_stack *stack, int which, const mrl_view *gate,
                                  const mrl_view *y, bool beside, mrl_buffer **sums, mrl_error *err)
{
    const mrl_trellis_experts_args args = trellis_args(r, stack, which, gate, y, beside);
    return mrl_op_trellis_experts(r->dev, &args, sums, err);
}

/* Gate and up stay in shares, which down adds up: nobody waits between. */
static mrl_status trellis_in_shares(const routed *r, uint32_t count, mrl_error *err)
{
    mrl_status rc;
    const mrl_moe_stack *stack = &r->args->layer->stacks[0];
    const mrl_view open = {.dtype = MRL_DTYPE_f32, .ndim = 2, .shape = {r->pairs, r->inner}};
    mrl_buffer *gate = NULL, *up = NULL, *sums = NULL;

    MRL_TRY(trellis_product(r, stack, GATE, NULL, &open, false, &gate, err));
    MRL_TRY(trellis_product(r, stack, UP, NULL, &open, false, &up, err));
    mrl_trellis_experts_args down = trellis_args(r, stack, DOWN, &(mrl_view){0}, &r->args->y, false);
    down.x.buffer = NULL;
    down.x_shares = (mrl_shares){up, count};
    down.gate_shares = (mrl_shares){gate, count};
    /* Whoever takes them loads the residual four elements at a time. */
    const bool aligned = r->hidden % 8 == 0 && mrl_view_address(&r->args->residual) % 16 == 0;
    const uint32_t left = r->args->open != NULL && aligned ? mrl_trellis_experts_shares(r->dev, &down) : 0;
    if (left > 0) {
        down.y = (mrl_view){.dtype = MRL_DTYPE_f32, .ndim = 2, .shape = {1, r->hidden}};
        down.residual = (mrl_view){0};
    }
    MRL_TRY(mrl_op_trellis_experts(r->dev, &down, &sums, err));
    if (left > 0) {
        *r->args->open = (mrl_shares){sums, left * r->slots};
        sums = NULL;
    }
done:
    mrl_buffer_release(gate);
    mrl_buffer_release(up);
    mrl_buffer_release(sums);
    return rc;
}

/* How many shares gate and up may stay in; 0: they do not. */
static uint32_t trellis_shares(const routed *r)
{
    const mrl_moe_stack *stack = &r->args->layer->stacks[0];
    if (!trellis_sums(r) || stack->trellis[DOWN]->k % 8 != 0) return 0;
    const mrl_trellis_experts_args gate = trellis_args(r, stack, GATE, NULL, &r->act, false);
    const mrl_trellis_experts_args up = trellis_args(r, stack, UP, NULL, &r->act, false);
    const uint32_t count = mrl_trellis_experts_shares(r->dev, &gate);
    return count > 1 && mrl_trellis_experts_shares(r->dev, &up) == count ? count : 0;
}

uint32_t mrl_moe_pair_counters(const mrl_moe_layer *layer)
{
    uint32_t most = 0;
    for (uint32_t s = 0; s < layer->nstacks; s++)
        for (int i = 0; i < 3 && is_trellis(&layer->stacks[s]); i++)
            most = layer->stacks[s].trellis[i]->n_padded > most ? layer->stacks[s].trellis[i]->n_padded : most;
    return 2 * MRL_TRELLIS_PAIRS * (most / MRL_TRELLIS_BLOCK);
}

static mrl_status check_trellises(const mrl_moe_layer *layer, const mrl_moe_stack *stack, mrl_error *err)
{
    static const char *const names[] = {"gate", "up", "down"};

    for (int i = GATE; i <= DOWN; i++) {
        const mrl_trellis *t = stack->trellis[i];
        const uint32_t n = i == DOWN ? layer->hidden : layer->inner, k = i == DOWN ? layer->inner : layer->hidden;
        if (t->experts != stack->experts || t->n != n || t->k != k)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: %s must be %u experts of (%u, %u), it is %u of (%u, %u)",
                            names[i], stack->experts, n, k, t->experts, t->n, t->k);
    }
    return MRL_OK;
}

/* ---- all stacks ---- */

/* One product of every stack that has it, beside each other: GATE for trellises; UP into the activations, for trellises
 * without the gate, so that both run beside each other; DOWN, which multiplies by the gate there, into the parts. sums:
 * what workgroups tell each other, a buffer a stack; to be kept while another product shall run beside this one. */
static mrl_status stacks_product(const routed *r, int which, const mrl_view *gate, const mrl_view *y,
                                 mrl_buffer **sums, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    const mrl_moe_layer *layer = r->args->layer;
    bool beside = false;

    for (uint32_t i = 0; i < layer->nstacks; i++) {
        const mrl_moe_stack *stack = &layer->stacks[i];
        if (is_trellis(stack))
            MRL_TRY(trellis_product(r, stack, which, gate, y, beside, &sums[i], err));
        else if (which == UP)
            MRL_TRY(gate_up(r, stack, beside, err));
        else if (which == DOWN)
            MRL_TRY(down_of_pairs(r, stack, y, beside, err));
        else
            continue;
        beside = true;
    }
done:
    return rc;
}

/* The chosen experts of each pair, and the weighted sums of the pairs of a row. */
static mrl_status mix_pairs(const routed *r, mrl_error *err)
{
    mrl_status rc;
    const mrl_moe_layer *layer = r->args->layer;
    const bool fused = layer->nstacks == 1 && !is_trellis(&layer->stacks[0]) && r->how.tile == 0;
    mrl_buffer *sums[3][MRL_MOE_STACKS_MAX] = {0};
    mrl_view gate = {0}, parts = {0};

    if (has_trellises(layer)) {
        const uint32_t shares = trellis_shares(r);
        if (shares > 0)
            return trellis_in_shares(r, shares, err);
        MRL_TRY(mrl_view_create(r->dev, r->args->dtype, r->pairs, r->inner, &gate, err));
        MRL_TRY(stacks_product(r, GATE, NULL, &gate, sums[GATE], err));
    }
    MRL_TRY(stacks_product(r, UP, NULL, &r->act, sums[UP], err));
    if (fused) {
        MRL_TRY(down_by_rows(r, err));
        goto done;
    }
    if (trellis_sums(r)) {
        MRL_TRY(stacks_product(r, DOWN, &gate, &r->args->y, sums[DOWN], err));
        goto done;
    }
    MRL_TRY(mrl_view_create(r->dev, MRL_DTYPE_f32, r->pairs, r->hidden, &parts, err));
    MRL_TRY(stacks_product(r, DOWN, &gate, &parts, sums[DOWN], err));
    MRL_TRY(combine(r, &parts, err));
done:
    for (int which = GATE; which <= DOWN; which++)
        for (uint32_t i = 0; i < layer->nstacks; i++)
            mrl_buffer_release(sums[which][i]);
    mrl_buffer_release(gate.buffer);
    mrl_buffer_release(parts.buffer);
    return rc;
}

/* ---- choice ---- */

/* The dtype in which a normalised x is best kept: as the kernels will multiply it. */
static mrl_dtype normal_dtype(mrl_device *dev, const mrl_moe_args *args)
{
    const mrl_moe_layer *layer = args->layer;
    bool f32 = has_trellises(layer) && !mrl_device_has(dev, MRL_BIT(fp16));

    for (uint32_t i = 0; i < layer->nstacks; i++)
        f32 |= !is_trellis(&layer->stacks[i]) && mrl_wants_f32(layer->stacks[i].gate_up->format, args->x.dtype, true);
    return f32 ? MRL_DTYPE_f32 : MRL_DTYPE_f16;
}

static bool coopmat_can(mrl_device *dev, const mrl_moe_args *args)
{
    const mrl_moe_layer *layer = args->layer;
    const mrl_dtype x = args->norm.buffer != NULL ? normal_dtype(dev, args) : args->x.dtype;

    for (uint32_t i = 0; i < 2 * layer->nstacks; i++) {
        const mrl_moe_stack *stack = &layer->stacks[i / 2];
        const mrl_weight *w = i % 2 ? stack->down : stack->gate_up;
        if (!mrl_pipeline_available(dev, MRL_KERNEL_moe_gemm_coopmat, w->format, MRL_MATH_F16) || w->k % 8 != 0)
            return false;
    }
    return mrl_device_info_of(dev)->subgroup_size == 32 &&
           mrl_device_info_of(dev)->shared_bytes >= COOPMAT_SHARED(256, 128) && x == MRL_DTYPE_f16 &&
           args->dtype == MRL_DTYPE_f16 &&
           (args->norm.buffer != NULL || args->x.offset % 16 == 0);
}

/* Low tiles where few pairs go to an expert, for rows that are not there are multiplied too; high ones decode an
 * expert less often. */
static uint32_t coopmat_tile(uint64_t pairs, uint32_t experts)
{
    const uint64_t mean = pairs / experts;
    return mean <= 32 ? 32 : mean <= 96 ? 64 : mean <= 256 ? 128 : 256;
}

static strategy best(mrl_device *dev, const mrl_moe_args *args)
{
    const uint32_t experts = args->layer->experts;
    const uint64_t rows = args->x.shape[0], pairs = rows * args->layer->top_k;

    /* A CPU gains nothing from tiles (see row_by_row of matmul.c). On a GPU two dispatches more cost less than
     * reading experts twice, once the pairs are half as many as the experts. */
    if (mrl_device_is_software(dev) || rows == 1 || (rows <= MRL_GEMV_MAX_ROWS && 2 * pairs <= experts))
        return (strategy){.kernel = MRL_KERNEL_moe_gemv, .tile = 0};
    if (rows <= MRL_GEMV_MAX_ROWS)
        return (strategy){.kernel = MRL_KERNEL_moe_gemv, .tile = pairs <= 2 * (uint64_t)experts ? 2 : 4};
    if (coopmat_can(dev, args))
        return (strategy){.kernel = MRL_KERNEL_moe_gemm_coopmat, .tile = coopmat_tile(pairs, experts)};
    return (strategy){.kernel = MRL_KERNEL_moe_gemm, .tile = GEMM_TILE};
}

/* Pairs of a tile for trellises where there are matrix units; those of 2 do without. By measurement on an H200 (64
 * experts of 2048 x 1536, 128 of 2048 x 768, 512 of 2048 x 512). */
static uint32_t matrix_tile(uint64_t pairs, uint64_t experts)
{
    return 2 * pairs <= 7 * experts ? 2 : pairs <= 8 * experts ? 16 : pairs <= 28 * experts ? 32 : 64;
}

static mrl_status choose_trellis(mrl_device *dev, const mrl_moe_args *args, strategy *out, mrl_error *err)
{
    const uint64_t rows = args->x.shape[0], experts = args->layer->experts, pairs = rows * args->layer->top_k;
    const mrl_dtype x = args->norm.buffer != NULL ? normal_dtype(dev, args) : args->x.dtype;
    const bool alone = !has_matrices(args->layer); /* others go through moe_gemv, 8 pairs at most */
    const bool matrices =
        alone && mrl_trellis_matrices(dev) && x == MRL_DTYPE_f16 && args->dtype == MRL_DTYPE_f16;
    const uint32_t most = matrices ? 64 : alone ? 16 : 8;
    char name[32] = "";
    uint32_t tile = 0;

    if (args->kernel == NULL) {
        if (!mrl_device_is_software(dev) && rows > 1 && 2 * pairs > experts)
            tile = matrices ? matrix_tile(pairs, experts) : pairs <= 2 * experts ? 2 : pairs <= 8 * experts ? 4 : 8;
    } else if (sscanf(args->kernel, "%31[a-z_]@%u", name, &tile) < 1 || tile > most ||
               (tile & (tile - 1)) != 0 ||
               strcmp(name, mrl_kernel_name(MRL_KERNEL_trellis_moe_gemv)) != 0 || splits_asked(args) > 65535) {
        return mrl_fail(err, MRL_ERR_VALUE, "moe: there is no kernel %s for trellises", args->kernel);
    }
    *out = (strategy){.kernel = MRL_KERNEL_trellis_moe_gemv, .tile = tile};
    return MRL_OK;
}

/* "rows@rows,split,prefetch,lanes,workgroups", of gate_up and, behind a slash, of down: what gemv is tuned by. */
static mrl_status parse_rows(const char *text, strategy *out, mrl_error *err)
{
    static const uint32_t most[] = {8, 32, 16, 1024, 65536}; /* a power of two each, but for the last */
    mrl_gemv_tuning *const both[] = {&out->gate_up, &out->down};

    for (int i = 0; i < 2 && text != NULL; i++, text = strchr(text + 1, '/')) {
        uint32_t v[5] = {0};
        sscanf(text, i == 0 ? "rows@%u,%u,%u,%u,%u" : "/%u,%u,%u,%u,%u", &v[0], &v[1], &v[2], &v[3], &v[4]);
        for (int j = 0; j < 5; j++)
            if (v[j] > most[j] || (j < 4 && (v[j] & (v[j] - 1)) != 0))
                return mrl_fail(err, MRL_ERR_VALUE, "moe: kernel \"%s\" asks for what cannot be tuned", text);
        *both[i] = (mrl_gemv_tuning){v[0], v[1], v[2], v[3], v[4]};
    }
    return MRL_OK;
}

static mrl_status choose(mrl_device *dev, const mrl_moe_args *args, strategy *out, mrl_error *err)
{
    static const struct {
        const char *name;
        strategy standard;
        uint32_t least, most; /* tile that may be asked for, a power of two */
    } known[] = {{"rows", {.kernel = MRL_KERNEL_moe_gemv, .tile = 0}, 0, 0},
                 {"moe_gemv", {.kernel = MRL_KERNEL_moe_gemv, .tile = 4}, 1, 8},
                 {"moe_gemm", {.kernel = MRL_KERNEL_moe_gemm, .tile = GEMM_TILE}, GEMM_TILE, GEMM_TILE},
                 {"moe_gemm_coopmat", {.kernel = MRL_KERNEL_moe_gemm_coopmat, .tile = 64}, 32, 256}};
    char name[32] = "";
    uint32_t tile = 0, columns = 0;

    if (has_trellises(args->layer))
        return choose_trellis(dev, args, out, err);
    int parts = args->kernel == NULL ? 0 : sscanf(args->kernel, "%31[a-z_]@%u,%u", name, &tile, &columns);
    *out = best(dev, args);
    if (args->kernel == NULL)
        return MRL_OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0)
            continue;
        *out = known[i].standard;
        if (out->kernel == MRL_KERNEL_moe_gemv && out->tile == 0)
            return parse_rows(args->kernel, out, err);
        const bool coopmat = known[i].standard.kernel == MRL_KERNEL_moe_gemm_coopmat;
        if ((parts >= 2 && (tile < known[i].least || tile > known[i].most || (tile & (tile - 1)) != 0)) ||
            (parts == 3 && (!coopmat || columns < 1 || columns > 2 || columns * tile > 256)))
            return mrl_fail(err, MRL_ERR_VALUE, "moe: kernel \"%s\" asks for a tile that there is not", args->kernel);
        if (parts >= 2)
            out->tile = tile;
        out->columns = 128 * columns;
        if (out->kernel == MRL_KERNEL_moe_gemm_coopmat && !coopmat_can(dev, args))
            return mrl_fail(err, MRL_ERR_VALUE, "moe: kernel %s cannot do this product on %s", name,
                            mrl_device_info_of(dev)->name);
        return MRL_OK;
    }
    return mrl_fail(err, MRL_ERR_VALUE, "moe: there is no kernel called %s", args->kernel);
}

/* ---- the op ---- */

static bool dense(const mrl_weight *w)
{
    return w->format == MRL_FORMAT_f32 || w->format == MRL_FORMAT_f16 || w->format == MRL_FORMAT_bf16;
}

static mrl_status check_choice(const mrl_moe_layer *layer, mrl_error *err)
{
    const uint32_t limit = layer->experts < MRL_MOE_TOP_K_MAX ? layer->experts : MRL_MOE_TOP_K_MAX;

    if (layer->experts < 1 || layer->experts + layer->shared > MRL_MOE_EXPERTS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: experts must be 1 to %u, shared ones included, got %u and %u",
                        MRL_MOE_EXPERTS_MAX, layer->experts, layer->shared);
    if (layer->top_k < 1 || layer->top_k > limit)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: top_k must be 1 to %u with %u experts, got %u", limit, layer->experts,
                        layer->top_k);
    if (mrl_moe_slots(layer) > MRL_MOE_SLOTS_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: top_k and shared must be at most %u together, got %u",
                        MRL_MOE_SLOTS_MAX, mrl_moe_slots(layer));
    if (layer->groups < 1 || layer->experts % layer->groups != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: groups must divide the %u experts, got %u", layer->experts,
                        layer->groups);
    if (layer->top_groups < 1 || layer->top_groups > layer->groups ||
        layer->experts / layer->groups * layer->top_groups < layer->top_k)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: top_groups must be 1 to %u and leave top_k %u experts, got %u",
                        layer->groups, layer->top_k, layer->top_groups);
    if (layer->group_best < 1 || layer->group_best > 2)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: group_best must be 1 or 2, got %u", layer->group_best);
    if (!mrl_activation_gated(layer->activation))
        return mrl_fail(err, MRL_ERR_VALUE, "moe: activation must be a gated one");
    return MRL_OK;
}

static mrl_status check_stack(const mrl_moe_layer *layer, const mrl_moe_stack *stack, mrl_error *err)
{
    const uint32_t count = stack->experts, hidden = layer->hidden, inner = layer->inner;

    if (is_trellis(stack))
        return check_trellises(layer, stack, err);
    if (stack->gate_up->k != hidden || (uint64_t)count * 2 * inner != stack->gate_up->n)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "moe: gate_up must have %u rows of %u for %u experts of %u, it is (%u, %u)", count * 2 * inner,
                        hidden, count, inner, stack->gate_up->n, stack->gate_up->k);
    if (stack->down->k != inner || (uint64_t)count * hidden != stack->down->n)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "moe: down must have %u rows of %u for %u experts and %u columns of x, it is (%u, %u)",
                        count * hidden, inner, count, hidden, stack->down->n, stack->down->k);
    return MRL_OK;
}

mrl_status mrl_moe_check(mrl_device *dev, const mrl_moe_layer *layer, mrl_error *err)
{
    mrl_status rc;
    const uint32_t hidden = layer->hidden;

    MRL_TRY(check_choice(layer, err));
    if (!dense(layer->router))
        return mrl_fail(err, MRL_ERR_TYPE, "moe: the router must be f32, f16 or bf16");
    const bool gate = layer->router->n == layer->experts + 1 && layer->shared > 0;
    if (layer->router->k != hidden || (layer->router->n != layer->experts && !gate))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "moe: router must be (%u, %u), or a row more to gate shared experts, got (%u, %u)",
                        layer->experts, hidden, layer->router->n, layer->router->k);
    for (uint32_t i = 0; i < layer->nstacks; i++)
        MRL_TRY(check_stack(layer, &layer->stacks[i], err));
    if (layer->bias.buffer != NULL)
        MRL_TRY(mrl_view_check(&layer->bias, dev, "moe", "bias", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){layer->experts},
                               err));
done:
    return rc;
}

/* Stacks that are no trellises have no such kernel and would say nothing. */
static mrl_status check_int8(const mrl_moe_args *args, mrl_error *err)
{
    const mrl_moe_layer *layer = args->layer;

    for (uint32_t s = 0; s < layer->nstacks && args->int8; s++)
        for (int i = GATE; i <= DOWN; i++)
            if (!is_trellis(&layer->stacks[s]) || layer->stacks[s].trellis[i]->codebook != MRL_CODEBOOK_MUL1)
                return mrl_fail(err, MRL_ERR_VALUE,
                                "moe: activations in int8 need experts that are all trellises of mul1");
    return MRL_OK;
}

mrl_status mrl_moe_check_input(mrl_device *dev, const mrl_moe_args *args, mrl_error *err)
{
    mrl_status rc;
    const uint32_t hidden = args->layer->hidden;

    if (args->x.ndim != 2)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: x must have 2 dimensions (m, %u), got %d", hidden, args->x.ndim);
    const uint64_t m = args->x.shape[0];
    MRL_TRY(mrl_view_check(&args->x, dev, "moe", "x", MRL_DTYPES_ACT, 2, (uint64_t[]){m, hidden}, err));
    if (args->norm.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->norm, dev, "moe", "norm", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){hidden}, err));
    if (args->positions.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->positions, dev, "moe", "positions", MRL_DTYPE_BIT(i32), 1, (uint64_t[]){m}, err));
done:
    return rc;
}

/* The last dispatch writes y while it reads the residual, each element in the thread that writes it, and rows that are
 * walked later still need their x, norm and positions. */
static mrl_status check_overlap(const mrl_moe_args *args, mrl_error *err)
{
    const struct {
        const char *name;
        const mrl_view *view;
        bool in_place; /* may be the very memory of y */
    } inputs[] = {{"x", &args->x, true},
                  {"residual", &args->residual, true},
                  {"norm", &args->norm, false},
                  {"positions", &args->positions, false}};

    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        const mrl_view *view = inputs[i].view;
        const bool same = inputs[i].in_place && args->y.dtype == view->dtype &&
                          mrl_view_address(&args->y) == mrl_view_address(view);
        if (mrl_views_overlap(&args->y, view) && !same)
            return mrl_fail(err, MRL_ERR_VALUE, "moe: out must not share memory with %s", inputs[i].name);
    }
    return MRL_OK;
}

static void release(routed *r, const mrl_view *normalised)
{
    mrl_buffer_release(normalised->buffer);
    mrl_buffer_release(r->ids.buffer);
    mrl_buffer_release(r->act.buffer);
    mrl_buffer_release(r->tiles.buffer);
    mrl_buffer_release(r->order.buffer);
}

/* On a CPU a chooser costs what its lanes do, and there are hundreds. */
bool mrl_moe_leaves_choice(mrl_device *dev, const mrl_moe_layer *layer)
{
    return !mrl_device_is_software(dev) && mrl_route_can_stay_open(dev, layer);
}

/* Whether the experts' first products choose; on CPUs, too, where a kernel was asked for by name. */
static bool leaves_choice(const routed *r)
{
    const mrl_kernel kernel = r->how.kernel;
    return r->rows == 1 && r->how.tile == 0 &&
           (kernel == MRL_KERNEL_moe_gemv || kernel == MRL_KERNEL_trellis_moe_gemv) &&
           (r->args->kernel != NULL ? mrl_route_can_stay_open(r->dev, r->args->layer)
                                    : mrl_moe_leaves_choice(r->dev, r->args->layer));
}

/* Checked rows whose pairs fit one walk. */
static mrl_status mix(mrl_device *dev, const mrl_moe_args *args, const strategy *how, mrl_error *err)
{
    mrl_status rc;
    const mrl_moe_layer *layer = args->layer;
    const uint32_t all = layer->experts + layer->shared, slots = mrl_moe_slots(layer);
    const uint32_t rows = (uint32_t)args->x.shape[0];
    routed r = {.dev = dev,
                .args = args,
                .rows = rows,
                .slots = slots,
                .pairs = rows * slots,
                .inner = layer->inner,
                .hidden = layer->hidden,
                .x = args->x,
                .norm = args->norm,
                .how = *how};
    mrl_view normalised = {0};

    MRL_TRY(mrl_view_create(dev, MRL_DTYPE_i32, rows, 2 * slots, &r.ids, err));
    r.ids.shape[1] = slots;
    r.weights = r.ids; /* lie behind them, as open_choice.glsl wants it */
    r.weights.dtype = MRL_DTYPE_f32;
    r.weights.offset = mrl_view_bytes(&r.ids);
    MRL_TRY(mrl_view_create(dev, args->dtype, r.pairs, r.inner, &r.act, err));
    if (leaves_choice(&r))
        MRL_TRY(mrl_route_open(dev, args, &r.ids, &r.weights, &r.choice, err));
    else
        MRL_TRY(mrl_route(dev, args, &r.ids, &r.weights, err));
    const bool by_rows = r.how.kernel == MRL_KERNEL_moe_gemv ||
                         (r.how.kernel == MRL_KERNEL_trellis_moe_gemv && r.how.tile < 16);
    if (r.norm.buffer != NULL && (rows > 1 || !by_rows)) {
        /* Otherwise every workgroup of every pair would do it. */
        MRL_TRY(mrl_rms_norm_new(&args->x, &args->norm, args->eps, normal_dtype(dev, args), &normalised, err));
        r.x = normalised;
        r.norm = (mrl_view){0};
    }
    if (r.how.tile > 0) {
        /* Every expert may end in a tile that is not full; no more tiles than pairs. */
        const uint32_t full = r.pairs / r.how.tile + all;
        r.bound = full < r.pairs ? full : r.pairs;
        MRL_TRY(mrl_view_create(dev, MRL_DTYPE_i32, r.bound, 3, &r.tiles, err));
        MRL_TRY(mrl_view_create(dev, MRL_DTYPE_i32, r.pairs, 1, &r.order, err));
        MRL_TRY(plan_tiles(&r, err));
    }
    MRL_TRY(mix_pairs(&r, err));
done:
    release(&r, &normalised);
    return rc;
}

mrl_status mrl_op_moe(mrl_device *dev, const mrl_moe_args *given, mrl_error *err)
{
    mrl_status rc;
    mrl_moe_args args = *given;
    const mrl_moe_layer *layer = args.layer;
    mrl_buffer *x_copy = NULL, *norm_copy = NULL;
    const uint32_t hidden = layer->hidden, inner = layer->inner, wide = hidden > 2 * inner ? hidden : 2 * inner;

    MRL_TRY(mrl_moe_check_input(dev, &args, err));
    const uint64_t m = args.x.shape[0], shape[] = {m, hidden};
    MRL_TRY(mrl_view_check(&args.y, dev, "moe", "out", MRL_DTYPES_ACT, 2, shape, err));
    if (args.residual.buffer != NULL)
        MRL_TRY(mrl_view_check(&args.residual, dev, "moe", "residual", MRL_DTYPE_BIT(f32), 2, shape, err));
    MRL_TRY(check_overlap(&args, err));
    MRL_TRY(check_int8(&args, err));
    /* Kernels count elements in 31 bits and workgroups in 16. */
    strategy how;
    MRL_TRY(choose(dev, &args, &how, err));
    if (m != 1 || args.residual.buffer == NULL)
        args.open = NULL;
    const uint32_t all = layer->experts + layer->shared;
    const uint64_t pairs = (uint64_t)INT32_MAX / wide;
    const uint64_t most = has_trellises(layer) ? mrl_trellis_pairs(how.tile, all) : PAIRS_MAX;
    const uint64_t step = (pairs < most ? pairs : most) / mrl_moe_slots(layer);
    if (step == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "moe: %u experts of %u are too large for one row",
                        mrl_moe_slots(layer), wide);
    MRL_TRY(mrl_view_align(&args.x, dev, &x_copy, err));
    MRL_TRY(mrl_view_align(&args.norm, dev, &norm_copy, err));
    const mrl_view x = args.x;
    for (uint64_t first = 0; first < m; first += step) {
        const uint64_t count = m - first < step ? m - first : step;
        args.x = mrl_view_rows(&x, first, count);
        args.residual = mrl_view_rows(&given->residual, first, count);
        args.positions = mrl_view_rows(&given->positions, first, count);
        args.y = mrl_view_rows(&given->y, first, count);
        MRL_TRY(mix(dev, &args, &how, err));
    }
done:
    mrl_buffer_release(x_copy);
    mrl_buffer_release(norm_copy);
    return rc;
}
