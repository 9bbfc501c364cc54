#include "ops/router.h"

#include <string.h>

#include "push.h"

#include "ops/gemv.h"
#include "ops/norm.h"

#define ROWS_MAX 32768u /* of one dispatch */
#define SUBGROUPS_MAX 64u /* that router.comp has room for */
#define MANY 128u /* experts: more are not compared with each other, by measurement on an H200 */
#define OPEN_A_LANE 16u /* experts a lane of a subgroup, at most, for the choice to stay open */
#define ROUNDS_MAX 8u /* loads of a lane that are under way at once */

static uint32_t router_rows(const mrl_moe_layer *layer) { return layer->router->n; }

static mrl_status logits_by_matmul(mrl_device *dev, const mrl_moe_args *args, const mrl_view *logits, mrl_error *err)
{
    mrl_status rc;
    mrl_view x = {0};
    mrl_matmul_args product = {.w = args->layer->router, .x = args->x, .y = *logits};

    if (args->norm.buffer != NULL) {
        MRL_TRY(mrl_rms_norm_new(&args->x, &args->norm, args->eps, MRL_DTYPE_f32, &x, err));
        product.x = x;
    }
    MRL_TRY(mrl_op_matmul(dev, &product, err));
done:
    mrl_buffer_release(x.buffer);
    return rc;
}

static uint32_t router_lanes(mrl_device *dev, uint32_t k, uint32_t experts)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    /* One subgroup on a CPU: loops of several, some of which are done, end early on lavapipe (Mesa 22.3). */
    uint32_t lanes = info->subgroup_max, most = mrl_device_is_software(dev) ? 1 : experts > 256 ? 512 : 256;
    while (lanes * 2 <= most && lanes * 4 < k && lanes * 2 <= info->max_workgroup &&
           lanes * 2 <= SUBGROUPS_MAX * info->subgroup_min)
        lanes *= 2;
    return lanes;
}

/* work: MRL_ROUTER_ALL, CHOOSE, with logits that are there, or TELL, with `logits` for what is told and without ids,
 * weights and counters. */
static mrl_status dispatch_router(mrl_device *dev, const mrl_moe_args *args, uint32_t work, const mrl_view *logits,
                                  const mrl_view *ids, const mrl_view *weights, mrl_error *err)
{
    static const mrl_dtype types[MRL_FORMAT_COUNT] = {[MRL_FORMAT_f32] = MRL_DTYPE_f32,
                                                      [MRL_FORMAT_f16] = MRL_DTYPE_f16,
                                                      [MRL_FORMAT_bf16] = MRL_DTYPE_bf16};
    mrl_status rc;
    mrl_pipeline *pipeline;
    const mrl_moe_layer *layer = args->layer;
    const mrl_weight *w = layer->router;
    const uint32_t rows = (uint32_t)args->x.shape[0], lanes = router_lanes(dev, w->k, layer->experts);
    const uint32_t step = w->k % 4 == 0 ? 4 : 1, rounds = mrl_div_up(w->k, lanes * step);
    const bool tell = work == MRL_ROUTER_TELL;
    const mrl_device_info *info = mrl_device_info_of(dev);
    const mrl_view usage = tell ? (mrl_view){0} : mrl_moe_usage_of(layer);
    mrl_buffer *const counters = tell ? NULL : layer->counters;
    const uint32_t spec[] = {lanes,
                             (uint32_t)args->x.dtype,
                             (uint32_t)types[w->format],
                             args->norm.buffer != NULL,
                             step,
                             work,
                             layer->experts,
                             layer->top_k,
                             layer->shared,
                             router_rows(layer) > layer->experts,
                             layer->sigmoid,
                             layer->normalise,
                             layer->groups,
                             layer->top_groups,
                             layer->group_best,
                             rounds <= ROUNDS_MAX ? rounds : 0,
                             !mrl_device_has(dev, MRL_BIT(told)),
                             layer->experts > MANY && mrl_whole_subgroups(info), /* one takes them one by one */
                             info->subgroup_size};
    const mrl_push_router push = {.w = mrl_buffer_address(w->quant),
                                  .x = mrl_view_address(&args->x),
                                  .norm = mrl_view_address(&args->norm),
                                  .bias = mrl_view_address(&layer->bias),
                                  .logits = mrl_view_address(logits),
                                  .counters = counters != NULL ? mrl_buffer_address(counters) : 0,
                                  .positions = mrl_view_address(&args->positions),
                                  .ids = mrl_view_address(ids),
                                  .weights = mrl_view_address(weights),
                                  .usage = mrl_view_address(&usage),
                                  .k = w->k,
                                  .k_padded = w->k_padded,
                                  .eps = args->eps,
                                  .scale = layer->scale};
    const mrl_range reads[] = {mrl_range_of(w->quant),            mrl_view_range(&args->x),
                               mrl_view_range(&args->norm),       mrl_view_range(&layer->bias),
                               mrl_view_range(&args->positions),  mrl_view_range(logits),
                               mrl_range_of(counters),            mrl_view_range(&usage)};
    const mrl_range writes[] = {mrl_view_range(logits), mrl_view_range(ids), mrl_view_range(weights),
                                mrl_range_of(counters), mrl_view_range(&usage)};
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_moe_router, MRL_FORMAT_NONE, MRL_MATH_NONE, spec,
                             sizeof spec / sizeof *spec, &pipeline, err));
    const mrl_dispatch d = {.pipeline = pipeline,
                            .push = &push,
                            .push_bytes = sizeof push,
                            .groups = {work == MRL_ROUTER_CHOOSE ? 1 : router_rows(layer), rows, 1},
                            .reads = reads,
                            .nreads = sizeof reads / sizeof *reads,
                            .writes = writes,
                            .nwrites = sizeof writes / sizeof *writes,
                            .flops = 2.0 * rows * router_rows(layer) * w->k};
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
done:
    return rc;
}

