#include "ops/delta.h"

#include "../shaders/include/push.h"

/* As shaders/delta/chunk.glsl and what includes it have them. */
#define CHUNK 64u
#define WALK_WIDE 32u
#define SPECS 10 /* constants 0 .. 9 of delta.glsl; the kernels' own stand behind them */

uint32_t mrl_delta_channels(const mrl_delta *delta)
{
    return 2 * delta->key_heads * delta->key_dim + delta->value_heads * delta->value_dim;
}

uint64_t mrl_delta_width(const mrl_delta *delta)
{
    return 2ull * delta->key_heads * delta->key_dim + 2ull * delta->value_heads * delta->value_dim;
}

static mrl_status check(const mrl_delta *delta, const mrl_delta_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(delta->state);
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint64_t rows = args->x.ndim == 2 ? args->x.shape[0] : 1, heads = delta->value_heads, dim = delta->value_dim;
    const char *op = "gated_delta";

    MRL_TRY(mrl_view_check(&args->x, dev, op, "x", MRL_DTYPES_ACT, 2, (uint64_t[]){rows, mrl_delta_width(delta)}, err));
    MRL_TRY(mrl_view_check(&args->ba, dev, op, "ba", MRL_DTYPES_ACT, 2, (uint64_t[]){rows, 2 * heads}, err));
    MRL_TRY(mrl_view_check(&args->conv, dev, op, "conv", MRL_DTYPE_BIT(f32), 2,
                           (uint64_t[]){mrl_delta_channels(delta), delta->taps}, err));
    MRL_TRY(mrl_view_check(&args->a_log, dev, op, "a_log", MRL_DTYPE_BIT(f32), 1, &heads, err));
    MRL_TRY(mrl_view_check(&args->dt_bias, dev, op, "dt_bias", MRL_DTYPE_BIT(f32), 1, &heads, err));
    MRL_TRY(mrl_view_check(&args->norm, dev, op, "norm", MRL_DTYPE_BIT(f32), 1, &dim, err));
    MRL_TRY(mrl_view_check(&args->positions, dev, op, "positions", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(&args->slots, dev, op, "slots", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(y, dev, op, "out", MRL_DTYPES_ACT, 2, (uint64_t[]){rows, heads * dim}, err));
    if (rows > info->max_groups[0] || rows > info->max_groups[1])
        rc = mrl_fail(err, MRL_ERR_VALUE, "%s: rows must be at most %u, got %llu", op,
                      mrl_min_u32(info->max_groups[0], info->max_groups[1]), (unsigned long long)rows);
done:
    return rc;
}

/* What the dispatches have in common. */
typedef struct delta_call {
    const mrl_delta *delta;
    const mrl_delta_args *args;
    const mrl_view *y;
    mrl_device *dev;
    const mrl_device_info *info;
    uint32_t rows;
    bool small; /* one subgroup a workgroup */
    mrl_push_delta push;
    uint32_t spec[SPECS]; /* [0] is set by each kernel */
} delta_call;

static delta_call call_of(const mrl_delta *delta, const mrl_delta_args *args, const mrl_view *y)
{
    mrl_device *dev = mrl_buffer_device(delta->state);
    const mrl_device_info *info = mrl_device_info_of(dev);
    const uint32_t rows = (uint32_t)args->x.shape[0];

    return (delta_call){
        .delta = delta,
        .args = args,
        .y = y,
        .dev = dev,
        .info = info,
        .rows = rows,
        .small = info->kind == MRL_DEVICE_SOFTWARE && !args->held,
        .push =
            {
                .x = mrl_view_address(&args->x),
                .ba = mrl_view_address(&args->ba),
                .conv = mrl_view_address(&args->conv),
                .a_log = mrl_view_address(&args->a_log),
                .dt_bias = mrl_view_address(&args->dt_bias),
                .norm = mrl_view_address(&args->norm),
                .positions = mrl_view_address(&args->positions),
                .slots = mrl_view_address(&args->slots),
                .ring = mrl_buffer_address(delta->ring),
                .state = mrl_buffer_address(delta->state),
                .y = mrl_view_address(y),
                .rows = rows,
                .eps = args->eps,
            },
        .spec = {0, delta->key_dim, delta->value_dim, delta->key_heads, delta->value_heads, delta->taps, delta->slots,
                 args->x.dtype, args->ba.dtype, y->dtype},
    };
}

static mrl_math math_of(mrl_kernel kernel)
{
    return kernel == MRL_KERNEL_delta_chunk_coopmat || kernel == MRL_KERNEL_delta_walk_coopmat ? MRL_MATH_F16
                                                                                              : MRL_MATH_NONE;
}

static double flops_of(const delta_call *call, mrl_kernel kernel)
{
    const mrl_delta *d = call->delta;
    const double rows = (double)call->rows * d->value_heads;
    if (kernel == MRL_KERNEL_delta_chunk_coopmat) return 2.0 * rows * CHUNK * (3.0 * d->key_dim + d->value_dim);
    return kernel == MRL_KERNEL_delta_conv || kernel == MRL_KERNEL_delta_norm
               ? 0
               : 7.0 * rows * d->key_dim * d->value_dim;
}

/* own: constants behind the common ones, count of them. reads and writes: what is not an argument. */
static mrl_status record(const delta_call *call, mrl_kernel kernel, uint32_t lanes, const uint32_t *own, int count,
                         const uint32_t groups[3], const mrl_range more_reads[3], const mrl_range writes[3],
                         mrl_error *err)
{
    mrl_status rc;
    const mrl_delta_args *args = call->args;
    uint32_t spec[MRL_MAX_SPEC];
    mrl_pipeline *pipeline;

    for (int i = 0; i < SPECS; i++) spec[i] = call->spec[i];
    for (int i = 0; i < count; i++) spec[SPECS + i] = own[i];
    spec[0] = lanes;
    MRL_TRY(mrl_pipeline_get(call->dev, kernel, MRL_FORMAT_NONE, math_of(kernel), spec, SPECS + count, &pipeline,
                             err));
    const mrl_range reads[] = {
        mrl_view_range(&args->x),
        mrl_view_range(&args->ba),
        mrl_view_range(&args->conv),
        mrl_view_range(&args->a_log),
        mrl_view_range(&args->dt_bias),
        mrl_view_range(&args->norm),
        mrl_view_range(&args->positions),
        mrl_view_range(&args->slots),
        more_reads[0],
        more_reads[1],
        more_reads[2],
    };
    const mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &call->push,
        .push_bytes = sizeof call->push,
        .groups = {groups[0], groups[1], groups[2]},
        .reads = reads,
        .nreads = sizeof reads / sizeof *reads,
        .writes = writes,
        .nwrites = 3,
        .flops = flops_of(call, kernel),
    };
    MRL_TRY(mrl_stream_dispatch(call->dev, &dispatch, err));
done:
    return rc;
}

/* Rows of S that a lane holds while it has them to read, to use and to write, and lanes enough for that; 0 rows where S
 * stays in memory: on CPUs, and on devices whose workgroups or shared memory are too small. */
static void plan_decode(const delta_call *call, uint32_t *lanes, uint32_t *held, uint32_t *streams)
{
    const mrl_delta *d = call->delta;
    const uint32_t quads = d->value_dim / 4, fixed = (2 * d->key_dim + d->value_dim) * 4;

    *lanes = call->info->subgroup_max;
    *held = *streams = 0;
    for (uint32_t n = 1024; !call->small && n >= mrl_max_u32(quads, call->info->subgroup_max); n /= 2) {
        const uint32_t share = mrl_div_up(d->key_dim, n / quads);
        if (n > call->info->max_workgroup || fixed + n / quads * quads * 32 > call->info->shared_bytes) continue;
        if (share > 8 && *held != 0) break; /* 8 rows of 4 columns are 32 registers: fewer lanes would hold too many */
        *lanes = n;
        *held = share;
        *streams = n / quads;
    }
    if (*held > 64) { /* registers end */
        *lanes = call->info->subgroup_max;
        *held = *streams = 0;
    }
}

static mrl_status decode(const delta_call *call, mrl_error *err)
{
    uint32_t lanes, held, streams;
    const mrl_range ring = mrl_range_of(call->delta->ring), state = mrl_range_of(call->delta->state);

    plan_decode(call, &lanes, &held, &streams);
    return record(call, MRL_KERNEL_delta_decode, lanes, (uint32_t[]){held, mrl_max_u32(streams, 1)}, 2,
                  (uint32_t[]){call->delta->value_heads, call->rows, 1}, (mrl_range[]){ring, state, {0}},
                  (mrl_range[]){mrl_view_range(call->y), ring, state}, err);
}

/* Lanes and workgroups a row where each subgroup takes heads: all at once on a GPU, one after the other on a CPU. */
static uint32_t lanes_of(const delta_call *call)
{
    return call->small ? call->info->subgroup_max
                       : mrl_min_u32(mrl_max_u32(128, call->info->subgroup_max), call->info->max_workgroup);
}
static uint32_t groups_of(const delta_call *call, uint32_t heads)
{
    return call->small ? 1 : mrl_div_up(heads, mrl_max_u32(1, lanes_of(call) / call->info->subgroup_max));
}

/* llvmpipe ends all loops of an invocation after 65535 rounds together, unrolled ones included; a row of delta_scan
 * takes up to 350. */
#define SOFTWARE_ROWS 128u

static mrl_status scan(const delta_call *call, mrl_buffer *mixed, mrl_buffer *o, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    const mrl_delta *d = call->delta;
    uint32_t team = 4, tile = 16, wide = 1;
    const uint32_t lanes = call->small ? call->info->subgroup_max : lanes_of(call);

    while (team < 8 && team * 2 <= call->info->subgroup_min && d->key_dim >= team * 8) team *= 2;
    const uint32_t quads = mrl_div_up(d->key_dim / 4, team), pad = quads * team * 4;
    /* A CPU pays for every load of q and k: more columns share it, as many as soon compile (64 rows of (32, 128, 128)
     * on llvmpipe, 2 cores: 1.0 s with 4 columns a lane, 0.8 with 8, 0.44 with 16). */
    if (call->small)
        wide = mrl_max_u32(1, mrl_min_u32(mrl_min_u32(16, 64 / quads), mrl_div_up(d->value_dim, lanes / team)));
    const uint32_t columns = lanes / team * wide;
    while (tile > 1 && tile * (2 * pad + columns + 2) * 4 > call->info->shared_bytes) tile /= 2;
    const mrl_range state = mrl_range_of(d->state);
    const uint32_t step = call->info->kind == MRL_DEVICE_SOFTWARE ? SOFTWARE_ROWS : call->rows;
    delta_call part = *call;
    for (uint32_t first = 0; rc == MRL_OK && first < call->rows; first += step) {
        part.rows = mrl_min_u32(step, call->rows - first);
        part.push.first_row = first;
        part.push.rows = first + part.rows;
        rc = record(&part, MRL_KERNEL_delta_scan, lanes, (uint32_t[]){team, wide, tile, lanes}, 4,
                    (uint32_t[]){mrl_div_up(d->value_dim, columns), d->value_heads, 1},
                    (mrl_range[]){mrl_range_of(mixed), state, {0}}, (mrl_range[]){mrl_range_of(o), state, {0}}, err);
    }
    return rc;
}

/* ---- in chunks, on matrix units ---- */

static uint64_t chunk_bytes(const mrl_delta *d)
{
    return CHUNK * (6ull * d->key_dim + 2 * CHUNK + 4ull * d->value_dim) + 16;
}

static uint64_t chunk_shared_bytes(const mrl_delta *d)
{
    const uint64_t pitch = 2ull * mrl_max_u32(d->key_dim, d->value_dim) + 16, sums = 4 * CHUNK + 16;
    const uint64_t alone = CHUNK * (pitch + (pitch > sums ? pitch : sums) + 2 * CHUNK + 16 + 12);
    const uint64_t wq = 2 * CHUNK * (2ull * d->key_dim + 16);
    const uint64_t dk = (d->key_dim + CHUNK) * (2ull * CHUNK + 16) + CHUNK * (2 * WALK_WIDE + 16);
    const uint64_t walk = (wq > dk ? wq : dk) + d->key_dim * (2 * WALK_WIDE + 16);
    return alone > walk ? alone : walk;
}

/* With x and y in f16, as models that compute in f16 have them: what the matrices round is what those round anyway. */
static bool in_chunks(const delta_call *call)
{
    const mrl_delta *d = call->delta;
    const uint32_t subgroup = call->info->subgroup_size;
    return call->args->x.dtype == MRL_DTYPE_f16 && call->y->dtype == MRL_DTYPE_f16 && call->rows >= CHUNK &&
           d->key_dim % CHUNK == 0 && d->value_dim % WALK_WIDE == 0 &&
           mrl_pipeline_available(call->dev, MRL_KERNEL_delta_walk_coopmat, MRL_FORMAT_NONE, MRL_MATH_F16) &&
           mrl_whole_subgroups(call->info) && subgroup >= 16 && subgroup <= 64 &&
           4 * subgroup <= call->info->max_workgroup && chunk_shared_bytes(d) <= call->info->shared_bytes;
}

static mrl_status walk_chunks(delta_call *call, mrl_buffer *mixed, mrl_buffer *o, mrl_error *err)
{
    mrl_status rc;
    const mrl_delta *d = call->delta;
    const uint32_t subgroup = call->info->subgroup_size, lanes = CHUNK / 16 * subgroup;
    const uint32_t count = mrl_div_up(call->rows, CHUNK);
    const mrl_range state = mrl_range_of(d->state);
    mrl_buffer *chunks = NULL;

    MRL_TRY(mrl_buffer_create(call->dev, chunk_bytes(d) * count * d->value_heads, MRL_MEMORY_DEVICE, &chunks, err));
    call->push.chunks = mrl_buffer_address(chunks);
    MRL_TRY(record(call, MRL_KERNEL_delta_chunk_coopmat, lanes, &subgroup, 1, (uint32_t[]){count, d->value_heads, 1},
                   (mrl_range[]){mrl_range_of(mixed), {0}, {0}}, (mrl_range[]){mrl_range_of(chunks), {0}, {0}}, err));
    MRL_TRY(record(call, MRL_KERNEL_delta_walk_coopmat, lanes, &subgroup, 1,
                   (uint32_t[]){d->value_dim / WALK_WIDE, d->value_heads, 1},
                   (mrl_range[]){mrl_range_of(chunks), state, {0}}, (mrl_range[]){mrl_range_of(o), state, {0}}, err));
done:
    mrl_buffer_release(chunks);
    return rc;
}

#define CONV_RUN 8u /* rows of a subgroup of delta_conv, by measurement on an H200 where a call has so many */
#define CONV_RUN_FROM 1024u

static mrl_status prefill(delta_call *call, mrl_error *err)
{
    mrl_status rc;
    const mrl_delta *d = call->delta;
    const uint64_t row = (mrl_delta_channels(d) + 2ull * d->value_heads + 3) & ~3ull;
    const uint64_t wide = (uint64_t)d->value_heads * d->value_dim;
    const uint32_t run = call->small || call->rows < CONV_RUN_FROM ? 1 : CONV_RUN;
    const uint64_t o_rows = mrl_div_up(call->rows, CHUNK) * CHUNK; /* chunks are written whole */
    const mrl_range ring = mrl_range_of(d->ring);
    mrl_buffer *mixed = NULL, *o = NULL;

    MRL_TRY(mrl_buffer_create(call->dev, call->rows * row * sizeof(float), MRL_MEMORY_DEVICE, &mixed, err));
    MRL_TRY(mrl_buffer_create(call->dev, o_rows * wide * sizeof(float), MRL_MEMORY_DEVICE, &o, err));
    call->push.mixed = mrl_buffer_address(mixed);
    call->push.o = mrl_buffer_address(o);
    MRL_TRY(record(call, MRL_KERNEL_delta_conv, lanes_of(call), &run, 1,
                   (uint32_t[]){mrl_div_up(call->rows, run), groups_of(call, 2 * d->key_heads + d->value_heads), 1},
                   (mrl_range[]){ring, {0}, {0}}, (mrl_range[]){mrl_range_of(mixed), {0}, {0}}, err));
    MRL_TRY(in_chunks(call) ? walk_chunks(call, mixed, o, err) : scan(call, mixed, o, err));
    MRL_TRY(record(call, MRL_KERNEL_delta_norm, lanes_of(call), NULL, 0,
                   (uint32_t[]){call->rows, groups_of(call, d->value_heads), 1},
                   (mrl_range[]){mrl_range_of(o), {0}, {0}}, (mrl_range[]){mrl_view_range(call->y), ring, {0}}, err));
done:
    mrl_buffer_release(mixed);
    mrl_buffer_release(o);
    return rc;
}

mrl_status mrl_gated_delta(const mrl_delta *delta, const mrl_delta_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc = check(delta, args, y, err);

    if (rc != MRL_OK || args->x.shape[0] == 0) return rc;
    delta_call call = call_of(delta, args, y);
    return args->sequence && call.rows > 1 ? prefill(&call, err) : decode(&call, err);
}
