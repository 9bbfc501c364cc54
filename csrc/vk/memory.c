#include "vk/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLAB_SMALL (64ull << 20)
#define SLAB_LARGE (512ull << 20)

/* ---- slabs ---- */

static void slab_free(mrl_device *dev, mrl_slab *slab)
{
    if (slab == NULL)
        return;
    if (slab->buffer != VK_NULL_HANDLE)
        dev->vk.vkDestroyBuffer(dev->handle, slab->buffer, NULL);
    if (slab->memory != VK_NULL_HANDLE)
        dev->vk.vkFreeMemory(dev->handle, slab->memory, NULL);
    mrl_ranges_destroy(&slab->ranges);
    free(slab);
}

/* What VK_EXT_memory_budget says is left for this process in the device-local heap. */
static uint64_t budget_left(mrl_device *dev)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    uint32_t heap = dev->memory_properties.memoryTypes[dev->type_device].heapIndex;

    if (!dev->has_budget) {
        uint64_t usable = dev->memory_properties.memoryHeaps[heap].size / 10 * 9;
        return usable > dev->stats.device_reserved ? usable - dev->stats.device_reserved : 0;
    }
    mrl_vk_instance.vkGetPhysicalDeviceMemoryProperties2(dev->physical, &properties);
    uint64_t total = budget.heapBudget[heap], used = budget.heapUsage[heap];
    return total > used ? total - used : 0;
}

static mrl_status slab_create(mrl_device *dev, uint64_t bytes, mrl_memory_kind kind, mrl_slab **out,
                              mrl_error *err)
{
    mrl_status rc;
    mrl_slab *slab = NULL;
    VkMemoryRequirements needs;
    VkBufferCreateInfo buffer_info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                 VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT};
    VkMemoryPriorityAllocateInfoEXT priority = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_PRIORITY_ALLOCATE_INFO_EXT, .priority = 1.0f};
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .pNext = dev->has_priority ? &priority : NULL,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = &flags};
    int type = kind == MRL_MEMORY_DEVICE ? dev->type_device : dev->type_host;

    *out = NULL;
    if (mrl_inject_fires(&dev->inject_memory))
        return mrl_fail(err, MRL_ERR_DEVICE_MEMORY, "device memory: allocation of %" PRIu64
                        " bytes failed (injected)", bytes);
    slab = calloc(1, sizeof *slab);
    if (slab == NULL || !mrl_ranges_init(&slab->ranges, bytes)) {
        rc = mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        goto done;
    }
    slab->kind = kind;
    MRL_TRY(mrl_device_result(dev, dev->vk.vkCreateBuffer(dev->handle, &buffer_info, NULL, &slab->buffer),
                              "vkCreateBuffer", err));
    dev->vk.vkGetBufferMemoryRequirements(dev->handle, slab->buffer, &needs);
    if (!(needs.memoryTypeBits >> type & 1)) {
        rc = mrl_fail(err, MRL_ERR_DEVICE, "%s does not allow storage buffers in memory type %d",
                      dev->info.name, type);
        goto done;
    }
    allocate.allocationSize = needs.size;
    allocate.memoryTypeIndex = (uint32_t)type;
    MRL_TRY(mrl_device_result(dev, dev->vk.vkAllocateMemory(dev->handle, &allocate, NULL, &slab->memory),
                              "vkAllocateMemory", err));
    MRL_TRY(mrl_device_result(dev, dev->vk.vkBindBufferMemory(dev->handle, slab->buffer, slab->memory, 0),
                              "vkBindBufferMemory", err));
    if (dev->memory_properties.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT &&
        (kind == MRL_MEMORY_HOST || dev->info.features & MRL_BIT(host_visible)))
        MRL_TRY(mrl_device_result(dev, dev->vk.vkMapMemory(dev->handle, slab->memory, 0, VK_WHOLE_SIZE, 0,
                                                           (void **)&slab->mapped), "vkMapMemory", err));
    slab->address = dev->vk.vkGetBufferDeviceAddress(
        dev->handle, &(VkBufferDeviceAddressInfo){.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                                  .buffer = slab->buffer});
    *out = slab;
    slab = NULL;
done:
    slab_free(dev, slab);
    return rc;
}

