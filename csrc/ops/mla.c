#include "ops/mla.h"

#include "ops/mla_call.h"
#include "ops/quantize.h"

_Static_assert(sizeof(mrl_push_mla) <= 128, "push constants");

#define PARTIAL_EXTRA 16u  /* bytes beside O in a chunk's result (mla_partial of mla.glsl) */
#define STAGE_BYTES 20480u /* of cache rows in shared memory */
#define DIM_MAX 1024u      /* of nope and v_dim */

mrl_status mrl_mla_dims(const mrl_kv *kv, const mrl_mla_args *args, uint32_t *nope, uint32_t *v_dim, mrl_error *err)
{
    uint32_t rope_dim = kv->dim - kv->rank, heads = args->heads;

    if (kv->rank == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "mla: the cache holds keys and values, it needs one with a rank");
    if (args->q.ndim != 2 || heads == 0 || args->q.shape[1] % heads != 0 || args->q.shape[1] / heads <= rope_dim ||
        args->q.shape[1] / heads > rope_dim + DIM_MAX)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "mla: q must be (rows, heads * (nope + %u)) for %u heads, nope up to %u, got %llu columns",
                        rope_dim, heads, DIM_MAX, (unsigned long long)(args->q.ndim == 2 ? args->q.shape[1] : 0));
    *nope = (uint32_t)(args->q.shape[1] / heads) - rope_dim;
    if (args->kv_b->k != kv->rank || args->kv_b->n % heads != 0 || args->kv_b->n / heads <= *nope ||
        args->kv_b->n / heads > *nope + DIM_MAX)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "mla: kv_b must be (heads * (%u + v_dim), %u) for %u heads, v_dim up to %u, got (%u, %u)",
                        *nope, kv->rank, heads, DIM_MAX, args->kv_b->n, args->kv_b->k);
    *v_dim = args->kv_b->n / heads - *nope;
    return MRL_OK;
}

