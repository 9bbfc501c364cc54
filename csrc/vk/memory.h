/* Buffers: ranges of a few large slabs, reached by address.
 *
 * All work of a device runs in order on one queue, and the stream finds hazards by address, so a buffer
 * may be released right after the last operation on it was recorded: whoever gets the memory next is
 * ordered behind. Host writes and reads go through the stream (mrl_buffer_write/read) and keep to that order. */
#ifndef MRL_VK_MEMORY_H
#define MRL_VK_MEMORY_H

#include "vk/device.h"

typedef struct mrl_buffer mrl_buffer;

typedef enum mrl_memory_kind {
    MRL_MEMORY_DEVICE,   /* device-local; mapped only where all device memory is host-visible */
    MRL_MEMORY_HOST,     /* host-visible, coherent, cached: rings, read-back, host-resident weights */
} mrl_memory_kind;

/* bytes > 0; address aligned to 256. While this thread captures (vk/program.h), DEVICE memory comes from
 * the program's arena. Contents undefined. */
mrl_status mrl_buffer_create(mrl_device *dev, uint64_t bytes, mrl_memory_kind kind, mrl_buffer **out,
                             mrl_error *err);
mrl_buffer *mrl_buffer_retain(mrl_buffer *buffer);
void mrl_buffer_release(mrl_buffer *buffer); /* NULL allowed */

mrl_device *mrl_buffer_device(const mrl_buffer *buffer);
uint64_t mrl_buffer_address(const mrl_buffer *buffer);
uint64_t mrl_buffer_bytes(const mrl_buffer *buffer);
void *mrl_buffer_mapped(const mrl_buffer *buffer); /* NULL when not host-visible */

/* Copies in stream order. write copies from data before it returns (through the staging ring); read waits.
 * Both raise STATE while this thread captures. */
mrl_status mrl_buffer_write(mrl_buffer *buffer, uint64_t offset, const void *data, uint64_t bytes,
                            mrl_error *err);
mrl_status mrl_buffer_read(mrl_buffer *buffer, uint64_t offset, void *data, uint64_t bytes, mrl_error *err);
/* pread from fd into the staging ring and copy; short files are FORMAT errors. */
mrl_status mrl_buffer_load(mrl_buffer *buffer, uint64_t offset, int fd, uint64_t file_offset, uint64_t bytes,
                           mrl_error *err);
mrl_status mrl_buffer_fill(mrl_buffer *buffer, uint64_t offset, uint64_t bytes, uint32_t word, mrl_error *err);
/* Waits until the GPU is done with everything recorded so far: before touching mapped memory. */
mrl_status mrl_buffer_sync(mrl_buffer *buffer, mrl_error *err);

#endif
