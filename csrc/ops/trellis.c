#include "ops/trellis.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "push.h"

#include "ops/norm.h"
#include "ops/trellis_call.h"
#include "ops/trellis_layout.h"

_Static_assert(sizeof(mrl_push_trellis) <= 128 && sizeof(mrl_push_trellis_moe) <= 128 &&
                   sizeof(mrl_push_trellis_copy) <= 128, "push constants");
_Static_assert(offsetof(mrl_push_trellis, gate) == 80 && offsetof(mrl_push_trellis_moe, weights) == 80,
               "no padding, which GLSL has not");

#define GEMV_MAX_ROWS 16u
#define USUAL_SUM 8u        /* pairs that are summed up */
#define GEMV_MANY_ROWS 5u
#define GEMV_WIDE 66u       /* times 128 columns: so many need few shares of k, and matrix units for fewer rows */
/* From so many rows on cooperative matrices are faster than lanes. Up to 16, of wide matrices or without fragments, the
 * kernel that has a workgroup for each 128 columns is the faster one of these. By measurement on an H200. */
#define MATRIX_MIN_ROWS(wide, fragments) ((fragments) ? ((wide) ? 3u : 9u) : (wide) ? 7u : 11u)
#define MATRIX_USUAL_ROWS 16u
#define MATRIX_MAX_ROWS 64u  /* that it can */
#define GEMM_STEP 64u       /* rows of Q a step of the tiled kernels */
#define GEMM_WORKGROUPS 264u /* that shares of k are made for */
#define COOPMAT_SHARED(rows) (((rows) + 128u) * 144u) /* bytes of its tiles */
#define WHOLE_SHARED(rows) ((rows) * 288u + mrl_min_u32(rows, 32) * 528u) /* where it finishes y */
#define COPY_ROWS 1024u     /* rows of W that are in f32 at a time while it is dequantized */

static const char *const codebooks[] = {"3inst", "mcg", "mul1"};

const char *mrl_codebook_name(mrl_codebook codebook)
{
    return codebooks[codebook];
}

/* Where the scales of an expert begin. */
static uint64_t suh_at(const mrl_trellis *t, uint32_t expert)
{
    return mrl_buffer_address(t->suh) + 2ull * expert * t->k_padded;
}
static uint64_t svh_at(const mrl_trellis *t, uint32_t expert)
{
    return mrl_buffer_address(t->svh) + 2ull * expert * t->n_padded;
}

/* ---- what a call is made of ---- */

static trellis_call begin(mrl_device *dev, const mrl_trellis_args *args)
{
    const mrl_trellis *t = args->t;
    const uint32_t m = (uint32_t)args->x.shape[0], stride = (uint32_t)args->y.shape[1];
    const uint64_t size = mrl_dtype_bytes(args->y.dtype), start = args->y_column * size;
    const mrl_range all = mrl_view_range(&args->y);
    const bool open = args->open != NULL;

    return (trellis_call){
        .dev = dev,
        .args = args,
        .push =
            {
                .trellis = mrl_trellis_units_at(t, args->expert),
                .suh = suh_at(t, args->expert),
                .svh = svh_at(t, args->expert),
                .x = mrl_shares_address_or(&args->x_shares, &args->x),
                .norm = mrl_view_address(&args->norm),
                .bias = mrl_view_address(&args->bias),
                .residual = mrl_view_address(args->x_shares.count > 0 ? &args->base : &args->residual),
                .gate = mrl_view_address(args->x_shares.count > 0 ? &args->total : &args->gate),
                .y = open ? 0 : mrl_view_address(&args->y) + start,
                .counters = mrl_buffer_address(t->counters),
                .m = m,
                .n = t->n,
                .k = t->k,
                .k_padded = t->k_padded,
                .n_padded = t->n_padded,
                .y_stride = stride,
                .eps = args->eps,
                .x_scale = 1.0f,
            },
        .y = {open ? NULL : all.buffer, all.offset + start, m == 0 ? 0 : ((m - 1) * (uint64_t)stride + t->n) * size},
    };
}

mrl_status mrl_trellis_record(const trellis_call *c, mrl_kernel kernel, mrl_math math, const uint32_t *spec, int nspec,
                              const uint32_t *groups, const mrl_range *reads, int nreads, const mrl_range *writes,
                              int nwrites, double flops, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_pipeline_get(c->dev, kernel, MRL_FORMAT_NONE, math, spec, nspec, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = &c->push,
        .push_bytes = sizeof c->push,
        .groups = {groups[0], groups[1], groups[2]},
        .reads = reads,
        .nreads = nreads,
        .writes = writes,
        .nwrites = nwrites,
        .flops = flops,
    };
    MRL_TRY(mrl_stream_dispatch(c->dev, &d, err));
done:
    return rc;
}

static bool wants_f32(mrl_device *dev, const mrl_trellis_args *args)
{
    return !mrl_device_has(dev, MRL_BIT(fp16)) || (args->x.dtype == MRL_DTYPE_f32 && args->norm.buffer == NULL);
}

/* ---- gemv ---- */

/* A kernel asked for by name: "trellis_gemv", or, for the tuner and benchmarks, "trellis_gemv@splits,groups,prefetch
 * + 1", "trellis_gemv_coopmat@splits,groups" and "trellis_gemm_coopmat@splits,rows". */
typedef struct tuning {
    char name[32];    /* empty: choose */
    uint32_t tune[3]; /* 0: the default */
} tuning;