static mrl_status check(const mrl_kv *kv, const mrl_mla_args *args, const mrl_view *y, uint32_t v_dim, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(kv->k);
    const mrl_device_info *info = mrl_device_info_of(dev);
    uint64_t rows = args->q.shape[0], rank = kv->rank, half = (kv->dim - kv->rank) / 2;

    if (mrl_buffer_device(args->kv_b->quant) != dev)
        return mrl_fail(err, MRL_ERR_VALUE, "mla: kv_b is on another device than the cache");
    if (args->q_shares.count > 0)
        MRL_TRY(mrl_shares_check(&args->q_shares, &args->q, dev, "mla", "q", 1, args->q.shape[1], err));
    else
        MRL_TRY(mrl_view_check(&args->q, dev, "mla", "q", MRL_DTYPES_ACT, 2, args->q.shape, err));
    MRL_TRY(mrl_view_check(&args->kv, dev, "mla", "kv", MRL_DTYPES_ACT, 2, (uint64_t[]){rows, kv->dim}, err));
    MRL_TRY(mrl_view_check(&args->norm, dev, "mla", "norm", MRL_DTYPE_BIT(f32), 1, &rank, err));
    MRL_TRY(mrl_view_check(&args->freq, dev, "mla", "freq", MRL_DTYPE_BIT(f32), 1, &half, err));
    MRL_TRY(mrl_view_check(&args->positions, dev, "mla", "positions", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(&args->slots, dev, "mla", "slots", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(y, dev, "mla", "out", MRL_DTYPES_ACT, 2, (uint64_t[]){rows, (uint64_t)args->heads * v_dim},
                           err));
    if (args->bound < 1 || args->bound > kv->context)
        return mrl_fail(err, MRL_ERR_VALUE, "mla: bound must be 1 to %u (the cache's context), got %u", kv->context,
                        args->bound);
    if (rows > info->max_groups[0] || rows > info->max_groups[2] || args->heads > info->max_groups[1])
        return mrl_fail(err, MRL_ERR_VALUE, "mla: %llu rows of %u heads are more than the device takes",
                        (unsigned long long)rows, args->heads);
    if (args->q.shape[1] > INT32_MAX / 4)
        rc = mrl_fail(err, MRL_ERR_VALUE, "mla: q has too many columns");
done:
    return rc;
}

/* How decode.comp divides its work; the fields are its specialization constants. */
typedef struct decode_plan {
    bool matrices; /* decode_coopmat.comp: constants of mla.glsl alone */
    uint32_t lanes, group, tile, team, streams, staged, stage, work, keys;
    uint32_t blocks, chunks;
} decode_plan;

static uint32_t power_of_two_down(uint32_t n)
{
    while (n & (n - 1)) n &= n - 1;
    return n;
}

/* Of the positions: so that about `wanted` workgroups, which fill the device, have at least `least` positions each. */
static uint32_t chunks_of(uint32_t others, uint32_t bound, uint32_t wanted, uint32_t least)
{
    return mrl_max_u32(1, mrl_min_u32(wanted / others, mrl_div_up(bound, least)));
}

/* A GPU gets 8 teams of one head each: 4 heads, whose positions two teams share. A CPU compiles little
 * code soon: one team, one head, one position (llvmpipe, 2 cores, rows of 384: 0.7 s to compile, 0.8 ms
 * for 4 heads at position 100; two heads a team take 10 s and 0.6 ms, and four positions 2 s and 1 ms). */
static decode_plan plan_decode(const mrl_device_info *info, const mrl_kv *kv, uint32_t heads, uint32_t rows,
                               uint32_t bound)
{
    const bool software = info->kind == MRL_DEVICE_SOFTWARE;
    decode_plan plan = {.team = power_of_two_down(mrl_max_u32(info->subgroup_min, 4)), .streams = 1};
    uint32_t row_bytes = kv->dim * mrl_dtype_bytes(kv->dtype);

    plan.tile = 1;
    const uint32_t many = 8 * mrl_max_u32(plan.team, info->subgroup_max / 2);
    plan.lanes = software ? info->subgroup_max : mrl_min_u32(many, info->max_workgroup);
    uint32_t teams = plan.lanes / plan.team;
    plan.blocks = mrl_div_up(heads, software ? 1 : mrl_min_u32(4, teams));
    plan.group = mrl_div_up(heads, plan.blocks);
    if (!software) {
        plan.streams = mrl_min_u32(2, mrl_max_u32(1, teams / mrl_div_up(plan.group, plan.tile)));
        plan.staged = 1;
        plan.stage = power_of_two_down(mrl_max_u32(STAGE_BYTES / row_bytes, 4 * plan.streams));
    }
    plan.keys = software ? 1 : 4;
    plan.stage = mrl_max_u32(plan.stage, plan.keys);
    uint32_t held = mrl_div_up(plan.group, plan.tile) * plan.tile * kv->rank / 4; /* O of the heads */
    uint32_t merge = plan.streams > 1 ? plan.streams * held : 1;
    plan.work = mrl_max_u32(plan.staged ? plan.stage * row_bytes / 16 : 1, merge);
    const uint32_t stats = plan.streams * mrl_div_up(plan.group, plan.tile) * plan.tile * 8;
    if (plan.work * 16 + stats > info->shared_bytes) { /* rows straight from the cache, each team all positions */
        plan.streams = 1;
        plan.staged = 0;
        plan.stage = plan.keys;
        plan.work = 1;
    }
    plan.chunks = chunks_of(plan.blocks * rows, bound, software ? 8 : MRL_MLA_CHUNKS, software ? 256 : 32);
    return plan;
}

#define MATRIX_LANES 256u
#define MATRIX_HEADS 16u
#define MATRIX_KEYS 32u
#define MATRIX_HEADS_LEAST 5u /* fewer are not worth the lines of a matrix */

/* Whether decode_coopmat.comp can, and where it is not asked for, should. */
static bool decodes_on_matrices(mrl_device *dev, const mrl_kv *kv, const mrl_mla_args *args)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint32_t pitch = kv->dim / 8 + 1;
    const uint32_t scores = 4 * MATRIX_HEADS * (MATRIX_KEYS / 4 + 1), weights = MATRIX_HEADS * (MATRIX_KEYS / 8 + 1);
    const uint32_t units = MATRIX_KEYS * pitch + scores + weights;

    return mrl_pipeline_available(dev, MRL_KERNEL_mla_decode_coopmat, MRL_FORMAT_NONE, MRL_MATH_F16) &&
           info->subgroup_min == 32 && info->subgroup_max == 32 && info->max_workgroup >= MATRIX_LANES &&
           kv->dtype == MRL_DTYPE_f16 && kv->rank % 128 == 0 && kv->dim % 16 == 0 &&
           units * 16 + 8 * MATRIX_HEADS <= info->shared_bytes &&
           (args->kernel == MRL_KERNEL_mla_decode_coopmat ||
            (args->kernel == MRL_KERNEL_COUNT && args->heads >= MATRIX_HEADS_LEAST));
}

static decode_plan plan_matrices(uint32_t heads, uint32_t rows, uint32_t bound)
{
    const uint32_t blocks = mrl_div_up(heads, MATRIX_HEADS);

    return (decode_plan){
        .matrices = true,
        .lanes = MATRIX_LANES,
        .blocks = blocks,
        .chunks = chunks_of(blocks * rows, bound, MRL_MLA_CHUNKS, MATRIX_KEYS)};
}

static mla_call call_of(const mrl_kv *kv, const mrl_mla_args *args, uint32_t nope, uint32_t v_dim)
{
    const mrl_weight *w = args->kv_b;
    mrl_device *dev = mrl_buffer_device(kv->k);

    return (mla_call){
        .kv = kv,
        .args = args,
        .dev = dev,
        .info = mrl_device_info_of(dev),
        .rows = (uint32_t)args->q.shape[0],
        .nope = nope,
        .v_dim = v_dim,
        .push =
            {
                .positions = mrl_view_address(&args->positions),
                .slots = mrl_view_address(&args->slots),
                .freq = mrl_view_address(&args->freq),
                .norm = mrl_view_address(&args->norm),
                .cache = mrl_buffer_address(kv->k),
                .quant = mrl_buffer_address(w->quant),
                .scale = w->scale ? mrl_buffer_address(w->scale) : 0,
                .zero = w->zero ? mrl_buffer_address(w->zero) : 0,
                .context = kv->context,
                .chunks = 1,
                .k_padded = w->k_padded,
                .groups = w->groups,
                .global_scale = w->global_scale,
                .eps = args->eps,
                .softmax = args->scale,
                .rope_scale = args->rope_scale,
                .rows = (uint32_t)args->q.shape[0],
            },
        .spec = {0, kv->rank, kv->dtype, kv->slots, 0, kv->dim - kv->rank, args->interleaved, 0, args->heads, nope,
                 v_dim},
    };
}

mrl_status mrl_mla_record(const mla_call *call, mrl_kernel kernel, const uint32_t *spec, int nspec,
                          const mrl_push_mla *push, const uint32_t groups[3], mrl_range x, mrl_range y, double flops,
                          mrl_error *err)
{
    mrl_status rc;
    const mrl_mla_args *args = call->args;
    const bool weights = kernel == MRL_KERNEL_mla_query || kernel == MRL_KERNEL_mla_value;
    const bool latent = kernel == MRL_KERNEL_mla_latent;
    const bool matrices = kernel == MRL_KERNEL_mla_prefill_coopmat || kernel == MRL_KERNEL_mla_decode_coopmat;
    const bool cache = kernel == MRL_KERNEL_mla_decode || kernel == MRL_KERNEL_mla_rows || matrices;
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_pipeline_get(call->dev, kernel, weights ? args->kv_b->format : MRL_FORMAT_NONE,
                             matrices ? MRL_MATH_F16 : MRL_MATH_NONE, spec, nspec, &pipeline, err));
    const mrl_range reads[] = {
        x,
        mrl_view_range(&args->positions),
        mrl_view_range(&args->slots),
        mrl_view_range(&args->freq),
        latent ? mrl_view_range(&args->norm) : (mrl_range){0},
        cache ? mrl_range_of(call->kv->k) : (mrl_range){0},
        weights ? mrl_range_of(args->kv_b->quant) : (mrl_range){0},
        weights ? mrl_range_of(args->kv_b->scale) : (mrl_range){0},
        weights ? mrl_range_of(args->kv_b->zero) : (mrl_range){0},
        call->expanded,
    };
    const mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = push,
        .push_bytes = sizeof *push,
        .groups = {groups[0], groups[1], groups[2]},
        .reads = reads,
        .nreads = sizeof reads / sizeof *reads,
        .writes = &y,
        .nwrites = 1,
        .flops = flops,
    };
    MRL_TRY(mrl_stream_dispatch(call->dev, &dispatch, err));
