/* What the files that work on trellises share beside ops/trellis.h. */
#ifndef MRL_OPS_TRELLIS_LAYOUT_H
#define MRL_OPS_TRELLIS_LAYOUT_H

#include "ops/trellis.h"
#include "push.h"

/* Where the units of an expert begin. */
static inline uint64_t mrl_trellis_units_at(const mrl_trellis *t, uint32_t expert)
{
    return mrl_buffer_address(t->units) + expert * mrl_trellis_bytes(t);
}

/* One dispatch of trellis_pack or trellis_dequantize, whose constant 3 is `option`. */
mrl_status mrl_trellis_copy(mrl_device *dev, const mrl_trellis *t, mrl_kernel kernel, uint32_t option,
                            const mrl_push_trellis_copy *push, const uint32_t *groups, mrl_range read, mrl_range write,
                            mrl_error *err);

#endif
