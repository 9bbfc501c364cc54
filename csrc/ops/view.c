#include "ops/view.h"

#include <inttypes.h>
#include <stdio.h>

uint64_t mrl_view_elements(const mrl_view *view)
{
    uint64_t n = 1;
    for (int i = 0; i < view->ndim; i++)
        n *= view->shape[i];
    return n;
}

uint64_t mrl_view_bytes(const mrl_view *view)
{
    return mrl_view_elements(view) * mrl_dtype_bytes(view->dtype);
}

mrl_range mrl_view_range(const mrl_view *view)
{
    if (view == NULL || view->buffer == NULL)
        return (mrl_range){0};
    return (mrl_range){view->buffer, view->offset, mrl_view_bytes(view)};
}

uint64_t mrl_view_address(const mrl_view *view)
{
    if (view == NULL || view->buffer == NULL)
        return 0;
    return mrl_buffer_address(view->buffer) + view->offset;
}

bool mrl_views_overlap(const mrl_view *a, const mrl_view *b)
{
    uint64_t a_begin = mrl_view_address(a), b_begin = mrl_view_address(b);
    return a_begin != 0 && b_begin != 0 && a_begin < b_begin + mrl_view_bytes(b) &&
           b_begin < a_begin + mrl_view_bytes(a);
}

static const char *shape_text(int ndim, const uint64_t *shape, char *text, uint64_t size)
{
    uint64_t used = (uint64_t)snprintf(text, size, "(");
    for (int i = 0; i < ndim && used < size; i++)
        used += (uint64_t)snprintf(text + used, size - used, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
    if (used < size)
        snprintf(text + used, size - used, ")");
    return text;
}

const char *mrl_view_text(const mrl_view *view, char *text, uint64_t size)
{
    char shape[128];
    if (view == NULL || view->buffer == NULL)
        snprintf(text, size, "nothing");
    else
        snprintf(text, size, "%s %s", shape_text(view->ndim, view->shape, shape, sizeof shape),
                 mrl_dtype_name(view->dtype));
    return text;
}

static void dtypes_text(uint32_t dtypes, char *text, uint64_t size)
{
    uint64_t used = 0;
    text[0] = 0;
    for (int i = 0; i < MRL_DTYPE_COUNT; i++)
        if ((dtypes >> i & 1) && used < size)
            used += (uint64_t)snprintf(text + used, size - used, used ? "|%s" : "%s",
                                       mrl_dtype_name((mrl_dtype)i));
}

mrl_status mrl_view_check(const mrl_view *view, mrl_device *dev, const char *op, const char *name,
                          uint32_t dtypes, int ndim, const uint64_t *shape, mrl_error *err)
{
    char want_shape[128], want_dtype[64], got[192];
    uint64_t elements = 1, bytes, end;
    bool same = view->ndim == ndim;

    shape_text(ndim, shape, want_shape, sizeof want_shape);
    dtypes_text(dtypes, want_dtype, sizeof want_dtype);
    if (view->buffer == NULL)
        return mrl_fail(err, MRL_ERR_TYPE, "%s: %s must be %s %s, got nothing", op, name, want_shape,
                        want_dtype);
    for (int i = 0; same && i < ndim; i++)
        same = view->shape[i] == shape[i];
    mrl_view_text(view, got, sizeof got);
    if (!same)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s must be %s %s, got %s", op, name, want_shape,
                        want_dtype, got);
    if (!(dtypes >> view->dtype & 1))
        return mrl_fail(err, MRL_ERR_TYPE, "%s: %s must be %s %s, got %s", op, name, want_shape,
                        want_dtype, got);
    if (mrl_buffer_device(view->buffer) != dev)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s is on %s, the other operands are on %s", op, name,
                        mrl_device_info_of(mrl_buffer_device(view->buffer))->name,
                        mrl_device_info_of(dev)->name);
    for (int i = 0; i < ndim; i++)
        if (!mrl_mul_u64(elements, shape[i], &elements))
            return mrl_fail(err, MRL_ERR_VALUE, "%s: %s has too many elements", op, name);
    if (!mrl_mul_u64(elements, mrl_dtype_bytes(view->dtype), &bytes) ||
        !mrl_add_u64(bytes, view->offset, &end) || end > mrl_buffer_bytes(view->buffer))
        return mrl_fail(err, MRL_ERR_VALUE, "%s: %s reaches beyond its memory", op, name);
    return MRL_OK;
}

mrl_status mrl_view_align(mrl_view *view, mrl_device *dev, mrl_buffer **copy, mrl_error *err)
{
    mrl_status rc;
    const mrl_range from = mrl_view_range(view);

    if (mrl_view_address(view) % 16 == 0)
        return MRL_OK;
    MRL_TRY(mrl_buffer_create(dev, from.bytes, MRL_MEMORY_DEVICE, copy, err));
    MRL_TRY(mrl_stream_copy(dev, from, (mrl_range){*copy, 0, from.bytes}, err));
    view->buffer = *copy;
    view->offset = 0;
done:
    return rc;
}

mrl_status mrl_view_create(mrl_device *dev, mrl_dtype dtype, uint64_t rows, uint64_t columns, mrl_view *out,
                           mrl_error *err)
{
    *out = (mrl_view){.dtype = dtype, .ndim = 2, .shape = {rows, columns}};
    return mrl_buffer_create(dev, mrl_view_bytes(out), MRL_MEMORY_DEVICE, &out->buffer, err);
}

mrl_view mrl_view_rows(const mrl_view *view, uint64_t first, uint64_t count)
{
    mrl_view out = *view;
    if (view->buffer == NULL)
        return out;
    out.offset += first * (view->ndim == 2 ? view->shape[1] : 1) * mrl_dtype_bytes(view->dtype);
    out.shape[0] = count;
    return out;
}
