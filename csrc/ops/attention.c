#include "ops/attention.h"

#include "../shaders/include/push.h"

#define GROUP_MAX  16u    /* q heads a decode workgroup */
#define COUNTERS   512u   /* most workgroups that split; at 4 bytes the partials stay aligned */
#define SHARED_MAX 16384u /* bytes of decode's largest shared array */

/* Workgroups that fill the device, and the fewest positions worth one. A workgroup of 256 lanes with
 * these registers has a multiprocessor for itself: on one H200 (132 of them, 2026-11) 132 take 12.8 us
 * at a context of 4000 (32 heads, 8 kv heads, dim 128), 264 take 18.0 and 66 take 17.9; chunks of 128
 * instead of 64 positions take 15.1. On a CPU each workgroup costs several microseconds. */
static uint32_t wanted_groups(const mrl_device_info *info)
{
    return info->kind == MRL_DEVICE_SOFTWARE ? 16 : 132;
}
static uint32_t least_chunk(const mrl_device_info *info)
{
    return info->kind == MRL_DEVICE_SOFTWARE ? 512 : 64;
}

uint64_t mrl_attention_counter_bytes(void)
{
    return COUNTERS * sizeof(uint32_t);
}

uint64_t mrl_attention_scratch_bytes(mrl_device *dev, uint32_t dim)
{
    uint64_t partial = GROUP_MAX * (dim + 2u) * sizeof(float);
    return mrl_attention_counter_bytes() + wanted_groups(mrl_device_info_of(dev)) * partial;
}

static uint32_t power_of_two_up(uint32_t n)
{
    uint32_t p = 1;
    while (p < n) p *= 2;
    return p;
}
static mrl_push_attention push_of(const mrl_kv *kv, const mrl_attention_args *args, const mrl_view *y)
{
    const mrl_rope_args *rope = &args->rope;
    return (mrl_push_attention){
        .qkv = mrl_view_address(&rope->qkv),
        .q_norm = mrl_view_address(&rope->q_norm),
        .k_norm = mrl_view_address(&rope->k_norm),
        .freq = mrl_view_address(&rope->freq),
        .positions = mrl_view_address(&rope->positions),
        .slots = mrl_view_address(&rope->slots),
        .cache_k = mrl_buffer_address(kv->k),
        .cache_v = mrl_buffer_address(kv->v),
        .y = mrl_view_address(y),
        .gate = rope->gated ? mrl_view_address(&rope->qkv) : 0,
        .rows = (uint32_t)rope->qkv.shape[0],
        .heads = rope->heads,
        .kv_heads = kv->kv_heads,
        .context = kv->context,
        .eps = rope->eps,
        .scale = args->scale,
        .rope_scale = rope->rope_scale,
    };
}

static mrl_status too_little_shared(const mrl_device_info *info, const mrl_kv *kv, mrl_error *err)
{
    return mrl_fail(err, MRL_ERR_DEVICE, "attention: %s has too little shared memory for heads of %u", info->name,
                    kv->dim);
}

/* Bytes of decode.comp's shared memory beside `work`: stats, raw, fresh and arrival. */
static uint32_t decode_fixed_bytes(uint32_t subgroups, uint32_t tile, uint32_t dim)
{
    return subgroups * tile * 8 + dim * 12 + 4;
}

/* How decode.comp divides its work; the fields are its specialization constants. */
typedef struct decode_plan {
    uint32_t lanes, group, team, tile, work, subgroups;
    uint32_t blocks, chunks;
} decode_plan;

