#include "engine/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"

mrl_status mrl_reader_open(mrl_reader *r, const mrl_source *source, mrl_error *err)
{
    struct stat info;
    uint64_t end;

    *r = (mrl_reader){source, -1};
    if (source->path == NULL) return MRL_OK;
    /* O_NONBLOCK: opening a named pipe must not wait for its writer. */
    r->fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (r->fd < 0 || fstat(r->fd, &info) != 0)
        return mrl_fail(err, MRL_ERR_IO, "%s: %s", source->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return mrl_fail(err, MRL_ERR_FORMAT, "%s is not a regular file", source->path);
    if (!mrl_add_u64(source->offset, source->bytes, &end) || end > (uint64_t)info.st_size)
        return mrl_fail(err, MRL_ERR_FORMAT,
                        "%s is cut short: %" PRIu64 " bytes from %" PRIu64 " are wanted, it has %" PRIu64, source->path,
                        source->bytes, source->offset, (uint64_t)info.st_size);
    return MRL_OK;
}

void mrl_reader_close(mrl_reader *r)
{
    if (r->fd >= 0) close(r->fd);
    r->fd = -1;
}

mrl_status mrl_reader_to_device(mrl_reader *r, uint64_t at, uint64_t bytes, mrl_buffer *to, mrl_error *err)
{
    if (r->fd < 0) return mrl_buffer_write(to, 0, (const uint8_t *)r->source->data + at, bytes, err);
    return mrl_buffer_load(to, 0, r->fd, r->source->offset + at, bytes, err);
}

mrl_status mrl_reader_to_host(mrl_reader *r, uint64_t at, uint64_t bytes, uint8_t *to, mrl_error *err)
{
    if (r->fd < 0) {
        memcpy(to, (const uint8_t *)r->source->data + at, bytes);
        return MRL_OK;
    }
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(r->fd, to + done, bytes - done, (off_t)(r->source->offset + at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return mrl_fail(err, MRL_ERR_IO, "%s: %s", r->source->path, strerror(errno));
        if (got == 0) return mrl_fail(err, MRL_ERR_FORMAT, "%s became shorter while it was read", r->source->path);
        done += (uint64_t)got;
    }
    return MRL_OK;
}
