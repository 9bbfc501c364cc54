#include "ops/embedding.h"

#include "ops/quantize.h"

mrl_status mrl_op_embedding(mrl_device *dev, const mrl_weight *w, const mrl_view *ids,
                            const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    uint64_t rows = ids->buffer != NULL && ids->ndim == 1 ? ids->shape[0] : 1,
             shape[2] = {rows, w->k};

    MRL_TRY(mrl_view_check(ids, dev, "embedding", "ids", MRL_DTYPE_BIT(i32), 1, &rows, err));
    MRL_TRY(mrl_view_check(y, dev, "embedding", "y", MRL_DTYPES_ACT, 2, shape, err));
    if (!mrl_fits_i32(rows))
        return mrl_fail(err, MRL_ERR_VALUE, "embedding: ids may have 2147483647 rows, got %llu",
                        (unsigned long long)rows);
    MRL_TRY(mrl_decode_rows(dev, MRL_KERNEL_embedding, w, ids, y, err));
done:
    return rc;
}
