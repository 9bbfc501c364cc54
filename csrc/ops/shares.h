/* Rows whose sums nobody has added up yet: the result of a trellis product of which each workgroup left what it had.
 * Whoever reads it adds up, in its prologue, which takes the place of workgroups that wait for each other. What lies
 * where is said in shaders/include/shares.glsl. */
#ifndef MRL_OPS_SHARES_H
#define MRL_OPS_SHARES_H

#include "ops/view.h"

#define MRL_SHARES_LIMIT 4096u /* push blocks have bits for fewer */

typedef struct mrl_shares {
    mrl_buffer *buffer;
    uint32_t count; /* 0: the operand is a view as usual; else the view has a shape, but no buffer */
} mrl_shares;

/* Bytes of one share of `rows` rows of so many columns. */
uint64_t mrl_share_bytes(uint64_t columns, uint64_t rows);

/* VALUE error "op: name ..." for shares (count above 0) that are not `rows` rows of so many columns on dev; view: their
 * shape. */
mrl_status mrl_shares_check(const mrl_shares *shares, const mrl_view *view, mrl_device *dev, const char *op,
                            const char *name, uint64_t rows, uint64_t columns, mrl_error *err);

static inline uint64_t mrl_shares_address_or(const mrl_shares *shares, const mrl_view *view)
{
    return shares->count > 0 ? mrl_buffer_address(shares->buffer) : mrl_view_address(view);
}

static inline mrl_range mrl_shares_range_or(const mrl_shares *shares, const mrl_view *view)
{
    return shares->count > 0 ? mrl_range_of(shares->buffer) : mrl_view_range(view);
}

#endif