static void stats_reserve(mrl_device *dev, mrl_memory_kind kind, int64_t bytes)
{
    uint64_t *total = kind == MRL_MEMORY_DEVICE ? &dev->stats.device_reserved : &dev->stats.host_reserved;
    *total = (uint64_t)((int64_t)*total + bytes);
}

static void stats_use(mrl_device *dev, mrl_memory_kind kind, int64_t bytes)
{
    uint64_t *total = kind == MRL_MEMORY_DEVICE ? &dev->stats.device_used : &dev->stats.host_used;
    *total = (uint64_t)((int64_t)*total + bytes);
    if (dev->stats.device_used > dev->stats.device_peak)
        dev->stats.device_peak = dev->stats.device_used;
}

/* Small models live in one small slab; large ones in a few large slabs, cut to the budget. */
static uint64_t slab_size(mrl_device *dev, uint64_t bytes)
{
    uint64_t size = dev->stats.device_reserved >= SLAB_LARGE ? SLAB_LARGE : SLAB_SMALL;
    if (size > dev->info.max_allocation)
        size = dev->info.max_allocation / MRL_ALIGNMENT * MRL_ALIGNMENT;
    return bytes > size ? bytes : size;
}

static mrl_status slab_find_locked(mrl_device *dev, uint64_t reserved, mrl_memory_kind kind, mrl_slab **out,
                                   uint64_t *offset, mrl_error *err)
{
    mrl_status rc;
    mrl_slab *slab;

    for (slab = dev->slabs; slab != NULL; slab = slab->next)
        if (slab->kind == kind && mrl_ranges_take(&slab->ranges, reserved, offset)) {
            *out = slab;
            return MRL_OK;
        }
    uint64_t size = slab_size(dev, reserved);
    rc = slab_create(dev, size, kind, &slab, err);
    if (rc == MRL_ERR_DEVICE_MEMORY && size > reserved)
        rc = slab_create(dev, reserved, kind, &slab, err);
    if (rc == MRL_ERR_DEVICE_MEMORY)
        return mrl_fail(err, MRL_ERR_DEVICE_MEMORY,
                        "%s: no room for %" PRIu64 " bytes of %s memory (%" PRIu64 " in use, %" PRIu64
                        " reserved, about %" PRIu64 " left); use a smaller format, context or batch, or "
                        "close other models",
                        dev->info.name, reserved, kind == MRL_MEMORY_DEVICE ? "device" : "host",
                        dev->stats.device_used, dev->stats.device_reserved, budget_left(dev));
    if (rc != MRL_OK)
        return rc;
    slab->next = dev->slabs;
    dev->slabs = slab;
    stats_reserve(dev, kind, (int64_t)slab->ranges.size);
    mrl_ranges_take(&slab->ranges, reserved, offset);
    *out = slab;
    return MRL_OK;
}

static bool slab_is_spare(const mrl_slab *slab, mrl_memory_kind kind)
{
    return slab->kind == kind && slab->ranges.used == 0 && slab->ranges.size > SLAB_SMALL;
}

/* An empty large slab of this kind goes back to the driver, once the GPU is done with it, but for `spared` of the usual
 * size: the temporaries of a prompt come and go layer by layer, and a slab takes the driver tens of milliseconds. Small
 * ones stay for reuse. True: one went back. */
static bool slab_trim(mrl_device *dev, mrl_memory_kind kind, uint32_t spared)
{
    mrl_slab **link, *victim = NULL;

    mrl_lock_acquire(&dev->memory_lock);
    for (link = &dev->slabs; *link != NULL; link = &(*link)->next) {
        if (!slab_is_spare(*link, kind))
            continue;
        if ((*link)->ranges.size == SLAB_LARGE && spared > 0) {
            spared--;
            continue;
        }
        victim = *link;
        *link = victim->next;
        stats_reserve(dev, victim->kind, -(int64_t)victim->ranges.size);
        break;
    }
    mrl_lock_release(&dev->memory_lock);
    if (victim == NULL)
        return false;
    mrl_device_idle(dev);
    slab_free(dev, victim);
    return true;
}

void mrl_memory_destroy(mrl_device *dev)
{
    for (int i = 0; i < MRL_STAGING_SEGMENTS; i++)
        free(dev->staging.buffer[i]);
    while (dev->slabs != NULL) {
        mrl_slab *next = dev->slabs->next;
        slab_free(dev, dev->slabs);
        dev->slabs = next;
    }
}