done:
    return rc;
}

static bool is_software(const mla_call *call)
{
    return call->info->kind == MRL_DEVICE_SOFTWARE;
}

/* A local size: one subgroup on a CPU. */
static uint32_t lanes_of(const mla_call *call, uint32_t wanted)
{
    return is_software(call) ? call->info->subgroup_max : mrl_min_u32(wanted, call->info->max_workgroup);
}

/* Whether the products with kv_b share their operand by broadcasts: on a CPU whose workgroups can be one subgroup. */
static bool by_broadcast(const mla_call *call)
{
    return is_software(call) && !call->args->staged && call->info->subgroup_min == call->info->subgroup_max;
}

static mrl_status latent(const mla_call *call, mrl_error *err)
{
    mrl_push_mla push = call->push;
    uint32_t spec[MRL_MAX_SPEC];

    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    push.x = mrl_view_address(&call->args->kv);
    spec[0] = lanes_of(call, 128);
    spec[4] = call->args->kv.dtype;
    spec[MRL_MLA_SPECS] = mrl_div_up(call->kv->dim / 8, spec[0]);
    return mrl_mla_record(call, MRL_KERNEL_mla_latent, spec, MRL_MLA_SPECS + 1, &push, (uint32_t[]){call->rows, 1, 1},
                  mrl_view_range(&call->args->kv), mrl_range_of(call->kv->k), 0, err);
}

