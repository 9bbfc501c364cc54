/* What can be given to a product with a trellis: kernels take raw addresses. */
#include "ops/trellis.h"

/* Workgroups write y while others still read. A residual may be the very memory of y: each element is read by the
 * thread that writes it. */
static mrl_status check_overlap(const mrl_trellis_args *args, mrl_error *err)
{
    const struct {
        const char *name;
        const mrl_view *view;
        mrl_dtype in_place; /* that it may share the memory of y in */
    } inputs[] = {{"x", &args->x, MRL_DTYPE_COUNT},       {"norm", &args->norm, MRL_DTYPE_COUNT},
                  {"bias", &args->bias, MRL_DTYPE_COUNT}, {"residual", &args->residual, MRL_DTYPE_f32},
                  {"gate", &args->gate, MRL_DTYPE_COUNT}};

    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        const bool same = args->y.dtype == inputs[i].in_place && args->y.shape[1] == args->t->n &&
                          mrl_view_address(&args->y) == mrl_view_address(inputs[i].view);
        if (mrl_views_overlap(&args->y, inputs[i].view) && !same)
            return mrl_fail(err, MRL_ERR_VALUE, "trellis: out must not share memory with %s", inputs[i].name);
    }
    return MRL_OK;
}

/* x and y that lie or stay in shares, and what can be given with them. */
static mrl_status check_shares(mrl_device *dev, const mrl_trellis_args *args, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    const uint64_t shape[] = {1, args->t->k};
    const mrl_view *extra[] = {&args->base, &args->total};
    static const char *const names[] = {"base", "total"};

    if (args->open != NULL && mrl_trellis_shares(dev, args) == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: this result cannot stay in shares");
    if (args->x_shares.count == 0) {
        if (args->base.buffer != NULL || args->total.buffer != NULL)
            rc = mrl_fail(err, MRL_ERR_VALUE, "trellis: total is for an x in shares");
        return rc;
    }
    MRL_TRY(mrl_shares_check(&args->x_shares, &args->x, dev, "trellis", "x", 1, args->t->k, err));
    if (args->t->k % 8 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: x in shares must have a multiple of 8 columns, not %u",
                        args->t->k);
    if (args->base.buffer == NULL)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: x in shares must have a base");
    if (args->residual.buffer != NULL || args->gate.buffer != NULL)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: an x in shares goes with neither residual nor gate");
    for (int i = 0; i < 2; i++) {
        if (extra[i]->buffer == NULL) continue;
        MRL_TRY(mrl_view_check(extra[i], dev, "trellis", names[i], MRL_DTYPE_BIT(f32), 2, shape, err));
        if (mrl_view_address(extra[i]) % 16 != 0)
            return mrl_fail(err, MRL_ERR_VALUE, "trellis: %s must be aligned to 16 bytes", names[i]);
    }
    const mrl_view *others[] = {&args->base, &args->norm, &args->bias, &args->y};
    for (int i = 0; i < 4; i++)
        if (mrl_views_overlap(&args->total, others[i]))
            return mrl_fail(err, MRL_ERR_VALUE, "trellis: total must not share memory with other operands");
    if (mrl_views_overlap(&args->base, &args->y))
        rc = mrl_fail(err, MRL_ERR_VALUE, "trellis: out must not share memory with base");
done:
    return rc;
}

mrl_status mrl_trellis_check(mrl_device *dev, const mrl_trellis_args *args, mrl_error *err)
{
    mrl_status rc;
    const mrl_trellis *t = args->t;
    const bool gated = mrl_activation_gated(args->activation);
    const uint64_t m = args->x.ndim == 2 ? args->x.shape[0] : 0, columns = args->y.ndim == 2 ? args->y.shape[1] : 0;
    const uint64_t widest = t->n_padded > t->k_padded ? t->n_padded : t->k_padded;
    uint64_t elements;

    if (args->x.ndim != 2)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: x must have 2 dimensions (m, %u), got %d", t->k, args->x.ndim);
    if (!mrl_mul_u64(m, widest > columns ? widest : columns, &elements) || elements > INT32_MAX)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: %llu rows are too many for one call", (unsigned long long)m);
    if (args->x_shares.count == 0)
        MRL_TRY(mrl_view_check(&args->x, dev, "trellis", "x", MRL_DTYPES_ACT, 2, (uint64_t[]){m, t->k}, err));
    MRL_TRY(check_shares(dev, args, err));
    if (columns < (uint64_t)args->y_column + t->n)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: out must have %u columns from column %u on, it has %llu", t->n,
                        args->y_column, (unsigned long long)columns);
    if (args->open == NULL)
        MRL_TRY(mrl_view_check(&args->y, dev, "trellis", "out", MRL_DTYPES_ACT, 2, (uint64_t[]){m, columns}, err));
    if (gated != (args->gate.buffer != NULL))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "trellis: gate and a gated activation (swiglu, geglu, geglu_tanh) go together");
    if (gated && args->norm.buffer != NULL)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: an x with a gate takes no norm, normalise before");
    if (gated)
        MRL_TRY(mrl_view_check(&args->gate, dev, "trellis", "gate", 1u << args->x.dtype, 2,
                               (uint64_t[]){m, t->k}, err));
    if (args->norm.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->norm, dev, "trellis", "norm", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){t->k}, err));
    if (args->bias.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->bias, dev, "trellis", "bias", MRL_DTYPE_BIT(f32), 1, (uint64_t[]){t->n}, err));
    if (args->residual.buffer != NULL)
        MRL_TRY(mrl_view_check(&args->residual, dev, "trellis", "residual", MRL_DTYPE_BIT(f32), 2,
                               (uint64_t[]){m, t->n}, err));
    if (args->int8 && t->codebook != MRL_CODEBOOK_MUL1)
        return mrl_fail(err, MRL_ERR_VALUE, "trellis: activations in int8 need the codebook mul1, this is %s",
                        mrl_codebook_name(t->codebook));
    MRL_TRY(check_overlap(args, err));
done:
    return rc;
}