static mrl_status parse_kernel(const char *text, tuning *out, mrl_error *err)
{
    static const struct {
        mrl_kernel kernel;
        uint32_t most[3];
    } limits[] = {
        {MRL_KERNEL_trellis_gemv, {65536, 8, 2}},
        {MRL_KERNEL_trellis_gemv_coopmat, {65536, 8, 0}},
        {MRL_KERNEL_trellis_gemm, {65536, 0, 0}},
        {MRL_KERNEL_trellis_gemm_coopmat, {65536, 128, 0}},
    };
    memset(out, 0, sizeof *out);
    if (text == NULL) return MRL_OK;
    if (sscanf(text, "%31[a-z0-9_]@%u,%u,%u", out->name, &out->tune[0], &out->tune[1], &out->tune[2]) < 1)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: kernel must be a name of kernels.def, got \"%s\"", text);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (strcmp(out->name, mrl_kernel_name(limits[i].kernel)) != 0) continue;
        for (int j = 0; j < 3; j++)
            if (out->tune[j] > limits[i].most[j] || (j == 1 && (out->tune[j] & (out->tune[j] - 1))))
                return mrl_fail(err, MRL_ERR_VALUE, "trellis: kernel \"%s\" asks for what cannot be tuned", text);
        if (limits[i].kernel == MRL_KERNEL_trellis_gemm_coopmat && out->tune[1] && out->tune[1] < 16)
            return mrl_fail(err, MRL_ERR_VALUE, "trellis: kernel \"%s\" asks for fewer than 16 rows", text);
        return MRL_OK;
    }
    return mrl_fail(err, MRL_ERR_VALUE, "trellis: there is no trellis kernel called %s", out->name);
}

/* Blocks of 128 rows of Q for one workgroup, so that enough of them run at once and x fits in shared memory. */
static uint32_t gemv_blocks(const mrl_device_info *info, const mrl_trellis *t, uint32_t m, uint32_t block_bytes,
                            uint32_t splits)
{
    const uint32_t shared = info->shared_bytes < 49152 ? info->shared_bytes / 3 : 24576;
    const uint32_t all = t->k_padded / MRL_TRELLIS_BLOCK, columns = t->n_padded / MRL_TRELLIS_BLOCK;
    /* These fill a large GPU, by measurement on an H200; of many rows large ones, for each tells so many sums. */
    const uint32_t workgroups = columns >= GEMV_WIDE ? 896 : m >= GEMV_MANY_ROWS ? 128 : 528;
    uint32_t wanted = splits ? splits : info->kind == MRL_DEVICE_SOFTWARE ? 1 : mrl_div_up(workgroups, columns);

    wanted = mrl_max_u32(wanted, mrl_div_up(all, mrl_max_u32(1, shared / block_bytes)));
    return mrl_div_up(all, mrl_min_u32(wanted, all));
}

/* What a gemv kernel is specialized with. */
typedef struct gemv_plan {
    mrl_kernel kernel; /* trellis_gemv or trellis_gemv_dot */
    mrl_math math;
    uint32_t types; /* of x and y and blocks of 128 rows of Q of a workgroup, as the push block has them */
    uint32_t splits, shared, nspec, spec[MRL_MAX_SPEC];
} gemv_plan;

/* Bytes of shared memory, a little more than gemv.glsl declares. */
static uint32_t gemv_shared(const mrl_device_info *info, uint32_t rows, uint32_t blocks, uint32_t groups, bool f32,
                            bool int8)
{
    const uint32_t lanes = 64 * groups, staged = blocks * rows, pitch = 132 * sizeof(float);
    const uint32_t pieces = f32 ? staged : rows == 1 ? 1 + lanes / mrl_trellis_transform_lanes(info) : 1;
    const uint32_t lines = mrl_max_u32(mrl_max_u32(pieces, groups * rows), MRL_TRELLIS_SUM_MAX);
    return pitch * lines + staged * ((f32 ? 0 : int8 ? 512 : 256) + 12) + 128;
}

/* args: its types and addresses, for at most m rows of x that are multiplied together. */
static gemv_plan plan_gemv(mrl_device *dev, const mrl_trellis_args *args, uint32_t m, const tuning *asked)
{
    const mrl_trellis *t = args->t;
    const mrl_device_info *info = mrl_device_info_of(dev);
    const bool software = info->kind == MRL_DEVICE_SOFTWARE;
    const bool f32 = wants_f32(dev, args) || info->subgroup_min < 8; /* in f16 eight lanes transform, or more */
    const uint32_t unit_rows = t->rate2 % 2 == 0 ? 64 : 128;
    const uint32_t blocks = gemv_blocks(info, t, m, (f32 ? 528 : args->int8 ? 512 : 256) * m, asked->tune[0]);
    const uint32_t all = t->k_padded / MRL_TRELLIS_BLOCK, splits = mrl_div_up(all, blocks);
    const uint32_t units = blocks * MRL_TRELLIS_BLOCK / unit_rows;
    const uint32_t usual = software ? 1 : m >= GEMV_MANY_ROWS ? 4 : 2;
    const uint32_t most = mrl_min_u32(asked->tune[1] ? asked->tune[1] : usual, info->max_workgroup / 64);
    const uint64_t alignment = 4 * mrl_dtype_bytes(args->x.dtype);
    const bool dot = !f32 && t->codebook == MRL_CODEBOOK_MUL1 &&
                     mrl_pipeline_available(dev, MRL_KERNEL_trellis_gemv_dot, MRL_FORMAT_NONE, MRL_MATH_F16);
    uint32_t groups = 1, room = blocks;

    /* Matrices of several sizes share a pipeline, for the sake of the instruction cache: see gemv.glsl. */
    if (m == 1)
        for (room = 4; room < blocks;) room *= 2;
    while (groups * 2 <= mrl_min_u32(most, units) &&
           gemv_shared(info, m, room, groups * 2, f32, args->int8) <= info->shared_bytes)
        groups *= 2;
    return (gemv_plan){
        .kernel = dot ? MRL_KERNEL_trellis_gemv_dot : MRL_KERNEL_trellis_gemv,
        .math = f32 ? MRL_MATH_F32 : MRL_MATH_F16,
        .types = (uint32_t)args->x.dtype | (uint32_t)args->y.dtype << 4 | mrl_div_up(all, splits) << 8,
        .splits = splits,
        .shared = gemv_shared(info, m, room, groups, f32, args->int8),
        .nspec = 14,
        .spec =
            {
                64 * groups,
                t->rate2,
                (uint32_t)t->codebook,
                m,
                room,
                (uint32_t)args->activation,
                splits > 1,
                !f32 && (asked->tune[2] ? asked->tune[2] - 1 : !software),
                mrl_trellis_transform_lanes(info),
                args->int8,
                t->k % 8 == 0 && (mrl_view_address(&args->x) | mrl_view_address(&args->gate)) % alignment == 0 &&
                    mrl_view_address(&args->norm) % 16 == 0,
                64 * groups,
                !mrl_device_has(dev, MRL_BIT(told)),
                !f32 && m == 1, /* SHARES: one pipeline for all of a step; in f32 code costs more than pipelines */
            },
    };
}

