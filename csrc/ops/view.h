/* What an op sees of a Tensor: a dense, row-major range of a buffer. Views borrow the buffer for the call. */
#ifndef MRL_OPS_VIEW_H
#define MRL_OPS_VIEW_H

#include "base/checked.h"
#include "base/dtype.h"
#include "vk/stream.h"

#define MRL_MAX_DIMS 4

typedef struct mrl_view {
    mrl_buffer *buffer;  /* NULL: an absent optional operand */
    uint64_t offset;     /* bytes, aligned to the dtype; ops that load vectors ask for 16 */
    mrl_dtype dtype;
    int ndim;            /* 1 .. MRL_MAX_DIMS */
    uint64_t shape[MRL_MAX_DIMS];
} mrl_view;

uint64_t mrl_view_elements(const mrl_view *view);
uint64_t mrl_view_bytes(const mrl_view *view);
mrl_range mrl_view_range(const mrl_view *view);          /* {NULL} for an absent view */
uint64_t mrl_view_address(const mrl_view *view);         /* 0 for an absent view */
bool mrl_views_overlap(const mrl_view *a, const mrl_view *b); /* false when either is absent */
/* All of a buffer as an operand, or an absent one. */
static inline mrl_range mrl_range_of(mrl_buffer *buffer)
{
    return (mrl_range){buffer, 0, buffer == NULL ? 0 : mrl_buffer_bytes(buffer)};
}
/* A new buffer of (rows, columns) elements under a view; the caller releases out->buffer. */
mrl_status mrl_view_create(mrl_device *dev, mrl_dtype dtype, uint64_t rows, uint64_t columns, mrl_view *out,
                           mrl_error *err);
/* Rows first .. first + count of a view (m, columns) or (m); an absent one stays so. */
mrl_view mrl_view_rows(const mrl_view *view, uint64_t first, uint64_t count);
/* "(3, 4096) f16" into text, for error messages. */
const char *mrl_view_text(const mrl_view *view, char *text, uint64_t size);

/* VALUE/TYPE error unless view has the shape and a dtype of the mask (1 << MRL_DTYPE_x | ...), lives on dev and
 * its range fits its buffer. op and name go into the message: "rope: positions must be (5) i32, got (4) i32". */
mrl_status mrl_view_check(const mrl_view *view, mrl_device *dev, const char *op, const char *name,
                          uint32_t dtypes, int ndim, const uint64_t *shape, mrl_error *err);
/* For kernels that load up to 16 bytes at once: a view that begins elsewhere, such as a part of a vector, becomes one
 * of a copy. The caller releases *copy. */
mrl_status mrl_view_align(mrl_view *view, mrl_device *dev, mrl_buffer **copy, mrl_error *err);
#define MRL_DTYPE_BIT(name) (1u << MRL_DTYPE_##name)
#define MRL_DTYPES_ACT (MRL_DTYPE_BIT(f32) | MRL_DTYPE_BIT(f16) | MRL_DTYPE_BIT(bf16))

#endif