/* type: that of y. */
static mrl_status query(const mla_call *call, mrl_dtype type, mrl_buffer *y, mrl_error *err)
{
    const mrl_weight *w = call->args->kv_b;
    mrl_push_mla push = call->push;
    uint32_t spec[MRL_MAX_SPEC], across = 8;

    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    const mrl_shares *shares = &call->args->q_shares;
    push.x = mrl_shares_address_or(shares, &call->args->q);
    push.shares = shares->count;
    push.y = mrl_buffer_address(y);
    spec[0] = lanes_of(call, 256);
    if (is_software(call)) across = spec[0];
    spec[4] = call->args->q.dtype;
    spec[MRL_MLA_SPECS] = w->scale_type;
    spec[MRL_MLA_SPECS + 1] = w->has_zero;
    spec[MRL_MLA_SPECS + 2] = w->group;
    spec[MRL_MLA_SPECS + 3] = spec[0] / across;
    spec[MRL_MLA_SPECS + 4] = across;
    spec[MRL_MLA_SPECS + 5] = by_broadcast(call);
    spec[MRL_MLA_SPECS + 6] = is_software(call) ? 1 : mrl_min_u32(8, mrl_div_up(call->nope, spec[0] / across));
    spec[MRL_MLA_SPECS + 7] = (uint32_t)type;
    spec[MRL_MLA_SPECS + 8] = shares->count > 0;
    const uint32_t columns = across * (by_broadcast(call) ? 128 / mrl_format_bits(w->format) : 8);
    return mrl_mla_record(call, MRL_KERNEL_mla_query, spec, MRL_MLA_SPECS + 9, &push,
                  (uint32_t[]){mrl_div_up(call->kv->rank, columns) + 1, call->args->heads, call->rows},
                  mrl_shares_range_or(shares, &call->args->q), mrl_range_of(y),
                  2.0 * call->rows * call->args->heads * call->nope * call->kv->rank, err);
}