mrl_status mrl_route(mrl_device *dev, const mrl_moe_args *args, const mrl_view *ids, const mrl_view *weights,
                     mrl_error *err)
{
    mrl_status rc;
    const uint32_t rows = (uint32_t)args->x.shape[0];
    /* Many rows on a GPU share the reading of the matrix. */
    const bool given = rows > (mrl_device_is_software(dev) ? MRL_MOE_COUNTERS : MRL_GEMV_MAX_ROWS);
    mrl_view logits = {0};

    MRL_TRY(mrl_view_create(dev, MRL_DTYPE_f32, rows, router_rows(args->layer), &logits, err));
    if (given)
        MRL_TRY(logits_by_matmul(dev, args, &logits, err));
    MRL_TRY(dispatch_router(dev, args, given ? MRL_ROUTER_CHOOSE : MRL_ROUTER_ALL, &logits, ids, weights, err));
done:
    mrl_buffer_release(logits.buffer);
    return rc;
}

bool mrl_route_can_stay_open(mrl_device *dev, const mrl_moe_layer *layer)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint32_t subgroup = info->subgroup_size; /* no larger than any workgroup of theirs */
    return layer->nstacks == 1 && layer->stacks[0].places == NULL && layer->groups == 1 && subgroup <= 64 &&
           layer->experts <= OPEN_A_LANE * subgroup && mrl_whole_subgroups(info);
}

mrl_status mrl_route_open(mrl_device *dev, const mrl_moe_args *args, const mrl_view *ids, const mrl_view *weights,
                          mrl_choice *choice, mrl_error *err)
{
    const mrl_moe_layer *layer = args->layer;
    const mrl_view absent = {0}, told = mrl_moe_told(layer);
    const uint32_t rules = layer->sigmoid * MRL_CHOICE_SIGMOID | layer->normalise * MRL_CHOICE_NORMALISE |
                           (router_rows(layer) > layer->experts) * MRL_CHOICE_SHARED_GATE;
    *choice = (mrl_choice){.spec = {layer->experts, layer->top_k, mrl_moe_slots(layer), rules, 0,
                                    mrl_device_info_of(dev)->subgroup_size},
                           .told = told,
                           .ids = *ids,
                           .weights = *weights,
                           .usage = mrl_moe_usage_of(layer)};
    memcpy(&choice->spec[4], &layer->scale, sizeof layer->scale);
    return dispatch_router(dev, args, MRL_ROUTER_TELL, &told, &absent, &absent, err);
}

mrl_status mrl_op_route(mrl_device *dev, const mrl_moe_args *given, const mrl_view *ids, const mrl_view *weights,
                        mrl_error *err)
{
    mrl_status rc;
    mrl_moe_args args = *given;
    mrl_buffer *x_copy = NULL, *norm_copy = NULL;

    MRL_TRY(mrl_moe_check_input(dev, &args, err));
    const uint64_t m = args.x.shape[0], shape[] = {m, mrl_moe_slots(args.layer)};
    MRL_TRY(mrl_view_check(ids, dev, "moe", "ids", MRL_DTYPE_BIT(i32), 2, shape, err));
    MRL_TRY(mrl_view_check(weights, dev, "moe", "weights", MRL_DTYPE_BIT(f32), 2, shape, err));
    MRL_TRY(mrl_view_align(&args.x, dev, &x_copy, err));
    MRL_TRY(mrl_view_align(&args.norm, dev, &norm_copy, err));
    const mrl_view x = args.x;
    for (uint64_t first = 0; first < m; first += ROWS_MAX) {
        const uint64_t count = m - first < ROWS_MAX ? m - first : ROWS_MAX;
        const mrl_view some_ids = mrl_view_rows(ids, first, count), some_weights = mrl_view_rows(weights, first, count);
        args.x = mrl_view_rows(&x, first, count);
        args.positions = mrl_view_rows(&given->positions, first, count);
        MRL_TRY(mrl_route(dev, &args, &some_ids, &some_weights, err));
    }
done:
    mrl_buffer_release(x_copy);
    mrl_buffer_release(norm_copy);
    return rc;
}
