#include "ops/rope.h"

#include "../shaders/include/push.h"

mrl_status mrl_rope_check(const mrl_kv *kv, const mrl_rope_args *args, const char *op, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(kv->k);
    uint64_t rows = args->qkv.ndim == 2 ? args->qkv.shape[0] : 1, dim = kv->dim;
    uint64_t half = args->freq.ndim == 1 ? args->freq.shape[0] : 1;

    if (kv->rank != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: the cache holds latent rows (rank %u), which mla reads", op, kv->rank);
    if (args->heads == 0 || args->heads % kv->kv_heads != 0 || args->heads > 65535)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: heads must be a multiple of the cache's %u kv heads, got %u", op,
                        kv->kv_heads, args->heads);
    uint64_t qkv[2] = {rows, ((args->gated ? 2 : 1) * (uint64_t)args->heads + 2 * (uint64_t)kv->kv_heads) * dim};
    MRL_TRY(mrl_view_check(&args->qkv, dev, op, "qkv", MRL_DTYPES_ACT, 2, qkv, err));
    MRL_TRY(mrl_view_check(&args->positions, dev, op, "positions", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(&args->slots, dev, op, "slots", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(&args->freq, dev, op, "freq", MRL_DTYPE_BIT(f32), 1, &half, err));
    if (half < 1 || half > dim / 2)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: freq must have 1 to %u (half the head dim) elements, got %llu", op,
                        kv->dim / 2, (unsigned long long)half);
    if (args->q_norm.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->q_norm, dev, op, "q_norm", MRL_DTYPE_BIT(f32), 1, &dim, err));
    if (args->k_norm.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->k_norm, dev, op, "k_norm", MRL_DTYPE_BIT(f32), 1, &dim, err));
    if (rows > INT32_MAX || qkv[1] > INT32_MAX / 4)
        rc = mrl_fail(err, MRL_ERR_VALUE, "%s: qkv (%llu, %llu) is too large", op, (unsigned long long)rows,
                      (unsigned long long)qkv[1]);
done:
    return rc;
}

mrl_status mrl_rope(const mrl_kv *kv, const mrl_rope_args *args, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(kv->k);
    const mrl_device_info *info = mrl_device_info_of(dev);
    mrl_pipeline *pipeline;

    MRL_TRY(mrl_rope_check(kv, args, "rope", err));
    uint64_t rows = args->qkv.shape[0], shape[2] = {rows, (uint64_t)args->heads * kv->dim};
    MRL_TRY(mrl_view_check(y, dev, "rope", "out", MRL_DTYPES_ACT, 2, shape, err));
    if (rows == 0) return MRL_OK;
    if (rows > info->max_groups[0])
        return mrl_fail(err, MRL_ERR_VALUE, "rope: rows must be at most %u, got %llu", info->max_groups[0],
                        (unsigned long long)rows);
    uint32_t lanes = info->kind == MRL_DEVICE_SOFTWARE || info->max_workgroup < 256 ? info->subgroup_max : 256;
    uint32_t spec[] = {
        lanes,    kv->dim, kv->dtype, kv->slots, args->qkv.dtype, 2 * (uint32_t)args->freq.shape[0], args->interleaved,
        y->dtype,
    };
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_rope, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 8, &pipeline, err));
    mrl_push_attention push = {
        .qkv = mrl_view_address(&args->qkv),
        .q_norm = mrl_view_address(&args->q_norm),
        .k_norm = mrl_view_address(&args->k_norm),
        .freq = mrl_view_address(&args->freq),
        .positions = mrl_view_address(&args->positions),
        .slots = mrl_view_address(&args->slots),
        .gate = args->gated ? mrl_view_address(&args->qkv) : 0,
        .cache_k = mrl_buffer_address(kv->k),
        .cache_v = mrl_buffer_address(kv->v),
        .y = mrl_view_address(y),
        .rows = (uint32_t)rows,
        .heads = args->heads,
        .kv_heads = kv->kv_heads,
        .context = kv->context,
        .eps = args->eps,
        .rope_scale = args->rope_scale,
    };
    mrl_range reads[] = {
        mrl_view_range(&args->qkv),  mrl_view_range(&args->q_norm),    mrl_view_range(&args->k_norm),
        mrl_view_range(&args->freq), mrl_view_range(&args->positions), mrl_view_range(&args->slots),
    };
    mrl_range writes[] = {
        mrl_view_range(y),
        mrl_range_of(kv->k),
        mrl_range_of(kv->v),
    };
    mrl_dispatch dispatch = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {(uint32_t)rows, 1, 1},
        .reads = reads,
        .nreads = 6,
        .writes = writes,
        .nwrites = 3,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}
