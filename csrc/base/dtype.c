#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    uint32_t bytes;
    const char *format;
} table[] = {
#define X(name, bytes, format, kind) {#name, bytes, format},
    MRL_DTYPES(X)
#undef X
};

const char *mrl_dtype_name(mrl_dtype dtype) { return table[dtype].name; }
uint32_t mrl_dtype_bytes(mrl_dtype dtype) { return table[dtype].bytes; }
const char *mrl_dtype_buffer_format(mrl_dtype dtype) { return table[dtype].format; }

mrl_dtype mrl_dtype_parse(const char *name)
{
    for (int i = 0; i < MRL_DTYPE_COUNT; i++)
        if (strcmp(table[i].name, name) == 0)
            return (mrl_dtype)i;
    return MRL_DTYPE_COUNT;
}
