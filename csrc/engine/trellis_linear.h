/* TrellisLinear: a linear layer whose weight is an EXL3 trellis (ops/trellis.h), kept in kernel layout.
 *
 * A new one is all zeros. Loading streams a file or host memory through a device buffer of at most 32 MiB and repacks
 * on the device. Calls that load or read wait for the device, so all raise STATE while this thread captures. */
#ifndef MRL_ENGINE_TRELLIS_LINEAR_H
#define MRL_ENGINE_TRELLIS_LINEAR_H

#include "engine/source.h"
#include "ops/trellis.h"

typedef struct mrl_trellis_linear mrl_trellis_linear;

typedef struct mrl_trellis_config {
    uint32_t n, k;        /* outputs and inputs, before the padding to multiples of 128 */
    double bits;          /* 1 .. 8, or 1.5, 2.5, 3.5 */
    const char *codebook; /* "3inst", "mcg" or "mul1" */
    uint32_t experts;     /* matrices of this size; 1 for an ordinary layer */
    mrl_memory_kind memory; /* HOST: kernels read codes and scales over the bus */
} mrl_trellis_config;

/* VALUE error for other bits and codebooks, for half rates without mul1, and for sizes beyond those of a Linear. */
mrl_status mrl_trellis_linear_create(mrl_device *dev, const mrl_trellis_config *config, mrl_trellis_linear **out,
                                     mrl_error *err);
void mrl_trellis_linear_free(mrl_trellis_linear *linear); /* NULL allowed */

const mrl_trellis *mrl_trellis_linear_weight(const mrl_trellis_linear *linear);
uint64_t mrl_trellis_linear_bytes(const mrl_trellis_linear *linear); /* trellis and scales; the bias is the caller's */

/* The packed codes (k / 16, n / 16, 16 * bits) u16 of the padded sizes, as in a checkpoint, of one expert (the caller
 * checks its number, here and below). VALUE error when the bytes are not as many; IO and FORMAT errors of the file. */
mrl_status mrl_trellis_linear_load(mrl_trellis_linear *linear, uint32_t expert, const mrl_source *source,
                                   mrl_error *err);
/* The same bytes back; data has room for mrl_trellis_bytes. */
mrl_status mrl_trellis_linear_read(mrl_trellis_linear *linear, uint32_t expert, void *data, mrl_error *err);
/* suh (k_padded) or, `output`, svh (n_padded): f16, finite. VALUE error names the first channel that is not. */
mrl_status mrl_trellis_linear_set_scales(mrl_trellis_linear *linear, uint32_t expert, bool output, const uint16_t *data,
                                         uint64_t bytes, mrl_error *err);

/* bias (n) f32, or absent to take it away. Its memory is shared, not copied. Thread-safe. */
mrl_status mrl_trellis_linear_set_bias(mrl_trellis_linear *linear, const mrl_view *bias, mrl_error *err);
/* The bias, or an absent view. The caller releases bias.buffer. */
mrl_view mrl_trellis_linear_bias(mrl_trellis_linear *linear);

#endif