void mrl_device_memory(mrl_device *dev, mrl_memory_stats *out)
{
    mrl_lock_acquire(&dev->memory_lock);
    *out = dev->stats;
    out->device_budget = budget_left(dev);
    for (const mrl_slab *slab = dev->slabs; slab != NULL; slab = slab->next)
        if (slab_is_spare(slab, MRL_MEMORY_DEVICE))
            out->device_budget += slab->ranges.size;
    mrl_lock_release(&dev->memory_lock);
}

/* ---- arenas: the temporaries of one program ---- */

#define ARENA_BLOCK (8ull << 20)

typedef struct arena_block {
    struct arena_block *next;
    mrl_buffer *memory;
    mrl_ranges ranges;
} arena_block;

struct mrl_arena {
    atomic_int refs;
    mrl_device *dev;
    mrl_lock lock;
    arena_block *blocks;
};

static mrl_status buffer_from_slab(mrl_device *dev, uint64_t bytes, mrl_memory_kind kind, mrl_buffer **out,
                                   mrl_error *err);

mrl_arena *mrl_arena_create(mrl_device *dev)
{
    mrl_arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL)
        return NULL;
    arena->refs = 1;
    arena->dev = dev;
    mrl_lock_init(&arena->lock);
    return arena;
}

void mrl_arena_release(mrl_arena *arena)
{
    if (arena == NULL || atomic_fetch_sub(&arena->refs, 1) > 1)
        return;
    while (arena->blocks != NULL) {
        arena_block *next = arena->blocks->next;
        mrl_buffer_release(arena->blocks->memory);
        mrl_ranges_destroy(&arena->blocks->ranges);
        free(arena->blocks);
        arena->blocks = next;
    }
    mrl_lock_destroy(&arena->lock);
    free(arena);
}

uint64_t mrl_arena_bytes(const mrl_arena *arena)
{
    uint64_t total = 0;
    for (arena_block *block = arena->blocks; block != NULL; block = block->next)
        total += block->ranges.size;
    return total;
}

static mrl_status arena_grow_locked(mrl_arena *arena, uint64_t reserved, mrl_error *err)
{
    uint64_t size = reserved > ARENA_BLOCK ? reserved : ARENA_BLOCK;
    arena_block *block = calloc(1, sizeof *block);
    if (block == NULL || !mrl_ranges_init(&block->ranges, size)) {
        free(block);
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    }
    mrl_status rc = buffer_from_slab(arena->dev, size, MRL_MEMORY_DEVICE, &block->memory, err);
    if (rc != MRL_OK) {
        mrl_ranges_destroy(&block->ranges);
        free(block);
        return rc;
    }
    block->next = arena->blocks;
    arena->blocks = block;
    return MRL_OK;
}