/* told: bytes of the shares, which shaders count in 31 bits. */
static mrl_status check_plan(mrl_device *dev, const gemv_plan *plan, uint64_t told, mrl_error *err)
{
    if (plan->shared > mrl_device_info_of(dev)->shared_bytes)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u rows need %u bytes of shared memory, %s has %u", plan->spec[3],
                        plan->shared, mrl_device_info_of(dev)->name, mrl_device_info_of(dev)->shared_bytes);
    if (told / sizeof(float) > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u rows are too many for one call", plan->spec[3]);
    return MRL_OK;
}

uint32_t mrl_trellis_shares(mrl_device *dev, const mrl_trellis_args *args)
{
    tuning asked;
    mrl_error err;
    const bool plain = args->bias.buffer == NULL && args->y_column == 0 &&
                       (args->activation == MRL_ACTIVATION_NONE || mrl_activation_gated(args->activation));
    /* Whoever takes them loads four elements of a base at a time. */
    const bool base = args->residual.buffer == NULL ||
                      (args->t->n % 8 == 0 && mrl_view_address(&args->residual) % 16 == 0);

    if (!plain || !base || args->x.ndim != 2 || args->x.shape[0] != 1 ||
        parse_kernel(args->kernel, &asked, &err) != MRL_OK ||
        (asked.name[0] != 0 && strcmp(asked.name, mrl_kernel_name(MRL_KERNEL_trellis_gemv)) != 0))
        return 0;
    const gemv_plan plan = plan_gemv(dev, args, 1, &asked);
    return plan.splits > 1 && plan.splits < MRL_SHARES_LIMIT ? plan.splits : 0;
}

static mrl_status gemv(const trellis_call *given, const tuning *asked, mrl_error *err)
{
    mrl_status rc;
    trellis_call c = *given;
    const mrl_trellis_args *args = c.args;
    const mrl_trellis *t = args->t;
    const uint32_t m = c.push.m;
    gemv_plan plan = plan_gemv(c.dev, args, m, asked);
    const uint64_t told = plan.splits > 1 ? mrl_share_bytes(t->n, (uint64_t)plan.splits * plan.spec[3]) : 0;
    mrl_buffer *partial = NULL;

    MRL_TRY(check_plan(c.dev, &plan, told, err));
    c.push.types = plan.types | args->x_shares.count << 16;
    plan.spec[13] |= args->open != NULL || args->x_shares.count > 0;
    if (told > 0) {
        MRL_TRY(mrl_buffer_create(c.dev, told, MRL_MEMORY_DEVICE, &partial, err));
        c.push.partial = mrl_buffer_address(partial);
    }
    const mrl_range counters = plan.splits > 1 && args->open == NULL ? mrl_range_of(t->counters) : (mrl_range){0};
    const mrl_range reads[] = {
        mrl_range_of(t->units), mrl_range_of(t->suh), mrl_range_of(t->svh),
        mrl_shares_range_or(&args->x_shares, &args->x), mrl_view_range(&args->norm), mrl_view_range(&args->bias),
        mrl_view_range(&args->residual), mrl_view_range(&args->gate), mrl_view_range(&args->base), counters,
    };
    const mrl_range writes[] = {c.y, mrl_range_of(partial), counters, mrl_view_range(&args->total)};
    const uint32_t grid[3] = {t->n_padded / MRL_TRELLIS_BLOCK, plan.splits, 1};
    MRL_TRY(mrl_trellis_record(&c, plan.kernel, plan.math, plan.spec, (int)plan.nspec, grid, reads,
                               sizeof reads / sizeof *reads, writes, sizeof writes / sizeof *writes,
                               2.0 * m * t->n * t->k, err));
    if (args->open != NULL) {
        *args->open = (mrl_shares){partial, plan.splits};
        partial = NULL;
    }
done:
    mrl_buffer_release(partial);
    return rc;
}

/* ---- few rows on cooperative matrices: input transform, then everything else ---- */

bool mrl_trellis_matrices(mrl_device *dev)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    return mrl_pipeline_available(dev, MRL_KERNEL_trellis_gemv_coopmat, MRL_FORMAT_NONE, MRL_MATH_F16) &&
           info->subgroup_min == 32 && info->subgroup_max == 32 && info->shared_bytes >= 49152;
}

