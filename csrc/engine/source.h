/* Where the bytes of weights come from: a file from an offset on, or host memory. */
#ifndef MRL_ENGINE_SOURCE_H
#define MRL_ENGINE_SOURCE_H

#include "vk/memory.h"

#define MRL_CHUNK_BYTES (32u << 20) /* that loading holds in a device buffer at a time */

typedef struct mrl_source {
    const char *path; /* NULL: memory */
    uint64_t offset;
    const void *data;
    uint64_t bytes;
    const char *dtype;
} mrl_source;

typedef struct mrl_reader {
    const mrl_source *source;
    int fd; /* -1: memory, or closed */
} mrl_reader;

/* IO error when the file cannot be opened, FORMAT when it is no regular file or shorter than offset + bytes. */
mrl_status mrl_reader_open(mrl_reader *r, const mrl_source *source, mrl_error *err);
void mrl_reader_close(mrl_reader *r);
/* Bytes at .. at + bytes of the source to the start of a device buffer, or to memory. */
mrl_status mrl_reader_to_device(mrl_reader *r, uint64_t at, uint64_t bytes, mrl_buffer *to, mrl_error *err);
mrl_status mrl_reader_to_host(mrl_reader *r, uint64_t at, uint64_t bytes, uint8_t *to, mrl_error *err);

#endif