static mrl_status buffer_from_arena(mrl_arena *arena, uint64_t bytes, mrl_buffer **out, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    uint64_t reserved = mrl_round_up(bytes, MRL_ALIGNMENT), offset = 0;
    arena_block *block;
    mrl_buffer *buffer = calloc(1, sizeof *buffer);

    if (buffer == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    mrl_lock_acquire(&arena->lock);
    for (block = arena->blocks; block != NULL; block = block->next)
        if (mrl_ranges_take_next(&block->ranges, reserved, &offset))
            break;
    if (block == NULL) {
        MRL_TRY(arena_grow_locked(arena, reserved, err));
        block = arena->blocks;
        mrl_ranges_take_next(&block->ranges, reserved, &offset);
    }
    buffer->refs = 1;
    buffer->dev = mrl_device_retain(arena->dev);
    buffer->slab = block->memory->slab;
    buffer->arena = arena;
    buffer->slab_offset = block->memory->slab_offset + offset;
    buffer->bytes = bytes;
    buffer->reserved = reserved;
    atomic_fetch_add(&arena->refs, 1);
    *out = buffer;
    buffer = NULL;
done:
    mrl_lock_release(&arena->lock);
    free(buffer);
    return rc;
}

static void arena_give(mrl_arena *arena, const mrl_buffer *buffer)
{
    mrl_lock_acquire(&arena->lock);
    for (arena_block *block = arena->blocks; block != NULL; block = block->next) {
        const mrl_buffer *memory = block->memory;
        if (memory->slab == buffer->slab && buffer->slab_offset >= memory->slab_offset &&
            buffer->slab_offset < memory->slab_offset + memory->bytes) {
            mrl_ranges_give(&block->ranges, buffer->slab_offset - memory->slab_offset, buffer->reserved);
            break;
        }
    }
    mrl_lock_release(&arena->lock);
}

/* ---- buffers ---- */

static mrl_status buffer_from_slab(mrl_device *dev, uint64_t bytes, mrl_memory_kind kind, mrl_buffer **out,
                                   mrl_error *err)
{
    mrl_status rc = MRL_OK;
    uint64_t reserved = mrl_round_up(bytes, MRL_ALIGNMENT), offset = 0;
    mrl_slab *slab = NULL;
    mrl_buffer *buffer = mrl_inject_fires(&dev->inject_host) ? NULL : calloc(1, sizeof *buffer);

    if (buffer == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    mrl_lock_acquire(&dev->memory_lock);
    rc = slab_find_locked(dev, reserved, kind, &slab, &offset, err);
    if (rc == MRL_OK)
        stats_use(dev, kind, (int64_t)reserved);
    mrl_lock_release(&dev->memory_lock);
    if (rc != MRL_OK) {
        free(buffer);
        return rc;
    }
    buffer->refs = 1;
    buffer->dev = mrl_device_retain(dev);
    buffer->slab = slab;
    buffer->slab_offset = offset;
    buffer->bytes = bytes;
    buffer->reserved = reserved;
    *out = buffer;
    return MRL_OK;
}

mrl_status mrl_buffer_create(mrl_device *dev, uint64_t bytes, mrl_memory_kind kind, mrl_buffer **out,
                             mrl_error *err)
{
    mrl_program *program = mrl_program_capturing(dev);
    mrl_status rc = mrl_device_check(dev, err);

    *out = NULL;
    if (rc != MRL_OK)
        return rc;
    if (bytes == 0)
        return mrl_fail(err, MRL_ERR_VALUE, "a buffer must have at least one byte");
    if (bytes > dev->info.max_allocation - MRL_ALIGNMENT)
        return mrl_fail(err, MRL_ERR_DEVICE_MEMORY,
                        "%s: one buffer of %" PRIu64 " bytes is beyond the device's limit of %" PRIu64
                        " bytes; use a smaller format or split the tensor",
                        dev->info.name, bytes, dev->info.max_allocation);
    do {
        if (program != NULL && kind == MRL_MEMORY_DEVICE)
            rc = buffer_from_arena(mrl_program_arena(program), bytes, out, err);
        else
            rc = buffer_from_slab(dev, bytes, kind, out, err);
    } while (rc == MRL_ERR_DEVICE_MEMORY && slab_trim(dev, kind, 0));
    return rc;
}

mrl_buffer *mrl_buffer_retain(mrl_buffer *buffer)
{
    atomic_fetch_add(&buffer->refs, 1);
    return buffer;
}

void mrl_buffer_release(mrl_buffer *buffer)
{
    if (buffer == NULL || atomic_fetch_sub(&buffer->refs, 1) > 1)
        return;
    mrl_device *dev = buffer->dev;
    mrl_arena *arena = buffer->arena;
    bool forked = mrl_device_forked(dev);
    if (arena != NULL && !forked)
        arena_give(arena, buffer);
    if (arena != NULL || forked) {
        free(buffer);
        mrl_arena_release(arena);
        mrl_device_release(dev);
        return;
    }
    mrl_lock_acquire(&dev->memory_lock);
    mrl_ranges_give(&buffer->slab->ranges, buffer->slab_offset, buffer->reserved);
    stats_use(dev, buffer->slab->kind, -(int64_t)buffer->reserved);
    const mrl_memory_kind kind = buffer->slab->kind;
    bool trim = slab_is_spare(buffer->slab, kind);
    mrl_lock_release(&dev->memory_lock);
    free(buffer);
    if (trim)
        slab_trim(dev, kind, kind == MRL_MEMORY_DEVICE);
    mrl_device_release(dev);
}

mrl_device *mrl_buffer_device(const mrl_buffer *buffer) { return buffer->dev; }
uint64_t mrl_buffer_address(const mrl_buffer *buffer) { return buffer->slab->address + buffer->slab_offset; }
uint64_t mrl_buffer_bytes(const mrl_buffer *buffer) { return buffer->bytes; }

void *mrl_buffer_mapped(const mrl_buffer *buffer)
{
    return buffer->slab->mapped == NULL ? NULL : buffer->slab->mapped + buffer->slab_offset;
}

/* ---- host access, in stream order ---- */

static mrl_status range_check(const mrl_buffer *buffer, uint64_t offset, uint64_t bytes, const char *what,
                              mrl_error *err)
{
    uint64_t end;
    if (!mrl_add_u64(offset, bytes, &end) || end > buffer->bytes)
        return mrl_fail(err, MRL_ERR_VALUE,
                        "%s of %" PRIu64 " bytes at %" PRIu64 " is beyond a buffer of %" PRIu64 " bytes", what,
                        bytes, offset, buffer->bytes);
    if (mrl_program_capturing(buffer->dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "%s: not while capturing a program", what);
    return mrl_device_check(buffer->dev, err);
}

/* The staging segments are owned by the device, so they must not keep it alive. */
static mrl_status staging_open_locked(mrl_device *dev, mrl_error *err)
{
    for (int i = 0; i < MRL_STAGING_SEGMENTS; i++) {
        if (dev->staging.buffer[i] != NULL)
            continue;
        mrl_status rc = buffer_from_slab(dev, MRL_STAGING_SEGMENT, MRL_MEMORY_HOST, &dev->staging.buffer[i],
                                         err);
        if (rc != MRL_OK)
            return rc;
        atomic_fetch_sub(&dev->refs, 1);
    }
    return MRL_OK;
}

/* Gives up to *bytes of staging memory, valid until the next submission of the stream is done. */
static mrl_status staging_take_locked(mrl_device *dev, uint64_t *bytes, mrl_range *out, mrl_error *err)
{
    mrl_staging *staging = &dev->staging;
    mrl_status rc = staging_open_locked(dev, err);
    uint64_t want = *bytes < MRL_STAGING_SEGMENT ? *bytes : MRL_STAGING_SEGMENT;

    if (rc != MRL_OK)
        return rc;
    if (staging->used + want > MRL_STAGING_SEGMENT) {
        if ((rc = mrl_stream_flush_locked(dev, err)) != MRL_OK)
            return rc;
        staging->busy_until[staging->current] = dev->submitted; /* a flush may be several submissions */
        staging->current = (staging->current + 1) % MRL_STAGING_SEGMENTS;
        staging->used = 0;
        if ((rc = mrl_device_wait_value(dev, staging->busy_until[staging->current], err)) != MRL_OK)
            return rc;
    }
    *out = (mrl_range){staging->buffer[staging->current], staging->used, want};
    staging->used = mrl_round_up(staging->used + want, MRL_ALIGNMENT);
    *bytes = want;
    return MRL_OK;
}

static mrl_status read_exactly(int fd, void *to, uint64_t bytes, uint64_t file_offset, mrl_error *err)
{
    for (uint64_t got = 0; got < bytes;) {
        ssize_t n = pread(fd, (uint8_t *)to + got, bytes - got, (off_t)(file_offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return mrl_fail(err, MRL_ERR_IO, "reading weights failed: %s", strerror(errno));
        if (n == 0)
            return mrl_fail(err, MRL_ERR_FORMAT,
                            "the file ends at byte %" PRIu64 " inside a tensor: it was cut short; download it again",
                            file_offset + got);
        got += (uint64_t)n;
    }
    return MRL_OK;
}

static mrl_status upload(mrl_buffer *buffer, uint64_t offset, const uint8_t *data, int fd,
                         uint64_t file_offset, uint64_t bytes, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    mrl_device *dev = buffer->dev;

    mrl_lock_acquire(&dev->stream_lock);
    for (uint64_t done = 0; rc == MRL_OK && done < bytes;) {
        uint64_t part = bytes - done;
        mrl_range staging, target;
        mrl_node node = {.kind = MRL_NODE_COPY, .nreads = 1, .nwrites = 1};
        MRL_TRY(staging_take_locked(dev, &part, &staging, err));
        uint8_t *to = (uint8_t *)mrl_buffer_mapped(staging.buffer) + staging.offset;
        if (data != NULL)
            memcpy(to, data + done, part);
        else
            MRL_TRY(read_exactly(fd, to, part, file_offset + done, err));
        target = (mrl_range){buffer, offset + done, part};
        MRL_TRY(mrl_recorder_add(&dev->recorder, &node, NULL, &staging, &target, dev->debug.serial, err));
        done += part;
    }
done:
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_buffer_write(mrl_buffer *buffer, uint64_t offset, const void *data, uint64_t bytes,
                            mrl_error *err)
{
    mrl_status rc = range_check(buffer, offset, bytes, "write", err);
    return rc != MRL_OK ? rc : upload(buffer, offset, data, -1, 0, bytes, err);
}

mrl_status mrl_buffer_load(mrl_buffer *buffer, uint64_t offset, int fd, uint64_t file_offset, uint64_t bytes,
                           mrl_error *err)
{
    mrl_status rc = range_check(buffer, offset, bytes, "load", err);
    return rc != MRL_OK ? rc : upload(buffer, offset, NULL, fd, file_offset, bytes, err);
}

static mrl_status read_part(mrl_buffer *buffer, uint64_t offset, uint8_t *data, uint64_t *bytes, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    mrl_device *dev = buffer->dev;
    mrl_node node = {.kind = MRL_NODE_COPY, .nreads = 1, .nwrites = 1};
    mrl_range staging, source;
    uint64_t value = 0;

    /* The segment cannot be reused before this thread has copied out: the wait happens under the lock. */
    mrl_lock_acquire(&dev->stream_lock);
    MRL_TRY(staging_take_locked(dev, bytes, &staging, err));
    source = (mrl_range){buffer, offset, *bytes};
    MRL_TRY(mrl_recorder_add(&dev->recorder, &node, NULL, &source, &staging, dev->debug.serial, err));
    MRL_TRY(mrl_stream_flush_locked(dev, err));
    value = dev->submitted;
    MRL_TRY(mrl_device_wait_value(dev, value, err));
    memcpy(data, (uint8_t *)mrl_buffer_mapped(staging.buffer) + staging.offset, *bytes);
done:
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_buffer_read(mrl_buffer *buffer, uint64_t offset, void *data, uint64_t bytes, mrl_error *err)
{
    mrl_status rc = range_check(buffer, offset, bytes, "read", err);

    if (rc != MRL_OK)
        return rc;
    if (mrl_buffer_mapped(buffer) != NULL) {
        if ((rc = mrl_stream_sync(buffer->dev, err)) == MRL_OK && bytes > 0)
            memcpy(data, (uint8_t *)mrl_buffer_mapped(buffer) + offset, bytes);
        return rc;
    }
    for (uint64_t done = 0; rc == MRL_OK && done < bytes;) {
        uint64_t part = bytes - done;
        rc = read_part(buffer, offset + done, (uint8_t *)data + done, &part, err);
        done += part;
    }
    return rc;
}

mrl_status mrl_buffer_fill(mrl_buffer *buffer, uint64_t offset, uint64_t bytes, uint32_t word, mrl_error *err)
{
    mrl_device *dev = buffer->dev;
    mrl_program *program = mrl_program_capturing(dev);
    mrl_node node = {.kind = MRL_NODE_FILL, .nwrites = 1, .fill_word = word};
    mrl_range target = {buffer, offset, mrl_round_up(bytes, 4)};
    mrl_status rc = mrl_device_check(dev, err);
    uint64_t end;

    if (rc != MRL_OK || bytes == 0)
        return rc;
    if (!mrl_add_u64(offset, target.bytes, &end) || end > buffer->reserved || offset % 4 != 0)
        return mrl_fail(err, MRL_ERR_VALUE, "fill of %" PRIu64 " bytes at %" PRIu64 " is beyond its buffer",
                        bytes, offset);
    if (program != NULL)
        return mrl_recorder_add(mrl_program_recorder(program), &node, NULL, NULL, &target, dev->debug.serial,
                                err);
    mrl_lock_acquire(&dev->stream_lock);
    rc = mrl_recorder_add(&dev->recorder, &node, NULL, NULL, &target, dev->debug.serial, err);
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_buffer_sync(mrl_buffer *buffer, mrl_error *err)
{
    if (mrl_program_capturing(buffer->dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "reading a tensor: not while capturing a program");
    return mrl_stream_sync(buffer->dev, err);
}