/* What gemv_coopmat.glsl is specialized with. */
typedef struct matrices_plan {
    uint32_t splits, rows, spec[10];
} matrices_plan;

/* Whether values can be decoded where matrices have them: trellis/fragments.glsl. */
static bool has_fragments(mrl_device *dev, const mrl_trellis *t)
{
    return t->rate2 >= 4 && mrl_device_has(dev, MRL_BIT(fragments));
}

/* splits, groups: 0 to choose, by measurement on an H200. */
static matrices_plan plan_matrices(mrl_device *dev, const mrl_trellis *t, uint32_t m, uint32_t splits, uint32_t groups,
                                   mrl_dtype y_type, mrl_activation activation)
{
    const uint32_t all = t->k_padded / MRL_TRELLIS_BLOCK, columns = t->n_padded / MRL_TRELLIS_BLOCK;
    const uint32_t rows = m <= 16 ? 16 : m <= 32 ? 32 : 64;
    const bool fragments = has_fragments(dev, t) && rows <= 32; /* more would read x too often */
    const uint32_t most = fragments ? mrl_device_info_of(dev)->max_workgroup / 64 : 2;
    const uint32_t enough = fragments ? (columns >= 32 ? 1 : 112 / columns) : 224 / columns;
    const uint32_t wanted = splits ? splits : mrl_max_u32(1, mrl_min_u32(enough, all / 2));
    const uint32_t blocks = mrl_div_up(all, mrl_min_u32(wanted, all)), shares = mrl_div_up(all, blocks);
    const uint32_t usual = fragments && splits == 0 && shares == 1 ? 8 : 2;
    const uint32_t lanes = 64 * mrl_min_u32(groups ? groups : usual, most);
    return (matrices_plan){
        .splits = shares,
        .rows = rows,
        .spec = {lanes, t->rate2, (uint32_t)t->codebook, rows, blocks, (uint32_t)y_type, (uint32_t)activation,
                 shares > 1, lanes, fragments},
    };
}

static mrl_status matrices(const trellis_call *given, const tuning *asked, mrl_error *err)
{
    mrl_status rc;
    trellis_call c = *given;
    const mrl_trellis *t = c.args->t;
    const matrices_plan plan = plan_matrices(c.dev, t, c.push.m, asked->tune[0], asked->tune[1], c.args->y.dtype,
                                             mrl_trellis_y_activation(c.args));
    mrl_buffer *x = NULL, *sums = NULL;

    if (64 * asked->tune[1] > plan.spec[0])
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: kernel %s cannot have %u groups here", asked->name,
                        asked->tune[1]);
    /* Matrices read whole rows of 16. */
    MRL_TRY(mrl_buffer_create(c.dev, (uint64_t)plan.rows * t->k_padded * 2, MRL_MEMORY_DEVICE, &x, err));
    c.push.partial = mrl_buffer_address(x);
    c.push.x_scale = ldexpf(1.0f, t->x_exponent);
    MRL_TRY(mrl_trellis_transform(&c, MRL_TRELLIS_INPUT, MRL_DTYPE_f16, 1, x, err));
    c.push.x = mrl_buffer_address(x);
    if (plan.splits > 1) {
        const uint64_t bytes = (uint64_t)plan.splits * c.push.m * t->n_padded * sizeof(float);
        if (bytes / sizeof(float) > INT32_MAX) {
            rc = mrl_fail(err, MRL_ERR_VALUE, "trellis: %u rows are too many for one call", c.push.m);
            goto done;
        }
        MRL_TRY(mrl_buffer_create(c.dev, bytes, MRL_MEMORY_DEVICE, &sums, err));
        c.push.partial = mrl_buffer_address(sums);
    }
    const mrl_range reads[] = {mrl_range_of(t->units), mrl_range_of(t->svh), mrl_range_of(x),
                               mrl_view_range(&c.args->bias), mrl_view_range(&c.args->residual)};
    const mrl_range writes[] = {plan.splits > 1 ? mrl_range_of(sums) : c.y};
    const uint32_t grid[3] = {t->n_padded / MRL_TRELLIS_BLOCK, plan.splits, 1};
    MRL_TRY(mrl_trellis_record(&c, MRL_KERNEL_trellis_gemv_coopmat, MRL_MATH_F16, plan.spec, 10, grid, reads,
                   sizeof reads / sizeof *reads, writes, 1, 2.0 * c.push.m * t->n * t->k, err));
    if (plan.splits > 1)
        MRL_TRY(mrl_trellis_transform(&c, MRL_TRELLIS_OUTPUT, c.args->y.dtype, plan.splits, sums, err));
done:
    mrl_buffer_release(x);
    mrl_buffer_release(sums);
    return rc;
}

/* ---- experts ---- */

/* Whether the products of a row's pairs are summed up. */
static bool adds_up(const mrl_trellis_experts_args *args)
{
    return args->weights.buffer != NULL;
}

/* What the push block has as order and ids: of an open choice what was told, and where it is written to. */
static const mrl_view *order_of(const mrl_trellis_experts_args *args)
{
    return args->choice.told.buffer != NULL ? &args->choice.told : &args->order;
}

static const mrl_view *ids_of(const mrl_trellis_experts_args *args)
{
    return args->choice.told.buffer != NULL ? &args->choice.ids : &args->ids;
}

