#include "ops/shares.h"

#define BLOCK 128u /* columns that a workgroup makes */

uint64_t mrl_share_bytes(uint64_t columns, uint64_t rows)
{
    const uint64_t blocks = mrl_div_up(columns, BLOCK);
    return rows * (blocks * BLOCK + mrl_div_up(blocks, 4) * 4) * sizeof(float);
}

mrl_status mrl_shares_check(const mrl_shares *shares, const mrl_view *view, mrl_device *dev, const char *op,
                            const char *name, uint64_t rows, uint64_t columns, mrl_error *err)
{
    if (mrl_buffer_device(shares->buffer) != dev)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s is on another device", op, name);
    if (view->ndim != 2 || view->shape[0] != rows || view->shape[1] != columns)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s must be shares of (%llu, %llu), they are of (%llu, %llu)", op, name,
                        (unsigned long long)rows, (unsigned long long)columns, (unsigned long long)view->shape[0],
                        (unsigned long long)view->shape[1]);
    if (shares->count >= MRL_SHARES_LIMIT ||
        mrl_buffer_bytes(shares->buffer) < shares->count * mrl_share_bytes(columns, rows))
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s are %u shares, which their memory does not hold", op, name,
                        shares->count);
    return MRL_OK;
}
