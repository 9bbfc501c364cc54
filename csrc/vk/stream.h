/* The stream: ops record dispatches with the ranges that they read and write; barriers follow from those;
 * a submission happens when someone reads a result, or when enough work is waiting.
 *
 * A device has one eager stream, shared by all threads under its lock (submission order is the order of the
 * calls). A thread that captures records into its Program instead (vk/program.h). */
#ifndef MRL_VK_STREAM_H
#define MRL_VK_STREAM_H

#include "vk/memory.h"
#include "vk/pipeline.h"

typedef struct mrl_range {
    mrl_buffer *buffer;      /* NULL: an absent operand, skipped */
    uint64_t offset, bytes;
} mrl_range;

#define MRL_MAX_RANGES 12

typedef struct mrl_dispatch {
    mrl_pipeline *pipeline;
    const void *push;
    uint32_t push_bytes;     /* <= 128 */
    uint32_t groups[3];      /* all > 0 and within the device's limits, else VALUE */
    const mrl_range *reads;  /* an operand that is read and written stands in both */
    int nreads;
    const mrl_range *writes;
    int nwrites;
    double flops;            /* for the profile and for cutting submissions; 0 if negligible */
    int beside;              /* of the first so many writes it touches other elements than the dispatches since the last
                              * barrier: that their ranges overlap needs no barrier */
} mrl_dispatch;

mrl_status mrl_stream_dispatch(mrl_device *dev, const mrl_dispatch *dispatch, mrl_error *err);
/* Device-side copy in stream order. */
mrl_status mrl_stream_copy(mrl_device *dev, mrl_range src, mrl_range dst, mrl_error *err);
/* Submits and waits for all of it. */
mrl_status mrl_stream_sync(mrl_device *dev, mrl_error *err);

/* Debug modes: shuffle runs the dispatches between two barriers in random order (seed); serial puts a
 * barrier after every dispatch; check verifies that dispatches write only their declared ranges,
 * and fails with MRL_ERR_VALUE on devices that are not host-visible. All off by default. */
typedef struct mrl_stream_debug {
    bool shuffle, serial, check;
    uint64_t seed;
} mrl_stream_debug;
mrl_status mrl_stream_set_debug(mrl_device *dev, const mrl_stream_debug *debug, mrl_error *err);

#endif
