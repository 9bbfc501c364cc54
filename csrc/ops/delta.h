/* Gated delta net (shaders/delta/): a state a slot instead of a cache row a position. */
#ifndef MRL_OPS_DELTA_H
#define MRL_OPS_DELTA_H

#include "ops/view.h"

#define MRL_DELTA_DIM_MAX  256u
#define MRL_DELTA_TAPS_MAX 8u

/* A layer of the state as ops see it; borrowed from mrl_delta_state (engine/delta_state.h), which has checked the
 * sizes: dims are multiples of 8 up to MRL_DELTA_DIM_MAX, key_heads divides value_heads. channels = 2 key_heads *
 * key_dim + value_heads * value_dim. */
typedef struct mrl_delta {
    mrl_buffer *ring;  /* (slots, taps, channels) f32: the last rows that went into the convolution */
    mrl_buffer *state; /* (slots, value_heads, key_dim, value_dim) f32 */
    uint32_t slots, key_heads, value_heads, key_dim, value_dim, taps;
} mrl_delta;

uint32_t mrl_delta_channels(const mrl_delta *delta);
/* Columns of x: for each key head its q, its k, and v and z of the value heads that share it. */
uint64_t mrl_delta_width(const mrl_delta *delta);

/* Operands. A row at position 0 begins a text: what its slot held is forgotten. Any other row takes the state as it is,
 * which must be that behind the position before: it cannot be taken back. Rows whose position is negative or whose slot
 * does not exist are idle: nothing is written for them, their result is zeros. */
typedef struct mrl_delta_args {
    mrl_view x;         /* (rows, mrl_delta_width) f32 | f16 | bf16 */
    mrl_view ba;        /* (rows, 2 value_heads) f32 | f16 | bf16: for each key head b, then a of its value heads */
    mrl_view conv;      /* (channels, taps) f32 */
    mrl_view a_log;     /* (value_heads) f32 */
    mrl_view dt_bias;   /* (value_heads) f32 */
    mrl_view norm;      /* (value_dim) f32 */
    mrl_view positions; /* (rows) i32 */
    mrl_view slots;     /* (rows) i32 */
    float eps;          /* of the norm */
    bool sequence;      /* all rows are of one slot, at consecutive positions from that of row 0; else no two rows are
                         * of the same slot */
    bool held;          /* CPUs take the divisions of work of GPUs: for tests */
} mrl_delta_args;

/* y (rows, value_heads * value_dim) f32 | f16 | bf16, behind the gated norm. Not a sequence: one dispatch; a sequence:
 * three, on a CPU one more for every 128 rows; in chunks, four: on matrix units, with x and y in f16, 64 rows and more,
 * key_dim a multiple of 64 and value_dim of 32, and shared memory enough for them (of 48 KiB, dims up to 128). */
mrl_status mrl_gated_delta(const mrl_delta *delta, const mrl_delta_args *args, const mrl_view *y, mrl_error *err);

#endif