static decode_plan plan_decode(const mrl_device_info *info, const mrl_kv *kv, uint32_t ratio, uint32_t rows,
                               uint32_t bound)
{
    decode_plan plan;
    uint32_t least = mrl_max_u32(info->subgroup_min, 4), most = mrl_max_u32(info->subgroup_max, 4);
    bool software = info->kind == MRL_DEVICE_SOFTWARE;

    plan.team = mrl_min_u32(power_of_two_up(kv->dim / 8), least);
    plan.team = mrl_max_u32(plan.team, 4);
    /* Registers: a lane holds q and O of tile heads, 8 elements a unit. */
    uint32_t units = mrl_div_up(kv->dim / 8, plan.team);
    plan.tile = mrl_min_u32(ratio, mrl_max_u32(1, (kv->dim > 128 || units > 2 ? 2 : 4) / (units > 4 ? 2 : 1)));
    /* On a CPU one subgroup a workgroup and one head: there is nothing to hide, small code compiles
     * sooner, and lavapipe (Mesa 22.3.6) leaves loops under a condition early when a workgroup has
     * several subgroups. */
    plan.blocks = software ? ratio : mrl_div_up(ratio, GROUP_MAX);
    for (;; plan.blocks++) {
        plan.group = mrl_div_up(ratio, plan.blocks);
        uint32_t tile = mrl_div_up(plan.group, mrl_div_up(plan.group, plan.tile));
        uint32_t tiles = mrl_div_up(plan.group, tile);
        /* Every tile of heads needs a subgroup. A GPU gets 8 subgroups to have enough loads in
         * flight. */
        plan.lanes = software ? most : mrl_min_u32(mrl_max_u32(8 * least, most), info->max_workgroup);
        plan.subgroups = plan.lanes / least;
        plan.work = mrl_max_u32(mrl_max_u32(plan.group * kv->dim, plan.subgroups * tile * kv->dim), 6 * plan.lanes);
        uint32_t fixed = decode_fixed_bytes(plan.subgroups, tile, kv->dim);
        uint32_t room = fixed < info->shared_bytes ? mrl_min_u32(SHARED_MAX, info->shared_bytes - fixed) : 0;
        if ((plan.lanes / most >= tiles && plan.work <= room / sizeof(float)) || plan.group == 1) {
            plan.tile = tile;
            break;
        }
    }
    plan.blocks = mrl_div_up(ratio, plan.group);
    uint64_t others = (uint64_t)kv->kv_heads * plan.blocks * rows;
    plan.chunks = mrl_min_u32((uint32_t)(wanted_groups(info) / others), mrl_div_up(bound, least_chunk(info)));
    plan.chunks = mrl_max_u32(1, plan.chunks);
    return plan;
}

static mrl_status decode(const mrl_kv *kv, const mrl_attention_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(kv->k);
    const mrl_device_info *info = mrl_device_info_of(dev);
    const mrl_rope_args *rope = &args->rope;
    uint32_t rows = (uint32_t)rope->qkv.shape[0];
    mrl_pipeline *pipeline;

    if (rows > info->max_groups[2])
        return mrl_fail(err, MRL_ERR_VALUE, "attention: rows must be at most %u, got %u", info->max_groups[2], rows);
    decode_plan plan = plan_decode(info, kv, rope->heads / kv->kv_heads, rows, args->bound);
    if (plan.work * sizeof(float) + decode_fixed_bytes(plan.subgroups, plan.tile, kv->dim) > info->shared_bytes)
        return too_little_shared(info, kv, err);
    uint32_t spec[] = {
        plan.lanes,
        kv->dim,
        kv->dtype,
        kv->slots,
        rope->qkv.dtype,
        2 * (uint32_t)rope->freq.shape[0],
        rope->interleaved,
        y->dtype,
        plan.group,
        plan.team,
        plan.tile,
        plan.work,
        plan.subgroups,
        COUNTERS,
        info->kind != MRL_DEVICE_SOFTWARE,
        rope->heads / kv->kv_heads,
    };
    MRL_TRY(
        mrl_pipeline_get(dev, MRL_KERNEL_attention_decode, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 16, &pipeline, err));
    mrl_push_attention push = push_of(kv, args, y);
    push.partial = mrl_buffer_address(kv->scratch);
    push.chunks = plan.chunks;
    /* Whether a row splits depends on its position: with several chunks the scratch counts. */
    mrl_range reads[] = {
        mrl_view_range(&rope->qkv),
        mrl_view_range(&rope->q_norm),
        mrl_view_range(&rope->k_norm),
        mrl_view_range(&rope->freq),
        mrl_view_range(&rope->positions),
        mrl_view_range(&rope->slots),
        mrl_range_of(kv->k),
        mrl_range_of(kv->v),
        plan.chunks > 1 ? mrl_range_of(kv->scratch) : (mrl_range){0},
    };
    mrl_range writes[] = {
        mrl_view_range(y),
        mrl_range_of(kv->k),
        mrl_range_of(kv->v),
        plan.chunks > 1 ? mrl_range_of(kv->scratch) : (mrl_range){0},
    };
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {plan.chunks, kv->kv_heads * plan.blocks, rows},
        .reads = reads,
        .nreads = 9,
        .writes = writes,
        .nwrites = 4,
        .flops = 4.0 * rows * rope->heads * kv->dim * args->bound,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

/* Tiles of prefill.comp, best first: lanes along keys, local size. The first that fits in shared
 * memory and whose lanes along keys lie in one subgroup is taken. */
static const struct {
    uint32_t lanes_x, lanes;
} prefill_tiles[] = {{16, 256}, {16, 128}, {8, 64}, {8, 32}, {4, 32}, {4, 16}, {4, 8}};

static uint32_t prefill_shared_bytes(const mrl_kv *kv, uint32_t lanes_x, uint32_t rows_y)
{
    uint32_t bytes = 4 * mrl_dtype_bytes(kv->dtype); /* of a group of 4 elements */
    return bytes * ((4 * rows_y + 4 * lanes_x) * (kv->dim / 4 + 1) + 4 * rows_y * (lanes_x + 1)) + 16 * rows_y + 8;
}

bool mrl_attention_coopmat_plan(mrl_device *dev, mrl_kernel kernel, uint32_t k_dim, uint32_t v_dim,
                                mrl_coopmat_attention *out)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint32_t share = v_dim > 128 ? 2 : 1, size = info->subgroup_size;

    if (!mrl_pipeline_available(dev, kernel, MRL_FORMAT_NONE, MRL_MATH_F16) || k_dim % 16 != 0 ||
        v_dim % (16 * share) != 0 || k_dim > MRL_HEAD_DIM_MAX || v_dim > MRL_HEAD_DIM_MAX ||
        (size != 16 && size != 32) || !mrl_whole_subgroups(info))
        return false;
    for (uint32_t subgroups = 8; subgroups >= 2; subgroups /= 2) {
        /* uvec4s of the shader's pool: 32 keys, values, and of each line 32 scores and weights; or the queries. */
        const uint32_t lines = 16 * subgroups / share;
        const uint32_t turn = 32 * (k_dim / 8 + 1) + 32 * (v_dim / 8 + 1) + lines * (9 + 5);
        const uint32_t words = mrl_max_u32(turn, lines * (k_dim / 8 + 1));
        if (subgroups * size <= info->max_workgroup && words * 16 + lines * 8 + 8 <= info->shared_bytes) {
            *out = (mrl_coopmat_attention){subgroups, size, lines};
            return true;
        }
    }
    return false;
}

