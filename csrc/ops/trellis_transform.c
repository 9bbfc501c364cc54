/* The Hadamard transforms of EXL3 rows on their own (shaders/trellis/transform.glsl). */
#include "ops/trellis_call.h"

uint32_t mrl_trellis_transform_lanes(const mrl_device_info *info)
{
    return info->subgroup_min >= 32 ? 32 : info->subgroup_min >= 16 ? 16 : 8;
}

/* Gated activations act on x, others on y. */
static mrl_activation x_activation(const mrl_trellis_args *args)
{
    return mrl_activation_gated(args->activation) ? args->activation : MRL_ACTIVATION_NONE;
}
mrl_activation mrl_trellis_y_activation(const mrl_trellis_args *args)
{
    return mrl_activation_gated(args->activation) ? MRL_ACTIVATION_NONE : args->activation;
}

/* How trellis/transform.glsl divides the transform of rows. */
typedef struct transform_plan {
    uint32_t lanes, loops, cluster, groups; /* groups: workgroups a row */
} transform_plan;

static transform_plan plan_transform(mrl_device *dev, uint32_t width)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint32_t cluster = mrl_trellis_transform_lanes(info), most = mrl_min_u32(8 * cluster, info->max_workgroup);
    const bool loops = info->kind == MRL_DEVICE_SOFTWARE || !mrl_whole_subgroups(info) ||
                       info->subgroup_min < cluster;
    const uint32_t lanes = loops ? 64 : most, blocks = loops ? lanes / 16 : lanes / cluster;
    return (transform_plan){lanes, loops, cluster, mrl_div_up(width / MRL_TRELLIS_BLOCK, blocks)};
}

/* Whether kernels can take four elements at once. */
static bool fours_of(uint64_t k, const mrl_view *x, const mrl_view *gate)
{
    return k % 8 == 0 && (mrl_view_address(x) | mrl_view_address(gate)) % (4 * mrl_dtype_bytes(x->dtype)) == 0;
}
static bool fours_of_x(const mrl_trellis_args *args) { return fours_of(args->t->k, &args->x, &args->gate); }
bool mrl_trellis_fours_of_y(const trellis_call *c)
{
    const mrl_trellis_args *args = c->args;
    return args->t->n % 4 == 0 && c->push.y_stride % 4 == 0 && c->push.y % (4 * mrl_dtype_bytes(args->y.dtype)) == 0 &&
           (mrl_view_address(&args->bias) | mrl_view_address(&args->residual)) % 16 == 0;
}

mrl_status mrl_trellis_transform(const trellis_call *c, mrl_trellis_side side, mrl_dtype y_type, uint32_t splits,
                                 mrl_buffer *partial, mrl_error *err)
{
    const mrl_trellis_args *args = c->args;
    const mrl_device_info *info = mrl_device_info_of(c->dev);
    const transform_plan plan =
        plan_transform(c->dev, side == MRL_TRELLIS_OUTPUT ? c->push.n_padded : c->push.k_padded);
    const uint32_t spec[] = {plan.lanes,
                             (uint32_t)side,
                             (uint32_t)args->x.dtype,
                             (uint32_t)y_type,
                             (uint32_t)(side == MRL_TRELLIS_INPUT ? x_activation(args)
                                                                  : mrl_trellis_y_activation(args)),
                             splits,
                             false,
                             plan.lanes,
                             plan.loops,
                             plan.cluster,
                             side == MRL_TRELLIS_OUTPUT ? mrl_trellis_fours_of_y(c) : fours_of_x(args)};
    const uint32_t groups[3] = {plan.groups, c->push.m, 1};
    if (c->push.m > info->max_groups[1])
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %u rows are too many for one call", c->push.m);
    if (side == MRL_TRELLIS_INPUT) {
        const mrl_range reads[] = {mrl_view_range(&args->x), mrl_range_of(args->t->suh), mrl_view_range(&args->gate)};
        const mrl_range writes[] = {mrl_range_of(partial)};
        return mrl_trellis_record(c, MRL_KERNEL_hadamard, MRL_MATH_NONE, spec, 11, groups, reads, 3, writes, 1, 0, err);
    }
    const mrl_range reads[] = {mrl_range_of(partial), mrl_range_of(args->t->svh), mrl_view_range(&args->bias),
                               mrl_view_range(&args->residual)};
    const mrl_range writes[] = {c->y};
    return mrl_trellis_record(c, MRL_KERNEL_hadamard, MRL_MATH_NONE, spec, 11, groups, reads, 4, writes, 1, 0, err);
}

