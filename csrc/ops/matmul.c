#include "ops/matmul.h"

#include <stdio.h>
#include <string.h>

#include "push.h"

#include "ops/gemv.h"
#include "ops/norm.h"
#include "ops/quantize.h"

#define GEMM_TILE 64u
#define GEMM_ENOUGH 132u /* tiles: as many as an H200 has multiprocessors; where there are fewer of 64 they are of 32 */

/* A kernel asked for by name: "gemv", or, for the tuner and benchmarks, "gemv@rows,split,prefetch,local,workgroups",
 * "gemm@tile / 32" and "gemm_coopmat@columns / 128,buffers,rows / 128". */
typedef struct tuning {
    char name[32];      /* empty: choose */
    uint32_t tune[5];   /* 0: the default */
} tuning;

typedef struct matmul_plan {
    mrl_kernel kernel;
    mrl_math math;
    uint32_t spec[MRL_MAX_SPEC];
    int nspec;
    uint32_t groups[3];
} matmul_plan;

static bool wants_f32(const mrl_matmul_args *args)
{
    return mrl_wants_f32(args->w->format, args->x.dtype, args->norm.buffer != NULL);
}

static mrl_status plan_gemv(mrl_device *dev, const mrl_matmul_args *args, const tuning *asked, matmul_plan *plan,
                            mrl_error *err)
{
    mrl_status rc;
    const mrl_gemv_work work = {.w = args->w,
                                .n = args->w->n,
                                .length = args->w->k_padded,
                                .m = (uint32_t)args->x.shape[0],
                                .copies = 1,
                                .x = args->x.dtype,
                                .y = args->y.dtype,
                                .activation = args->activation,
                                .norm = args->norm.buffer != NULL,
                                .staged = asked->name[0] != 0};
    const uint32_t *tune = asked->tune;
    const mrl_gemv_tuning wanted = {tune[0], tune[1], tune[2], tune[3], tune[4]};
    mrl_gemv_plan made = {0};

    MRL_TRY(mrl_plan_gemv(dev, &work, &wanted, &made, err));
    plan->kernel = MRL_KERNEL_gemv;
    plan->math = made.math;
    memcpy(plan->spec, made.spec, sizeof made.spec);
    plan->nspec = made.nspec;
    memcpy(plan->groups, made.groups, sizeof made.groups);
done:
    return rc;
}

/* ---- tiled kernels ---- */

static void plan_tiles(const mrl_matmul_args *args, mrl_kernel kernel, mrl_math math, matmul_plan *plan)
{
    const mrl_weight *w = args->w;
    const uint32_t spec[] = {256,
                             (uint32_t)args->x.dtype,
                             (uint32_t)args->y.dtype,
                             (uint32_t)w->scale_type,
                             w->has_zero,
                             w->group,
                             (uint32_t)args->activation};

    plan->kernel = kernel;
    plan->math = math;
    memcpy(plan->spec, spec, sizeof spec);
    plan->nspec = sizeof spec / sizeof *spec;
    plan->groups[0] = mrl_div_up(w->n, GEMM_TILE);
    plan->groups[1] = mrl_div_up((uint32_t)args->x.shape[0], GEMM_TILE);
    plan->groups[2] = 1;
}

/* Plain f32. */
static void plan_gemm(const mrl_matmul_args *args, const tuning *asked, matmul_plan *plan)
{
    const uint32_t m = (uint32_t)args->x.shape[0], n = args->w->n;
    const bool few = (uint64_t)mrl_div_up(m, GEMM_TILE) * mrl_div_up(n, GEMM_TILE) < GEMM_ENOUGH;
    const uint32_t tile = asked->tune[0] ? 32 * asked->tune[0] : few ? 32 : GEMM_TILE;

    plan_tiles(args, MRL_KERNEL_gemm, MRL_MATH_NONE, plan);
    plan->spec[plan->nspec++] = tile;
    plan->groups[0] = mrl_div_up(n, tile);
    plan->groups[1] = mrl_div_up(m, tile);
}