static mrl_push_trellis_moe experts_push(const mrl_trellis_experts_args *args)
{
    const mrl_trellis *t = args->t;
    return (mrl_push_trellis_moe){
        .trellis = mrl_trellis_units_at(t, 0),
        .suh = suh_at(t, 0),
        .svh = svh_at(t, 0),
        .x = mrl_shares_address_or(&args->x_shares, &args->x),
        .norm = mrl_view_address(adds_up(args) ? &args->residual : &args->norm),
        .weights = mrl_view_address(&args->weights),
        .ids = mrl_view_address(ids_of(args)),
        .tiles = mrl_view_address(&args->tiles),
        .order = mrl_view_address(order_of(args)),
        .places = args->places != NULL ? mrl_buffer_address(args->places) : 0,
        .gate = mrl_shares_address_or(&args->gate_shares, &args->gate),
        .y = mrl_view_address(&args->y),
        .counters = mrl_buffer_address(args->counters.buffer) + args->counters.offset,
        .n = t->n,
        .k = t->k,
        .types = args->slots << 16 | args->x_shares.count << 20, /* and those of the plan */
        .eps = args->eps,
    };
}

uint32_t mrl_trellis_pairs(uint32_t tile, uint32_t experts)
{
    /* The tile of each expert that is not full counts as well. */
    if (tile < 16 || experts >= MRL_TRELLIS_PAIRS - 128) return MRL_TRELLIS_PAIRS;
    return mrl_min_u32(16 * MRL_TRELLIS_PAIRS, (MRL_TRELLIS_PAIRS - experts) * tile);
}

bool mrl_trellis_sums(uint32_t slots)
{
    return slots > 1 && slots <= MRL_TRELLIS_SUM_MAX;
}