mrl_status mrl_trellis_transform_pairs(mrl_device *dev, const mrl_trellis_experts_args *args,
                                       mrl_push_trellis_moe *push, mrl_buffer *out, mrl_error *err)
{
    mrl_status rc;
    mrl_pipeline *pipeline;
    const uint32_t activation = args->gate.buffer != NULL ? (uint32_t)args->activation : MRL_ACTIVATION_NONE;
    const transform_plan plan = plan_transform(dev, args->t->k_padded);
    const uint32_t spec[] = {plan.lanes, (uint32_t)args->x.dtype, activation, plan.lanes, plan.loops, plan.cluster,
                             fours_of(args->t->k, &args->x, &args->gate)};
    const mrl_range reads[] = {mrl_range_of(args->t->suh),   mrl_view_range(&args->x),     mrl_view_range(&args->gate),
                               mrl_view_range(&args->tiles), mrl_view_range(&args->order), mrl_range_of(args->places)};
    const mrl_range writes[] = {mrl_range_of(out)};

    push->partial = mrl_buffer_address(out);
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_trellis_moe_hadamard, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 7, &pipeline,
                             err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = push,
        .push_bytes = sizeof *push,
        .groups = {plan.groups, args->tile, (uint32_t)args->tiles.shape[0]},
        .reads = reads,
        .nreads = sizeof reads / sizeof *reads,
        .writes = writes,
        .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    return rc;
}

mrl_status mrl_op_hadamard(mrl_device *dev, const mrl_view *x, const mrl_view *scales, const mrl_view *y,
                           mrl_error *err)
{
    mrl_status rc;
    const uint64_t k = x->ndim == 2 ? x->shape[1] : 0;
    mrl_view factors = *scales;
    mrl_buffer *copy = NULL;

    if (k == 0 || k % MRL_TRELLIS_BLOCK != 0 || k > INT32_MAX || x->shape[0] > INT32_MAX / k)
        return mrl_fail(err, MRL_ERR_VALUE, "hadamard: x must be (rows, a multiple of 128)");
    MRL_TRY(mrl_view_check(x, dev, "hadamard", "x", MRL_DTYPES_ACT, 2, x->shape, err));
    if (scales->buffer != NULL)
        MRL_TRY(mrl_view_check(scales, dev, "hadamard", "scales", MRL_DTYPE_BIT(f16), 1, &k, err));
    MRL_TRY(mrl_view_check(y, dev, "hadamard", "out", MRL_DTYPE_BIT(f32) | MRL_DTYPE_BIT(f16), 2, x->shape, err));
    if (mrl_view_address(y) % 16 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "hadamard: out must begin at a multiple of 16 bytes");
    MRL_TRY(mrl_view_align(&factors, dev, &copy, err));
    const mrl_push_trellis push = {
        .suh = mrl_view_address(&factors),
        .x = mrl_view_address(x),
        .partial = mrl_view_address(y),
        .m = (uint32_t)x->shape[0],
        .k = (uint32_t)k,
        .k_padded = (uint32_t)k,
        .x_scale = 1.0f,
    };
    const transform_plan plan = plan_transform(dev, (uint32_t)k);
    const bool reference = y->dtype == MRL_DTYPE_f16;
    const uint32_t spec[] = {plan.lanes, MRL_TRELLIS_INPUT, (uint32_t)x->dtype, (uint32_t)y->dtype, 0, 1, reference,
                             plan.lanes, plan.loops, plan.cluster, fours_of(k, x, &(mrl_view){0})};
    const uint32_t groups[3] = {plan.groups, push.m, 1};
    const mrl_range reads[] = {mrl_view_range(x), mrl_view_range(&factors)}, writes[] = {mrl_view_range(y)};
    const trellis_call c = {.dev = dev, .push = push};
    if (push.m > mrl_device_info_of(dev)->max_groups[1])
        return mrl_fail(err, MRL_ERR_VALUE, "hadamard: %u rows are too many for one call", push.m);
    MRL_TRY(mrl_trellis_record(&c, MRL_KERNEL_hadamard, MRL_MATH_NONE, spec, 11, groups, reads, 2, writes, 1, 0, err));
done:
    mrl_buffer_release(copy);
    return rc;
}