static void plan_broadcast(mrl_device *dev, const mrl_matmul_args *args, matmul_plan *plan)
{
    const uint32_t m = (uint32_t)args->x.shape[0], lanes = mrl_device_info_of(dev)->subgroup_size;
    const uint32_t high = m <= 4 ? 4 : 8;

    plan_tiles(args, MRL_KERNEL_gemm_broadcast, MRL_MATH_NONE, plan);
    plan->spec[0] = lanes;
    plan->spec[plan->nspec++] = high;
    plan->groups[0] = mrl_div_up(args->w->n, 2 * lanes);
    plan->groups[1] = mrl_div_up(m, high);
}

#define COOPMAT_LEAST_SHARED 30720u /* of the tiles that are chosen without being asked for */

static mrl_status plan_coopmat(mrl_device *dev, const mrl_matmul_args *args, const tuning *asked, matmul_plan *plan,
                               mrl_error *err)
{
    const uint32_t m = (uint32_t)args->x.shape[0], n = args->w->n;
    /* Tiles of 128 x 256 fill 48 KiB with one buffer and read least; high ones decode packed weights half as often.
     * Products with few tiles stay with 128 x 128, to use more of the device. */
    const bool large = (uint64_t)mrl_div_up(m, 128) * mrl_div_up(n, 256) >= 96;
    const bool packed = mrl_format_bits(args->w->format) < 16;
    const uint32_t columns = asked->tune[0] ? 128 * asked->tune[0] : large && (!packed || m < 256) ? 256 : 128;
    const uint32_t height = asked->tune[2] ? 128 * asked->tune[2] : large && columns == 128 ? 256 : 128;

    plan_tiles(args, MRL_KERNEL_gemm_coopmat, MRL_MATH_F16, plan);
    const uint32_t buffers = asked->tune[1] ? asked->tune[1] : 1, shared = buffers * (columns + height) * 80;

    if (shared > mrl_device_info_of(dev)->shared_bytes)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: kernel gemm_coopmat with %u tiles of %u x %u needs %u bytes of "
                        "shared memory, %s has %u", buffers, height, columns, shared, mrl_device_info_of(dev)->name,
                        mrl_device_info_of(dev)->shared_bytes);
    plan->spec[plan->nspec++] = columns;
    plan->spec[plan->nspec++] = buffers;
    plan->spec[plan->nspec++] = height;
    plan->groups[0] = mrl_div_up(n, columns);
    plan->groups[1] = mrl_div_up(m, height);
    return MRL_OK;
}

/* ---- choice: the first row that can do it ---- */

static bool gemv_can(mrl_device *dev, const mrl_matmul_args *args)
{
    (void)dev;
    return args->x.shape[0] <= MRL_GEMV_MAX_ROWS;
}

static bool coopmat_can(mrl_device *dev, const mrl_matmul_args *args)
{
    return mrl_pipeline_available(dev, MRL_KERNEL_gemm_coopmat, args->w->format, MRL_MATH_F16) &&
           mrl_device_info_of(dev)->subgroup_size == 32 && args->w->k % 8 == 0 && args->x.dtype == MRL_DTYPE_f16 &&
           mrl_device_info_of(dev)->shared_bytes >= COOPMAT_LEAST_SHARED;
}

/* What a batch of few rows takes there, too: with many rows of x, llvmpipe compiles gemv for 5 to 100 s. */
static bool broadcast_can(mrl_device *dev, const mrl_matmul_args *args)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    if (args->kernel != NULL) /* its workgroup must be one subgroup */
        return mrl_whole_subgroups(info);
    return info->kind == MRL_DEVICE_SOFTWARE && args->x.shape[0] > 1;
}

static bool gemm_can(mrl_device *dev, const mrl_matmul_args *args)
{
    (void)dev;
    (void)args;
    return true;
}

static const struct {
    mrl_kernel kernel;
    bool (*can)(mrl_device *, const mrl_matmul_args *);
} rows[] = {
    {MRL_KERNEL_gemm_broadcast, broadcast_can},
    {MRL_KERNEL_gemv, gemv_can},
    {MRL_KERNEL_gemm_coopmat, coopmat_can},
    {MRL_KERNEL_gemm, gemm_can},
};