/* Tiles of 16 pairs or more; there are enough of them, so that nobody shares columns. */
static mrl_status experts_on_matrices(mrl_device *dev, const mrl_trellis_experts_args *args, mrl_error *err)
{
    mrl_status rc;
    const mrl_trellis *t = args->t;
    const uint32_t pairs = (uint32_t)args->y.shape[0], tiles = (uint32_t)args->tiles.shape[0];
    const matrices_plan plan = plan_matrices(dev, t, args->tile, 1, 0, args->y.dtype, MRL_ACTIVATION_NONE);
    mrl_push_trellis_moe push = experts_push(args);
    mrl_buffer *x = NULL;
    mrl_pipeline *pipeline;

    if (args->norm.buffer != NULL)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: x of tiles of %u pairs must be normalised before", args->tile);
    if (tiles > MRL_TRELLIS_PAIRS || ((uint64_t)pairs + plan.rows) * t->k_padded > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u pairs are too many for one call", pairs);
    MRL_TRY(mrl_buffer_create(dev, ((uint64_t)pairs + plan.rows) * t->k_padded * 2, MRL_MEMORY_DEVICE, &x, err));
    push.eps = ldexpf(1.0f, t->x_exponent);
    MRL_TRY(mrl_trellis_transform_pairs(dev, args, &push, x, err));
    push.x = mrl_buffer_address(x);
    const mrl_range reads[] = {mrl_range_of(t->units),              mrl_range_of(t->svh),               mrl_range_of(x),
                               mrl_view_range(&args->tiles), mrl_view_range(&args->order), mrl_range_of(args->places)};
    const mrl_range writes[] = {mrl_view_range(&args->y)};
    const bool high = args->tile >= 32 && has_fragments(dev, t);
    const bool fours = t->n % 4 == 0 && mrl_view_address(&args->y) % (4 * mrl_dtype_bytes(args->y.dtype)) == 0;
    const uint32_t spec[] = {256,        t->rate2, (uint32_t)t->codebook, t->k_padded / GEMM_STEP,
                             args->tile, true,     true,                  (uint32_t)args->y.dtype,
                             MRL_ACTIVATION_NONE, fours};
    MRL_TRY(mrl_pipeline_get(dev, high ? MRL_KERNEL_trellis_moe_gemm_coopmat : MRL_KERNEL_trellis_moe_gemv_coopmat,
                             MRL_FORMAT_NONE, MRL_MATH_F16, high ? spec : plan.spec, 10, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {t->n_padded / MRL_TRELLIS_BLOCK, 1, tiles},
        .reads = reads,
        .nreads = sizeof reads / sizeof *reads,
        .writes = writes,
        .nwrites = 1,
        .flops = 2.0 * pairs * t->n * t->k,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    mrl_buffer_release(x);
    return rc;
}

/* Tiles or pairs that a dispatch has workgroups for. */
static uint32_t experts_copies(const mrl_trellis_experts_args *args)
{
    return args->tiles.buffer != NULL ? (uint32_t)args->tiles.shape[0]
                                      : (uint32_t)args->y.shape[0] * (adds_up(args) ? args->slots : 1);
}

static gemv_plan plan_experts(mrl_device *dev, const mrl_trellis_experts_args *args)
{
    const mrl_trellis *t = args->t;
    const mrl_trellis_args types = {
        .t = t, .x = args->x, .norm = args->norm, .gate = args->gate, .y = args->y, .activation = args->activation,
        .int8 = args->int8};
    const uint32_t copies = experts_copies(args), columns = t->n_padded / MRL_TRELLIS_BLOCK;
    const bool software = mrl_device_info_of(dev)->kind == MRL_DEVICE_SOFTWARE;
    const uint32_t enough = software || copies == 0 ? 1 : mrl_div_up(240, columns * copies);
    const tuning asked = {.tune = {args->splits ? args->splits : enough, software ? 1 : 2}};
    gemv_plan plan = plan_gemv(dev, &types, args->tile, &asked);

    /* Room for more than usual costs models a half percent that have no use for it. */
    plan.spec[plan.nspec++] = args->slots <= USUAL_SUM ? USUAL_SUM : MRL_TRELLIS_SUM_MAX;
    plan.nspec = mrl_choice_specialise(&args->choice, plan.spec, plan.nspec);
    return plan;
}

uint32_t mrl_trellis_experts_shares(mrl_device *dev, const mrl_trellis_experts_args *args)
{
    const gemv_plan plan = plan_experts(dev, args);
    const bool can = args->tile == 1 && args->tiles.buffer == NULL && args->places == NULL &&
                     plan.splits * args->slots < MRL_SHARES_LIMIT;
    return can ? plan.splits : 0;
}

static mrl_status check_expert_shares(mrl_device *dev, const mrl_trellis_experts_args *args, uint32_t pairs,
                                      mrl_error *err)
{
    mrl_status rc = MRL_OK;
    const mrl_view shape = {.ndim = 2, .shape = {pairs, args->t->k}};

    if (args->y.buffer == NULL && mrl_trellis_experts_shares(dev, args) == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: the result of these experts cannot stay in shares");
    if (args->x_shares.count != args->gate_shares.count || (args->x_shares.count > 0 && !adds_up(args)))
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: x and gate in shares are equally many, and for a weighted sum");
    if (args->x_shares.count > 0) {
        MRL_TRY(mrl_shares_check(&args->x_shares, &shape, dev, "trellis", "x", pairs, args->t->k, err));
        MRL_TRY(mrl_shares_check(&args->gate_shares, &shape, dev, "trellis", "gate", pairs, args->t->k, err));
    }
done:
    return rc;
}

mrl_status mrl_op_trellis_experts(mrl_device *dev, const mrl_trellis_experts_args *args, mrl_buffer **sums,
                                  mrl_error *err)
{
    mrl_status rc;
    const mrl_trellis *t = args->t;
    const uint32_t pairs = (uint32_t)args->y.shape[0] * (adds_up(args) ? args->slots : 1);
    const uint32_t copies = experts_copies(args), columns = t->n_padded / MRL_TRELLIS_BLOCK;
    const bool open = args->y.buffer == NULL; /* the result stays in shares */
    gemv_plan plan = plan_experts(dev, args);
    mrl_push_trellis_moe push = experts_push(args);
    mrl_buffer *partial = NULL;
    mrl_pipeline *pipeline;

    *sums = NULL;
    if (args->tile >= 16 && args->x.dtype == MRL_DTYPE_f16 && mrl_trellis_matrices(dev))
        return experts_on_matrices(dev, args, err);
    if (copies > MRL_TRELLIS_PAIRS)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u pairs are too many for one call", pairs);
    MRL_TRY(check_expert_shares(dev, args, pairs, err));
    const bool share = plan.splits > 1 || adds_up(args) || open;
    plan.spec[6] = share && !open; /* without the code that waits */
    plan.spec[13] |= open || args->x_shares.count > 0;
    const uint64_t told = share ? mrl_share_bytes(t->n, (uint64_t)plan.splits * copies * plan.spec[3]) : 0;
    MRL_TRY(check_plan(dev, &plan, told, err));
    push.types |= plan.types;
    if (told > 0) {
        MRL_TRY(mrl_buffer_create(dev, told, MRL_MEMORY_DEVICE, &partial, err));
        push.partial = mrl_buffer_address(partial);
    }
    const mrl_range counters = share && !open ? args->counters : (mrl_range){0};
    const mrl_range reads[] = {
        mrl_range_of(t->units), mrl_range_of(t->suh), mrl_range_of(t->svh),
        mrl_shares_range_or(&args->x_shares, &args->x), mrl_view_range(&args->norm),
        mrl_view_range(ids_of(args)), mrl_view_range(&args->tiles), mrl_view_range(order_of(args)),
        mrl_shares_range_or(&args->gate_shares, &args->gate), mrl_range_of(args->places),
        mrl_view_range(&args->weights), mrl_view_range(&args->residual),
    };
    /* The counters are read too: as ranges that are written they already are behind all others. */
    const mrl_range writes[] = {mrl_view_range(&args->y), counters, mrl_range_of(partial),
                                mrl_view_range(&args->choice.ids), mrl_view_range(&args->choice.weights),
                                mrl_view_range(&args->choice.usage)};
    const mrl_kernel kernel =
        plan.kernel == MRL_KERNEL_trellis_gemv_dot ? MRL_KERNEL_trellis_moe_gemv_dot : MRL_KERNEL_trellis_moe_gemv;
    MRL_TRY(mrl_pipeline_get(dev, kernel, MRL_FORMAT_NONE, plan.math, plan.spec, (int)plan.nspec, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {columns, plan.splits, copies},
        .reads = reads,
        .nreads = sizeof reads / sizeof *reads,
        .writes = writes,
        .nwrites = sizeof writes / sizeof *writes,
        .flops = 2.0 * pairs * t->n * t->k,
        .beside = args->beside ? 2 : 0,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
    *sums = partial;
    partial = NULL;
done:
    mrl_buffer_release(partial);
    return rc;
}

/* ---- gemm: input transform, product, output transform ---- */

/* The sums of all shares, or, where *sums stays NULL, all of it. */
static mrl_status product(const trellis_call *given, bool coopmat, const tuning *asked, mrl_buffer *x, uint32_t *splits,
                          mrl_buffer **sums, mrl_error *err)
{
    mrl_status rc;
    trellis_call c = *given;
    const mrl_trellis *t = c.args->t;
    const mrl_device_info *info = mrl_device_info_of(c.dev);
    const uint32_t m = c.push.m, columns = t->n_padded / MRL_TRELLIS_BLOCK, steps = t->k_padded / GEMM_STEP;
    const bool fragments = coopmat && has_fragments(c.dev, t);
    uint32_t rows = 32;

    if (coopmat)
        rows = asked->tune[1] ? asked->tune[1] : m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 || fragments ? 64 : 128;
    while (coopmat && rows > 64 && COOPMAT_SHARED(rows) > info->shared_bytes) rows /= 2;
    const uint32_t tiles = columns * mrl_div_up(m, rows);
    const uint32_t wanted = info->kind == MRL_DEVICE_SOFTWARE ? 1 : mrl_max_u32(1, GEMM_WORKGROUPS / tiles);
    const uint32_t most = mrl_div_up(steps, m > 64 ? 6 : 4);
    const uint32_t share = mrl_div_up(steps, mrl_min_u32(asked->tune[0] ? asked->tune[0] : wanted, most));
    *splits = mrl_div_up(steps, share);

    /* Of more rows others make y in less time. */
    const bool finishes = fragments && *splits == 1 && m <= 64 && WHOLE_SHARED(rows) <= info->shared_bytes;
    const uint64_t bytes = finishes ? 0 : (uint64_t)*splits * m * t->n_padded * sizeof(float);
    if (bytes / sizeof(float) > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u rows are too many for one call", m);
    if (!finishes) {
        MRL_TRY(mrl_buffer_create(c.dev, bytes, MRL_MEMORY_DEVICE, sums, err));
        c.push.partial = mrl_buffer_address(*sums);
    }
    c.push.x = mrl_buffer_address(x);
    const uint32_t spec[] = {
        256,       t->rate2, (uint32_t)t->codebook,       share,
        rows,      fragments, finishes, (uint32_t)c.args->y.dtype,
        (uint32_t)mrl_trellis_y_activation(c.args), mrl_trellis_fours_of_y(&c),
    };
    const uint32_t grid[3] = {columns, mrl_div_up(m, rows), *splits};
    const mrl_range reads[] = {mrl_range_of(t->units),
                               mrl_range_of(x),
                               mrl_range_of(t->svh),
                               mrl_view_range(&c.args->bias),
                               mrl_view_range(&c.args->residual)};
    const mrl_range writes[] = {finishes ? c.y : mrl_range_of(*sums)};
    MRL_TRY(mrl_trellis_record(&c, coopmat ? MRL_KERNEL_trellis_gemm_coopmat : MRL_KERNEL_trellis_gemm,
                               coopmat ? MRL_MATH_F16 : MRL_MATH_NONE, spec, coopmat ? 10 : 4, grid, reads,
                               finishes ? 5 : 2, writes, 1, 2.0 * m * t->n * t->k, err));
done:
    return rc;
}

static mrl_status gemm(const trellis_call *given, bool coopmat, const tuning *asked, mrl_error *err)
{
    mrl_status rc;
    trellis_call c = *given;
    const mrl_trellis *t = c.args->t;
    const mrl_dtype dtype = coopmat ? MRL_DTYPE_f16 : MRL_DTYPE_f32;
    mrl_buffer *x = NULL, *sums = NULL;
    uint32_t splits = 0;

    MRL_TRY(mrl_buffer_create(c.dev, (uint64_t)c.push.m * t->k_padded * mrl_dtype_bytes(dtype), MRL_MEMORY_DEVICE, &x,
                              err));
    c.push.partial = mrl_buffer_address(x);
    c.push.x_scale = coopmat ? ldexpf(1.0f, t->x_exponent) : 1.0f;
    MRL_TRY(mrl_trellis_transform(&c, MRL_TRELLIS_INPUT, dtype, 1, x, err));
    MRL_TRY(product(&c, coopmat, asked, x, &splits, &sums, err));
    if (sums == NULL)
        goto done;
    c.push.partial = mrl_buffer_address(sums);
    MRL_TRY(mrl_trellis_transform(&c, MRL_TRELLIS_OUTPUT, c.args->y.dtype, splits, sums, err));
done:
    mrl_buffer_release(x);
    mrl_buffer_release(sums);
    return rc;
}

/* ---- choice ---- */

static bool coopmat_can(const trellis_call *c)
{
    return mrl_pipeline_available(c->dev, MRL_KERNEL_trellis_gemm_coopmat, MRL_FORMAT_NONE, MRL_MATH_F16) &&
           mrl_device_info_of(c->dev)->subgroup_size == 32 && c->args->x.dtype == MRL_DTYPE_f16 &&
           mrl_device_info_of(c->dev)->shared_bytes >= COOPMAT_SHARED(64);
}

/* Without a kernel asked for. */
static mrl_kernel choose(const trellis_call *c)
{
    const bool fragments = has_fragments(c->dev, c->args->t);
    const bool wide = c->args->t->n_padded / MRL_TRELLIS_BLOCK >= GEMV_WIDE;
    const bool tiled = fragments && !wide && coopmat_can(c); /* whose x must be normalised before, in a dispatch more */
    const uint32_t least = MATRIX_MIN_ROWS(wide, fragments) - (tiled && c->args->norm.buffer == NULL ? 1 : 0);

    if (c->push.m >= least && c->push.m <= MATRIX_USUAL_ROWS && !c->args->int8 &&
        c->args->x.dtype == MRL_DTYPE_f16 && mrl_trellis_matrices(c->dev))
        return tiled ? MRL_KERNEL_trellis_gemm_coopmat : MRL_KERNEL_trellis_gemv_coopmat;
    if (c->push.m <= GEMV_MAX_ROWS) return MRL_KERNEL_trellis_gemv;
    return coopmat_can(c) ? MRL_KERNEL_trellis_gemm_coopmat : MRL_KERNEL_trellis_gemm;
}

/* Software devices take several rows of x one by one, as in matmul.c: a kernel for M rows takes them seconds to
 * compile, and rows are the same alone and in a batch. */
static bool row_by_row(mrl_device *dev, const mrl_trellis_args *args)
{
    return mrl_device_info_of(dev)->kind == MRL_DEVICE_SOFTWARE && args->x.shape[0] > 1 && args->kernel == NULL;
}

static mrl_status cannot(mrl_device *dev, const tuning *asked, mrl_error *err)
{
    return mrl_fail(err, MRL_ERR_VALUE, "trellis: kernel %s cannot do this product on %s", asked->name,
                    mrl_device_info_of(dev)->name);
}

mrl_status mrl_op_trellis(mrl_device *dev, const mrl_trellis_args *given, mrl_error *err)
{
    mrl_status rc;
    mrl_trellis_args args = *given;
    mrl_view normalised = {0};
    tuning asked;

    MRL_TRY(mrl_trellis_check(dev, &args, err));
    if (row_by_row(dev, &args)) {
        for (uint64_t row = 0; row < given->x.shape[0]; row++) {
            args.x = mrl_view_rows(&given->x, row, 1);
            args.y = mrl_view_rows(&given->y, row, 1);
            args.gate = mrl_view_rows(&given->gate, row, 1);
            args.residual = mrl_view_rows(&given->residual, row, 1);
            MRL_TRY(mrl_op_trellis(dev, &args, err));
        }
        return MRL_OK;
    }
    MRL_TRY(parse_kernel(args.kernel, &asked, err));
    trellis_call c = begin(dev, &args);
    mrl_kernel kernel = choose(&c);
    if (asked.name[0] != 0)
        for (int i = 0; i < MRL_KERNEL_COUNT; i++)
            if (strcmp(asked.name, mrl_kernel_name((mrl_kernel)i)) == 0) kernel = (mrl_kernel)i;
    const uint32_t most = kernel == MRL_KERNEL_trellis_gemv           ? GEMV_MAX_ROWS
                          : kernel == MRL_KERNEL_trellis_gemv_coopmat ? MATRIX_MAX_ROWS
                                                                      : UINT32_MAX;
    if (c.push.m > most)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %s takes at most %u rows, got %u", mrl_kernel_name(kernel), most,
                        c.push.m);
    if (kernel == MRL_KERNEL_trellis_gemv) {
        MRL_TRY(gemv(&c, &asked, err));
        return MRL_OK;
    }
    if (args.x_shares.count > 0)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %s takes no x in shares", mrl_kernel_name(kernel));
    if (args.norm.buffer != NULL) {
        const mrl_dtype dtype = wants_f32(dev, &args) ? MRL_DTYPE_f32 : MRL_DTYPE_f16;
        MRL_TRY(mrl_rms_norm_new(&args.x, &args.norm, args.eps, dtype, &normalised, err));
        args.x = normalised;
        args.norm = (mrl_view){0};
        c = begin(dev, &args);
        if (asked.name[0] == 0) kernel = choose(&c);
    }
    if (kernel == MRL_KERNEL_trellis_gemm_coopmat && !coopmat_can(&c)) {
        rc = cannot(dev, &asked, err);
        goto done;
    }
    if (kernel == MRL_KERNEL_trellis_gemv_coopmat) {
        if (!mrl_trellis_matrices(dev) || c.args->x.dtype != MRL_DTYPE_f16) {
            rc = cannot(dev, &asked, err);
            goto done;
        }
        MRL_TRY(matrices(&c, &asked, err));
        goto done;
    }
    MRL_TRY(gemm(&c, kernel == MRL_KERNEL_trellis_gemm_coopmat, &asked, err));
done:
    mrl_buffer_release(normalised.buffer);
    return rc;
}

/* ---- decoding ---- */

mrl_status mrl_op_trellis_dequantize(mrl_device *dev, const mrl_trellis *t, uint32_t expert, const mrl_view *y,
                                     mrl_error *err)
{
    mrl_status rc;
    mrl_buffer *left = NULL;
    const uint32_t most = mrl_min_u32(COPY_ROWS, t->k_padded);
    const uint64_t row_bytes = (uint64_t)t->n * mrl_dtype_bytes(y->dtype);

    MRL_TRY(mrl_view_check(y, dev, "dequantize", "out", MRL_DTYPES_ACT, 2, (uint64_t[]){t->k, t->n}, err));
    MRL_TRY(mrl_buffer_create(dev, (uint64_t)most * t->n_padded * sizeof(float), MRL_MEMORY_DEVICE, &left, err));
    for (uint32_t row = 0; row < t->k; row += most) {
        const uint32_t rows = mrl_min_u32(most, t->k - row);
        const mrl_push_trellis_copy push = {
            .file = mrl_buffer_address(left),
            .trellis = mrl_trellis_units_at(t, expert),
            .suh = suh_at(t, expert),
            .row = row / 16,
            .k = t->k_padded,
            .n = t->n_padded,
        };
        const uint32_t groups[3] = {t->n_padded / 16, mrl_div_up(rows, MRL_TRELLIS_BLOCK), 1};
        const mrl_trellis_args args = {
            .t = t,
            .expert = expert,
            .x = {.shape = {rows, t->k}},
            .y = {y->buffer, y->offset + row * row_bytes, y->dtype, 2, {rows, t->n}},
        };
        MRL_TRY(mrl_trellis_copy(dev, t, MRL_KERNEL_trellis_dequantize, 1, &push, groups, mrl_range_of(t->units),
                                 mrl_range_of(left), err));
        trellis_call c = begin(dev, &args);
        c.push.partial = mrl_buffer_address(left);
        MRL_TRY(mrl_trellis_transform(&c, MRL_TRELLIS_OUTPUT, y->dtype, 1, left, err));
    }
done:
    mrl_buffer_release(left);
    return rc;
}