static mrl_status decode(const mla_call *call, const decode_plan *plan, mrl_buffer *q, mrl_buffer *y, mrl_error *err)
{
    const mrl_kv *kv = call->kv;
    const double flops = 2.0 * call->rows * call->args->heads * (kv->dim + kv->rank) * call->args->bound;
    mrl_push_mla push = call->push;
    uint32_t spec[MRL_MAX_SPEC];

    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    push.x = mrl_buffer_address(q);
    push.y = mrl_buffer_address(y);
    push.chunks = plan->chunks;
    if (plan->matrices) {
        spec[0] = plan->lanes;
        return mrl_mla_record(call, MRL_KERNEL_mla_decode_coopmat, spec, MRL_MLA_SPECS, &push,
                              (uint32_t[]){plan->chunks, plan->blocks, call->rows}, mrl_range_of(q), mrl_range_of(y),
                              flops, err);
    }
    const uint32_t own[] = {plan->lanes,   plan->group,  plan->tile,  plan->team, plan->streams,
                            plan->staged, plan->stage,  plan->lanes, plan->work, plan->keys};
    spec[0] = own[0];
    for (int i = 1; i < 10; i++) spec[MRL_MLA_SPECS + i - 1] = own[i];
    return mrl_mla_record(call, MRL_KERNEL_mla_decode, spec, MRL_MLA_SPECS + 9, &push,
                  (uint32_t[]){plan->chunks, plan->blocks, call->rows}, mrl_range_of(q), mrl_range_of(y), flops, err);
}

/* type: that of O in the results of chunks, x. */
static mrl_status value(const mla_call *call, uint32_t chunks, mrl_dtype type, mrl_buffer *x, const mrl_view *y,
                        mrl_error *err)
{
    const mrl_weight *w = call->args->kv_b;
    mrl_push_mla push = call->push;
    uint32_t spec[MRL_MAX_SPEC];
    const bool broadcast = by_broadcast(call);
    const uint32_t turns = is_software(call) && !broadcast ? 12 : 1;
    const uint32_t items = call->kv->rank * mrl_dtype_bytes(type) / 16;
    const uint32_t units = mrl_div_up(call->kv->rank, 128 / mrl_format_bits(w->format));
    const uint32_t held = mrl_div_up(units, call->info->subgroup_min); /* registers: rows * held words of 16 bytes */
    const uint32_t rows = broadcast ? 8 : held <= 4 ? 4 : held <= 8 ? 2 : 1;

    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    push.x = mrl_buffer_address(x);
    push.y = mrl_view_address(y);
    push.chunks = chunks;
    spec[0] = lanes_of(call, 512);
    spec[7] = y->dtype;
    spec[MRL_MLA_SPECS] = w->scale_type;
    spec[MRL_MLA_SPECS + 1] = w->has_zero;
    spec[MRL_MLA_SPECS + 2] = w->group;
    spec[MRL_MLA_SPECS + 3] = rows;
    spec[MRL_MLA_SPECS + 4] = turns;
    const uint32_t shares = is_software(call) ? 1 : mrl_max_u32(1, mrl_min_u32(8, spec[0] / items));
    const uint32_t merge = mrl_div_up(chunks, shares);
    const bool once = shares * items <= spec[0] && merge <= MRL_MLA_MERGE && call->info->subgroup_min >= 32 &&
                      call->info->subgroup_max <= 64;
    spec[MRL_MLA_SPECS + 5] = once ? merge : 0;
    spec[MRL_MLA_SPECS + 6] = broadcast;
    spec[MRL_MLA_SPECS + 7] = shares;
    spec[MRL_MLA_SPECS + 8] = held;
    spec[MRL_MLA_SPECS + 9] = (uint32_t)type;
    /* Where subgroups may be smaller than subgroup_max there are more of them: some workgroups idle. */
    uint32_t owners = broadcast ? spec[0] : spec[0] / call->info->subgroup_max;
    return mrl_mla_record(call, MRL_KERNEL_mla_value, spec, MRL_MLA_SPECS + 10, &push,
                  (uint32_t[]){mrl_div_up(call->v_dim, owners * rows * turns), call->args->heads, call->rows},
                  mrl_range_of(x), mrl_view_range(y),
                  2.0 * call->rows * call->args->heads * call->v_dim * call->kv->rank, err);
}