static mrl_status parse_kernel(const char *text, tuning *out, mrl_error *err)
{
    memset(out, 0, sizeof *out);
    if (text == NULL)
        return MRL_OK;
    if (sscanf(text, "%31[a-z0-9_]@%u,%u,%u,%u,%u", out->name, &out->tune[0], &out->tune[1], &out->tune[2],
               &out->tune[3], &out->tune[4]) < 1)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: kernel must be a name of kernels.def, got \"%s\"", text);
    static const struct {
        mrl_kernel kernel;
        uint32_t most[5]; /* a power of two each, but for the last */
    } limits[] = {{MRL_KERNEL_gemv, {8, 32, 16, 1024, 65536}},
                  {MRL_KERNEL_gemm, {2}},
                  {MRL_KERNEL_gemm_coopmat, {2, 2, 2}}};
    for (int i = 0; i < 5; i++) {
        uint32_t most = 0;
        for (size_t j = 0; j < sizeof limits / sizeof *limits; j++)
            if (strcmp(out->name, mrl_kernel_name(limits[j].kernel)) == 0)
                most = limits[j].most[i];
        if (out->tune[i] > most || (i < 4 && (out->tune[i] & (out->tune[i] - 1))))
            return mrl_fail(err, MRL_ERR_VALUE, "linear: kernel \"%s\" asks for what cannot be tuned", text);
    }
    return MRL_OK;
}

static mrl_status choose(mrl_device *dev, const mrl_matmul_args *args, const tuning *asked, matmul_plan *plan,
                         mrl_error *err)
{
    const bool named = asked->name[0] != 0;

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (named && strcmp(asked->name, mrl_kernel_name(rows[i].kernel)) != 0)
            continue;
        if (!rows[i].can(dev, args)) {
            if (named)
                return mrl_fail(err, MRL_ERR_VALUE, "linear: kernel %s cannot do this product on %s", asked->name,
                                mrl_device_info_of(dev)->name);
            continue;
        }
        switch (rows[i].kernel) {
        case MRL_KERNEL_gemv: return plan_gemv(dev, args, asked, plan, err);
        case MRL_KERNEL_gemm_broadcast: plan_broadcast(dev, args, plan); return MRL_OK;
        case MRL_KERNEL_gemm_coopmat: return plan_coopmat(dev, args, asked, plan, err);
        default: plan_gemm(args, asked, plan); return MRL_OK;
        }
    }
    return mrl_fail(err, MRL_ERR_VALUE, "linear: there is no matmul kernel called %s", asked->name);
}

/* Only gemv normalises x itself. */
static bool fuses_norm(mrl_device *dev, const mrl_matmul_args *args, const tuning *asked)
{
    if (asked->name[0] != 0)
        return strcmp(asked->name, mrl_kernel_name(MRL_KERNEL_gemv)) == 0;
    return gemv_can(dev, args) && !broadcast_can(dev, args);
}

/* ---- the op ---- */

/* Workgroups write y while others still read. A residual may be the very memory of y: each element is read by the
 * thread that writes it. */
static mrl_status check_overlap(const mrl_matmul_args *args, mrl_error *err)
{
    const struct {
        const char *name;
        const mrl_view *view;
    } inputs[] = {{"x", &args->x}, {"norm", &args->norm}, {"bias", &args->bias}, {"residual", &args->residual}};
    const bool in_place = args->y.dtype == MRL_DTYPE_f32 &&
                          mrl_view_address(&args->y) == mrl_view_address(&args->residual);

    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        if (mrl_views_overlap(&args->y, inputs[i].view) && !(in_place && inputs[i].view == &args->residual))
            return mrl_fail(err, MRL_ERR_VALUE, "linear: out must not share memory with %s", inputs[i].name);
    return MRL_OK;
}

static mrl_status check(mrl_device *dev, const mrl_matmul_args *args, mrl_error *err)
{
    mrl_status rc;
    const mrl_weight *w = args->w;
    const bool gated = mrl_activation_gated(args->activation);
    const uint64_t m = args->x.ndim == 2 ? args->x.shape[0] : 0;
    const uint64_t columns = gated ? w->n / 2 : w->n;
    uint64_t elements;

    if (args->x.ndim != 2)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: x must have 2 dimensions (m, %u), got %d", w->k, args->x.ndim);
    if (gated && w->n % 2 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: a gated activation needs an even number of rows, W has %u", w->n);
    if (!mrl_mul_u64(m, w->n > w->k ? w->n : w->k, &elements) || elements > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "linear: %llu rows are too many for one call", (unsigned long long)m);
    MRL_TRY(mrl_view_check(&args->x, dev, "linear", "x", MRL_DTYPES_ACT, 2, (uint64_t[]){m, w->k}, err));
    MRL_TRY(mrl_view_check(&args->y, dev, "linear", "out", MRL_DTYPES_ACT, 2, (uint64_t[]){m, columns}, err));
    if (args->norm.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->norm, dev, "linear", "norm", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){w->k}, err));
    if (args->bias.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->bias, dev, "linear", "bias", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){w->n}, err));
    if (args->residual.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->residual, dev, "linear", "residual", MRL_DTYPE_BIT(f32), 2,
                               (uint64_t[]){m, columns}, err));
    MRL_TRY(check_overlap(args, err));
