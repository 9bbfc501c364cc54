/* Element types of Tensors. The numbers 0..2 are also the `act` specialization constants of
 * shaders (types.glsl: load_act, store_act). */
#ifndef MRL_BASE_DTYPE_H
#define MRL_BASE_DTYPE_H

#include <stdint.h>

/* X(name, bytes, buffer-protocol format, kind) */
#define MRL_DTYPES(X)      \
    X(f32, 4, "f", 'f')    \
    X(f16, 2, "e", 'f')    \
    X(bf16, 2, "H", 'b')   \
    X(i32, 4, "i", 'i')    \
    X(u32, 4, "I", 'u')    \
    X(u8, 1, "B", 'u')     \
    X(i8, 1, "b", 'i')     \
    X(u16, 2, "H", 'u')

typedef enum mrl_dtype {
#define X(name, bytes, format, kind) MRL_DTYPE_##name,
    MRL_DTYPES(X)
#undef X
    MRL_DTYPE_COUNT
} mrl_dtype;

const char *mrl_dtype_name(mrl_dtype dtype);
uint32_t mrl_dtype_bytes(mrl_dtype dtype);
const char *mrl_dtype_buffer_format(mrl_dtype dtype);
/* Returns MRL_DTYPE_COUNT for an unknown name. */
mrl_dtype mrl_dtype_parse(const char *name);
/* f32, f16 or bf16: what activations may be. */
static inline int mrl_dtype_is_float(mrl_dtype dtype) { return dtype <= MRL_DTYPE_bf16; }

#endif