mrl_status mrl_mla(const mrl_kv *kv, const mrl_mla_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    uint32_t nope = 0, v_dim = 0;
    mrl_buffer *absorbed = NULL, *partial = NULL;

    MRL_TRY(mrl_mla_dims(kv, args, &nope, &v_dim, err));
    MRL_TRY(check(kv, args, y, v_dim, err));
    if (args->q.shape[0] == 0) return MRL_OK;
    const mla_call call = call_of(kv, args, nope, v_dim);
    const bool matrices = decodes_on_matrices(call.dev, kv, args);
    const decode_plan plan = matrices ? plan_matrices(args->heads, call.rows, args->bound)
                                      : plan_decode(call.info, kv, args->heads, call.rows, args->bound);
    const mrl_dtype type = matrices ? MRL_DTYPE_f16 : MRL_DTYPE_f32; /* of what is between the kernels */
    const uint64_t heads = (uint64_t)call.rows * args->heads, size = mrl_dtype_bytes(type);
    if (heads * plan.chunks > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "mla: %u rows of %u heads are too many for one call", call.rows,
                        args->heads);
    const bool can = args->q_shares.count == 0 && mrl_mla_expands(&call, y);
    if ((args->kernel == MRL_KERNEL_mla_prefill_coopmat && !can) ||
        (args->kernel == MRL_KERNEL_mla_decode_coopmat && !matrices))
        return mrl_fail(err, MRL_ERR_VALUE, "mla: kernel %s cannot do this on %s", mrl_kernel_name(args->kernel),
                        call.info->name);
    if (can && (args->kernel == MRL_KERNEL_COUNT ? mrl_mla_expansion_pays(&call)
                                                 : args->kernel == MRL_KERNEL_mla_prefill_coopmat)) {
        MRL_TRY(latent(&call, err));
        MRL_TRY(mrl_mla_expanded(&call, y, err));
        goto done;
    }
    /* Matrices read whole lines of 16 heads. */
    MRL_TRY(mrl_buffer_create(call.dev, (heads + MATRIX_HEADS) * kv->dim * size, MRL_MEMORY_DEVICE, &absorbed, err));
    /* mla_value asks for results of chunks before it knows how many there are. */
    MRL_TRY(mrl_buffer_create(call.dev, (heads * plan.chunks + 2 * MRL_MLA_CHUNKS) * (kv->rank * size + PARTIAL_EXTRA),
                              MRL_MEMORY_DEVICE, &partial, err));
    MRL_TRY(latent(&call, err));
    MRL_TRY(query(&call, type, absorbed, err));
    MRL_TRY(decode(&call, &plan, absorbed, partial, err));
    MRL_TRY(value(&call, plan.chunks, type, partial, y, err));
done:
    mrl_buffer_release(absorbed);
    mrl_buffer_release(partial);
    return rc;
}