done:
    return rc;
}

static mrl_status dispatch(mrl_device *dev, const mrl_matmul_args *args, const matmul_plan *plan, mrl_error *err)
{
    mrl_status rc;
    const mrl_weight *w = args->w;
    const uint32_t m = (uint32_t)args->x.shape[0];
    const uint64_t skipped = (uint64_t)w->first * w->groups; /* groups before the first row of a part */
    mrl_pipeline *pipeline;
    const mrl_push_matmul push = {
        .quant = mrl_buffer_address(w->quant) + w->first * mrl_weight_row_bytes(w),
        .scale = w->scale ? mrl_buffer_address(w->scale) + skipped * mrl_scale_bytes(w->scale_type) : 0,
        .zero = w->zero ? mrl_buffer_address(w->zero) + skipped : 0,
        .x = mrl_view_address(&args->x),
        .norm = mrl_view_address(&args->norm),
        .bias = mrl_view_address(&args->bias),
        .residual = mrl_view_address(&args->residual),
        .y = mrl_view_address(&args->y),
        .m = m,
        .n = w->n,
        .k = w->k,
        .k_padded = w->k_padded,
        .groups = w->groups,
        .workgroups = plan->groups[0],
        .eps = args->eps,
        .global_scale = w->global_scale,
    };
    const mrl_range reads[] = {mrl_range_of(w->quant), mrl_range_of(w->scale), mrl_range_of(w->zero),
                               mrl_view_range(&args->x), mrl_view_range(&args->norm), mrl_view_range(&args->bias),
                               mrl_view_range(&args->residual)};
    const mrl_range writes[] = {mrl_view_range(&args->y)};

    MRL_TRY(mrl_pipeline_get(dev, plan->kernel, w->format, plan->math, plan->spec, plan->nspec, &pipeline, err));
    const mrl_dispatch d = {.pipeline = pipeline,
                            .push = &push,
                            .push_bytes = sizeof push,
                            .groups = {plan->groups[0], plan->groups[1], plan->groups[2]},
                            .reads = reads,
                            .nreads = sizeof reads / sizeof *reads,
                            .writes = writes,
                            .nwrites = 1,
                            .flops = 2.0 * m * w->n * w->k};
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    return rc;
}

mrl_status mrl_op_matmul(mrl_device *dev, const mrl_matmul_args *given, mrl_error *err)
{
    mrl_status rc;
    mrl_matmul_args args = *given;
    mrl_buffer *x_copy = NULL, *norm_copy = NULL;
    mrl_view normalised = {0};
    matmul_plan plan = {0};
    tuning asked;

    MRL_TRY(check(dev, &args, err));
    MRL_TRY(mrl_view_align(&args.x, dev, &x_copy, err));
    MRL_TRY(mrl_view_align(&args.norm, dev, &norm_copy, err));
    MRL_TRY(parse_kernel(args.kernel, &asked, err));
    if (args.norm.buffer != NULL && !fuses_norm(dev, &args, &asked)) {
        const mrl_dtype dtype = wants_f32(&args) ? MRL_DTYPE_f32 : MRL_DTYPE_f16;
        MRL_TRY(mrl_rms_norm_new(&args.x, &args.norm, args.eps, dtype, &normalised, err));
        args.x = normalised;
        args.norm = (mrl_view){0};
    }
    MRL_TRY(choose(dev, &args, &asked, &plan, err));
    MRL_TRY(dispatch(dev, &args, &plan, err));
done:
    mrl_buffer_release(x_copy);
    mrl_buffer_release(norm_copy);
    mrl_buffer_release(normalised.buffer);
    return rc;
}