/* One of the two tiled kernels behind rope. */
typedef struct prefill_plan {
    mrl_kernel kernel;
    uint32_t spec[11];
    uint32_t lines; /* query lines a workgroup */
} prefill_plan;

static bool plan_prefill_coopmat(const mrl_kv *kv, uint32_t ratio, mrl_dtype y, prefill_plan *plan)
{
    mrl_coopmat_attention division;

    if (kv->dtype != MRL_DTYPE_f16 ||
        !mrl_attention_coopmat_plan(mrl_buffer_device(kv->k), MRL_KERNEL_attention_prefill_coopmat, kv->dim, kv->dim,
                                    &division))
        return false;
    *plan = (prefill_plan){
        .kernel = MRL_KERNEL_attention_prefill_coopmat,
        .spec = {division.subgroups * division.subgroup, kv->dim, kv->dtype, kv->slots, 0, 0, 0, y, ratio,
                 division.subgroups, division.subgroup},
        .lines = division.lines,
    };
    return true;
}

static bool plan_prefill(const mrl_kv *kv, uint32_t ratio, mrl_dtype y, prefill_plan *plan)
{
    const mrl_device_info *info = mrl_device_info_of(mrl_buffer_device(kv->k));

    for (size_t i = 0; i < sizeof prefill_tiles / sizeof prefill_tiles[0]; i++) {
        const uint32_t x = prefill_tiles[i].lanes_x, lanes = prefill_tiles[i].lanes;
        if (x > info->subgroup_min || lanes > info->max_workgroup ||
            prefill_shared_bytes(kv, x, lanes / x) > info->shared_bytes)
            continue;
        *plan = (prefill_plan){
            .kernel = MRL_KERNEL_attention_prefill,
            .spec = {lanes, kv->dim, kv->dtype, kv->slots, 0, 0, 0, y, ratio, x, lanes / x},
            .lines = 4 * lanes / x,
        };
        return true;
    }
    return false;
}

static mrl_status prefill(const mrl_kv *kv, const mrl_attention_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(kv->k);
    const mrl_device_info *info = mrl_device_info_of(dev);
    uint64_t rows = args->rope.qkv.shape[0], ratio = args->rope.heads / kv->kv_heads;
    uint64_t q_bytes = rows * args->rope.heads * kv->dim * sizeof(float);
    mrl_buffer *q = NULL;
    mrl_pipeline *pipeline;
    prefill_plan plan;

    bool found = args->kernel != MRL_KERNEL_attention_prefill &&
                 plan_prefill_coopmat(kv, (uint32_t)ratio, y->dtype, &plan);
    if (!found && args->kernel == MRL_KERNEL_attention_prefill_coopmat)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "attention: kernel attention_prefill_coopmat cannot do heads of %u %s on %s", kv->dim,
                        mrl_dtype_name(kv->dtype), info->name);
    if (!found && !plan_prefill(kv, (uint32_t)ratio, y->dtype, &plan))
        return too_little_shared(info, kv, err);
    plan.spec[4] = args->rope.gated ? (uint32_t)args->rope.qkv.dtype : 0; /* of the gates */
    uint64_t tiles = (rows * ratio + plan.lines - 1) / plan.lines;
    if (rows * ratio > INT32_MAX || tiles > info->max_groups[0])
        return mrl_fail(err, MRL_ERR_VALUE, "attention: %llu rows of %u heads are more than the device takes",
                        (unsigned long long)rows, args->rope.heads);
    MRL_TRY(mrl_pipeline_get(dev, plan.kernel, MRL_FORMAT_NONE,
                             plan.kernel == MRL_KERNEL_attention_prefill ? MRL_MATH_NONE : MRL_MATH_F16, plan.spec, 11,
                             &pipeline, err));
    /* q stays f32 between the two dispatches, as it does inside of decode.comp. */
    MRL_TRY(mrl_buffer_create(dev, q_bytes, MRL_MEMORY_DEVICE, &q, err));
    mrl_view rotated = {
        .buffer = q,
        .dtype = MRL_DTYPE_f32,
        .ndim = 2,
        .shape = {rows, (uint64_t)args->rope.heads * kv->dim},
    };
    MRL_TRY(mrl_rope(kv, &args->rope, &rotated, err));
    mrl_push_attention push = push_of(kv, args, y);
    push.qkv = mrl_buffer_address(q);
    mrl_range reads[] = {
        mrl_range_of(q),
        mrl_view_range(&args->rope.positions),
        mrl_view_range(&args->rope.slots),
        mrl_range_of(kv->k),
        mrl_range_of(kv->v),
        args->rope.gated ? mrl_view_range(&args->rope.qkv) : (mrl_range){0},
    };
    mrl_range writes[] = {mrl_view_range(y)};
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {(uint32_t)tiles, kv->kv_heads, 1},
        .reads = reads,
        .nreads = 6,
        .writes = writes,
        .nwrites = 1,
        .flops = 4.0 * (double)rows * args->rope.heads * kv->dim * args->bound,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    mrl_buffer_release(q);
    return rc;
}

mrl_status mrl_attention(const mrl_kv *kv, const mrl_attention_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_kernel kernel = args->kernel;

    MRL_TRY(mrl_rope_check(kv, &args->rope, "attention", err));
    uint64_t rows = args->rope.qkv.shape[0], shape[2] = {rows, (uint64_t)args->rope.heads * kv->dim};
    MRL_TRY(mrl_view_check(y, mrl_buffer_device(kv->k), "attention", "out", MRL_DTYPES_ACT, 2, shape, err));
    if (mrl_view_address(y) % 16 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "attention: out must be aligned to 16 bytes");
    if (args->bound < 1 || args->bound > kv->context)
        return mrl_fail(err, MRL_ERR_VALUE, "attention: bound must be 1 to %u (the cache's context), got %u",
                        kv->context, args->bound);
    if (args->sequence && rows > kv->context)
        return mrl_fail(err, MRL_ERR_VALUE, "attention: a sequence of %llu rows is longer than the context of %u",
                        (unsigned long long)rows, kv->context);
    if (kernel == MRL_KERNEL_COUNT)
        kernel = args->sequence && rows > 1 ? MRL_KERNEL_attention_prefill : MRL_KERNEL_attention_decode;
    const bool tiled = kernel == MRL_KERNEL_attention_prefill || kernel == MRL_KERNEL_attention_prefill_coopmat;
    if (kernel != MRL_KERNEL_attention_decode && !tiled)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "attention: kernel must be attention_decode, attention_prefill or attention_prefill_coopmat, "
                        "got %s",
                        mrl_kernel_name(kernel));
    if (rows > 1 && args->sequence != tiled)
        return mrl_fail(err, MRL_ERR_VALUE, "attention: %s does not take %s", mrl_kernel_name(kernel),
                        args->sequence ? "rows of one slot" : "rows of several slots");
    if (rows > 0) rc = kernel == MRL_KERNEL_attention_decode ? decode(kv, args, y, err) : prefill(kv, args, y, err);
done:
    return rc;
}
