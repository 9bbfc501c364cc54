#include "vk/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Work that one submission may hold, so that watchdogs stay quiet: about 0.2 s of a slow device. */
#define MAX_FLOPS_SOFTWARE 4e9
#define MAX_FLOPS_GPU 2e12
#define MAX_NODES_EAGER 256
#define MAX_NODES_SUBMISSION 4096

mrl_status mrl_grow(void **items, size_t *capacity, size_t count, size_t size, mrl_error *err)
{
    if (count < *capacity)
        return MRL_OK;
    size_t wanted = *capacity == 0 ? 64 : 2 * *capacity;
    while (wanted <= count)
        wanted *= 2;
    void *grown = realloc(*items, wanted * size);
    if (grown == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    *items = grown;
    *capacity = wanted;
    return MRL_OK;
}

/* ---- recorder: what was asked for, and where barriers must stand ---- */

void mrl_recorder_clear(mrl_recorder *recorder)
{
    recorder->nnodes = recorder->nranges = recorder->npush = 0;
    recorder->nreads = recorder->nwrites = 0;
    recorder->flops = 0;
    recorder->barriers = 0;
}

void mrl_recorder_destroy(mrl_recorder *recorder)
{
    free(recorder->nodes);
    free(recorder->ranges);
    free(recorder->push);
    free(recorder->pending_reads);
    free(recorder->pending_writes);
    memset(recorder, 0, sizeof *recorder);
}

static mrl_span span_of(const mrl_range *range)
{
    if (range->buffer == NULL || range->bytes == 0)
        return (mrl_span){0};
    uint64_t begin = mrl_buffer_address(range->buffer) + range->offset;
    return (mrl_span){begin, begin + range->bytes, range->buffer->slab};
}

static bool overlaps(const mrl_span *spans, size_t count, mrl_span with)
{
    for (size_t i = 0; i < count; i++)
        if (spans[i].begin < with.end && with.begin < spans[i].end)
            return true;
    return false;
}

/* Room for one more node, so that adding it cannot fail half-way. */
static mrl_status reserve(mrl_recorder *r, size_t nreads, size_t nwrites, mrl_error *err)
{
    mrl_status rc;

    MRL_TRY(mrl_grow((void **)&r->nodes, &r->cap_nodes, r->nnodes, sizeof *r->nodes, err));
    MRL_TRY(mrl_grow((void **)&r->push, &r->cap_push, r->npush + MRL_PUSH_BYTES, 1, err));
    MRL_TRY(mrl_grow((void **)&r->ranges, &r->cap_ranges, r->nranges + nreads + nwrites, sizeof *r->ranges, err));
    MRL_TRY(mrl_grow((void **)&r->pending_reads, &r->cap_reads, r->nreads + nreads, sizeof *r->pending_reads, err));
    MRL_TRY(mrl_grow((void **)&r->pending_writes, &r->cap_writes, r->nwrites + nwrites, sizeof *r->pending_writes,
                     err));
done:
    return rc;
}

static void add_spans(mrl_recorder *recorder, const mrl_range *ranges, int count, mrl_span *pending, size_t *npending)
{
    for (int i = 0; i < count; i++) {
        mrl_span span = span_of(&ranges[i]);
        recorder->ranges[recorder->nranges++] = span;
        if (span.begin != span.end)
            pending[(*npending)++] = span;
    }
}

/* Read after write, write after read and write after write all need a barrier. */
static bool needs_barrier(const mrl_recorder *recorder, const mrl_range *reads, int nreads,
                          const mrl_range *writes, int nwrites, int beside)
{
    for (int i = 0; i < nreads; i++)
        if (overlaps(recorder->pending_writes, recorder->nwrites, span_of(&reads[i])))
            return true;
    for (int i = beside; i < nwrites; i++) {
        mrl_span span = span_of(&writes[i]);
        if (overlaps(recorder->pending_writes, recorder->nwrites, span) ||
            overlaps(recorder->pending_reads, recorder->nreads, span))
            return true;
    }
    return false;
}

mrl_status mrl_recorder_add(mrl_recorder *recorder, const mrl_node *node, const void *push,
                            const mrl_range *reads, const mrl_range *writes, bool serial, mrl_error *err)
{
    mrl_node added = *node;
    mrl_status rc = reserve(recorder, node->nreads, node->nwrites, err);

    if (rc != MRL_OK)
        return rc;
    added.barrier = serial ? recorder->nnodes > 0
                           : needs_barrier(recorder, reads, node->nreads, writes, node->nwrites, node->beside);
    if (added.barrier) {
        recorder->nreads = recorder->nwrites = 0;
        recorder->barriers++;
    }
    added.range_offset = (uint32_t)recorder->nranges;
    add_spans(recorder, reads, node->nreads, recorder->pending_reads, &recorder->nreads);
    add_spans(recorder, writes, node->nwrites, recorder->pending_writes, &recorder->nwrites);
    added.push_offset = (uint32_t)recorder->npush;
    if (node->push_bytes > 0)
        memcpy(recorder->push + recorder->npush, push, node->push_bytes);
    recorder->npush += node->push_bytes;
    recorder->nodes[recorder->nnodes++] = added;
    recorder->flops += node->flops;
    return MRL_OK;
}

size_t mrl_recorder_cut(const mrl_device *dev, const mrl_recorder *recorder, size_t first)
{
    double limit = dev->info.kind == MRL_DEVICE_SOFTWARE ? MAX_FLOPS_SOFTWARE : MAX_FLOPS_GPU, flops = 0;
    size_t last = first;

    while (last < recorder->nnodes && last - first < MAX_NODES_SUBMISSION) {
        flops += recorder->nodes[last].flops;
        if (flops > limit && last > first)
            break;
        last++;
    }
    return last;
}

/* ---- emission ---- */

static void full_barrier(mrl_device *dev, VkCommandBuffer commands, bool host)
{
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                         VK_ACCESS_TRANSFER_WRITE_BIT | (host ? VK_ACCESS_HOST_READ_BIT : 0)};
    dev->vk.vkCmdPipelineBarrier(
        commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT |
            (host ? VK_PIPELINE_STAGE_HOST_BIT : 0),
        0, 1, &barrier, 0, NULL, 0, NULL);
}

/* Between two dispatches only shader accesses matter: transfers are left out. */
static void compute_barrier(mrl_device *dev, VkCommandBuffer commands)
{
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    dev->vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                 VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0, NULL, 0, NULL);
}

static void emit_node(mrl_device *dev, const mrl_recorder *recorder, const mrl_node *node,
                      VkCommandBuffer commands)
{
    const mrl_span *spans = recorder->ranges + node->range_offset;
    const mrl_span *target = spans + node->nreads;

    switch (node->kind) {
    case MRL_NODE_DISPATCH:
        dev->vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, mrl_pipeline_handle(node->pipeline));
        dev->vk.vkCmdPushConstants(commands, dev->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, node->push_bytes,
                                   recorder->push + node->push_offset);
        dev->vk.vkCmdDispatch(commands, node->groups[0], node->groups[1], node->groups[2]);
        break;
    case MRL_NODE_COPY:
        dev->vk.vkCmdCopyBuffer(commands, spans->slab->buffer, target->slab->buffer, 1,
                                &(VkBufferCopy){spans->begin - spans->slab->address,
                                                target->begin - target->slab->address,
                                                target->end - target->begin});
        break;
    case MRL_NODE_FILL:
        dev->vk.vkCmdFillBuffer(commands, target->slab->buffer,
                                target->begin - target->slab->address, target->end - target->begin,
                                node->fill_word);
        break;
    }
}

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* order[0..n) lists the nodes of one barrier-free group; Fisher-Yates. */
static void shuffle(mrl_device *dev, size_t *order, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = next_random(&dev->shuffle_state) % i, t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
}

mrl_status mrl_recorder_emit(mrl_device *dev, const mrl_recorder *recorder, size_t first, size_t last,
                             VkCommandBuffer commands, mrl_error *err)
{
    bool transfer = false;
    size_t *order = malloc((last - first + 1) * sizeof *order);

    if (order == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    for (size_t i = first; i < last;) {
        size_t end = i + 1;
        while (end < last && !recorder->nodes[end].barrier)
            end++;
        for (size_t j = i; j < end; j++)
            order[j - i] = j;
        if (dev->debug.shuffle)
            shuffle(dev, order, end - i);
        for (size_t j = i; j < end; j++)
            transfer |= recorder->nodes[j].kind != MRL_NODE_DISPATCH;
        if (recorder->nodes[i].barrier && i > first) {
            if (transfer)
                full_barrier(dev, commands, false);
            else
                compute_barrier(dev, commands);
            transfer = false;
            for (size_t j = i; j < end; j++)
                transfer |= recorder->nodes[j].kind != MRL_NODE_DISPATCH;
        }
        for (size_t j = i; j < end; j++) {
            emit_node(dev, recorder, &recorder->nodes[order[j - i]], commands);
            if (dev->profile.on)
                mrl_profile_mark_locked(dev, commands, (uint32_t)(order[j - i] - first + 1));
        }
        i = end;
    }
    full_barrier(dev, commands, true);
    free(order);
    return MRL_OK;
}

/* ---- submission ---- */

mrl_status mrl_device_wait_value(mrl_device *dev, uint64_t value, mrl_error *err)
{
    VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                .semaphoreCount = 1,
                                .pSemaphores = &dev->timeline,
                                .pValues = &value};
    mrl_status rc = mrl_device_check(dev, err);
    if (rc != MRL_OK)
        return rc;
    return mrl_device_result(dev, dev->vk.vkWaitSemaphores(dev->handle, &info, UINT64_MAX), "vkWaitSemaphores",
                             err);
}

mrl_status mrl_stream_submit_locked(mrl_device *dev, VkCommandBuffer commands, mrl_error *err)
{
    uint64_t value = dev->submitted + 1;
    VkTimelineSemaphoreSubmitInfo timeline = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                              .signalSemaphoreValueCount = 1,
                                              .pSignalSemaphoreValues = &value};
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                           .pNext = &timeline,
                           .commandBufferCount = 1,
                           .pCommandBuffers = &commands,
                           .signalSemaphoreCount = 1,
                           .pSignalSemaphores = &dev->timeline};
    mrl_status rc = mrl_device_check(dev, err);
    if (rc != MRL_OK)
        return rc;
    VkResult result = mrl_inject_fires(&dev->inject_lost)
                          ? VK_ERROR_DEVICE_LOST
                          : dev->vk.vkQueueSubmit(dev->queue, 1, &submit, VK_NULL_HANDLE);
    if ((rc = mrl_device_result(dev, result, "vkQueueSubmit", err)) == MRL_OK)
        dev->submitted = value;
    return rc;
}

static mrl_status command_slot_open(mrl_device *dev, mrl_command_slot *slot, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT,
                                    .queueFamilyIndex = dev->queue_family};
    VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = 1};
    if (slot->pool == VK_NULL_HANDLE) {
        MRL_TRY(mrl_device_result(dev, dev->vk.vkCreateCommandPool(dev->handle, &pool, NULL, &slot->pool),
                                  "vkCreateCommandPool", err));
        allocate.commandPool = slot->pool;
        MRL_TRY(mrl_device_result(dev, dev->vk.vkAllocateCommandBuffers(dev->handle, &allocate, &slot->commands),
                                  "vkAllocateCommandBuffers", err));
    }
    MRL_TRY(mrl_device_wait_value(dev, slot->value, err));
    MRL_TRY(mrl_device_result(dev, dev->vk.vkResetCommandPool(dev->handle, slot->pool, 0), "vkResetCommandPool",
                              err));
    MRL_TRY(mrl_device_result(
        dev, dev->vk.vkBeginCommandBuffer(
                 slot->commands,
                 &(VkCommandBufferBeginInfo){.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                             .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT}),
        "vkBeginCommandBuffer", err));
done:
    return rc;
}

static mrl_status run_part(mrl_device *dev, const mrl_recorder *recorder, size_t first, size_t last,
                           mrl_error *err)
{
    mrl_status rc;
    mrl_command_slot *slot = &dev->slots[dev->next_slot];

    MRL_TRY(command_slot_open(dev, slot, err));
    if (dev->profile.on)
        MRL_TRY(mrl_profile_begin_locked(dev, slot->commands, last - first, err));
    MRL_TRY(mrl_recorder_emit(dev, recorder, first, last, slot->commands, err));
    MRL_TRY(mrl_device_result(dev, dev->vk.vkEndCommandBuffer(slot->commands), "vkEndCommandBuffer", err));
    MRL_TRY(mrl_stream_submit_locked(dev, slot->commands, err));
    slot->value = dev->submitted;
    dev->next_slot = (dev->next_slot + 1) % MRL_COMMAND_BUFFERS;
    if (dev->profile.on) {
        MRL_TRY(mrl_device_wait_value(dev, dev->submitted, err));
        MRL_TRY(mrl_profile_collect_locked(dev, recorder, first, last, err));
    }
done:
    return rc;
}

/* ---- check mode: a dispatch may write only what it declared ---- */

static void copy_outside(mrl_device *dev, const mrl_recorder *recorder, const mrl_node *node, uint8_t *image)
{
    for (mrl_slab *slab = dev->slabs; slab != NULL; image += slab->mapped ? slab->ranges.size : 0, slab = slab->next) {
        if (slab->mapped == NULL)
            continue;
        for (int i = 0; i < node->nwrites; i++) {
            const mrl_span *span = &recorder->ranges[node->range_offset + node->nreads + i];
            if (span->begin >= slab->address && span->end <= slab->address + slab->ranges.size)
                memcpy(image + (span->begin - slab->address), slab->mapped + (span->begin - slab->address),
                       span->end - span->begin);
        }
    }
}

static mrl_status run_checked(mrl_device *dev, const mrl_recorder *recorder, size_t index, mrl_error *err)
{
    mrl_status rc;
    const mrl_node *node = &recorder->nodes[index];
    uint64_t total = 0, at = 0;
    uint8_t *image = NULL;

    mrl_lock_acquire(&dev->memory_lock); /* other threads must not add or free slabs meanwhile */
    for (mrl_slab *slab = dev->slabs; slab != NULL; slab = slab->next)
        total += slab->mapped ? slab->ranges.size : 0;
    MRL_TRY(mrl_device_wait_value(dev, dev->submitted, err));
    if ((image = malloc(total + 1)) == NULL) { /* never of 0 bytes, which may be NULL */
        rc = mrl_fail(err, MRL_ERR_MEMORY, "check mode needs a copy of the device's memory, %" PRIu64 " bytes", total);
        goto done;
    }
    for (mrl_slab *slab = dev->slabs; slab != NULL; slab = slab->next)
        if (slab->mapped) {
            memcpy(image + at, slab->mapped, slab->ranges.size);
            at += slab->ranges.size;
        }
    MRL_TRY(run_part(dev, recorder, index, index + 1, err));
    MRL_TRY(mrl_device_wait_value(dev, dev->submitted, err));
    copy_outside(dev, recorder, node, image);
    at = 0;
    for (mrl_slab *slab = dev->slabs; slab != NULL; slab = slab->next) {
        if (!slab->mapped)
            continue;
        if (memcmp(image + at, slab->mapped, slab->ranges.size) != 0) {
            rc = mrl_fail(err, MRL_ERR_STATE, "%s wrote outside its declared ranges",
                          node->kind == MRL_NODE_DISPATCH ? mrl_pipeline_name(node->pipeline) : "a copy");
            goto done;
        }
        at += slab->ranges.size;
    }
done:
    mrl_lock_release(&dev->memory_lock);
    free(image);
    return rc;
}

mrl_status mrl_stream_run_locked(mrl_device *dev, const mrl_recorder *recorder, mrl_error *err)
{
    mrl_status rc = MRL_OK;

    for (size_t first = 0; rc == MRL_OK && first < recorder->nnodes;) {
        size_t last = mrl_recorder_cut(dev, recorder, first);
        if (dev->debug.check) {
            last = first + 1;
            rc = run_checked(dev, recorder, first, err);
        } else {
            rc = run_part(dev, recorder, first, last, err);
        }
        first = last;
    }
    return rc;
}

mrl_status mrl_stream_flush_locked(mrl_device *dev, mrl_error *err)
{
    mrl_status rc = MRL_OK;

    if (dev->recorder.nnodes > 0)
        rc = mrl_stream_run_locked(dev, &dev->recorder, err);
    mrl_recorder_clear(&dev->recorder); /* after a failure too: the work is lost with its device */
    return rc;
}

static mrl_status record(mrl_device *dev, const mrl_node *node, const void *push, const mrl_range *reads,
                         const mrl_range *writes, mrl_error *err)
{
    mrl_program *program = mrl_program_capturing(dev);
    mrl_status rc = mrl_device_check(dev, err);

    if (rc != MRL_OK)
        return rc;
    if (program != NULL) {
        for (int i = 0; rc == MRL_OK && i < node->nreads; i++)
            rc = mrl_program_pin(program, reads[i].buffer, err);
        for (int i = 0; rc == MRL_OK && i < node->nwrites; i++)
            rc = mrl_program_pin(program, writes[i].buffer, err);
        return rc != MRL_OK ? rc
                            : mrl_recorder_add(mrl_program_recorder(program), node, push, reads, writes,
                                               dev->debug.serial, err);
    }
    mrl_lock_acquire(&dev->stream_lock);
    rc = mrl_recorder_add(&dev->recorder, node, push, reads, writes, dev->debug.serial, err);
    if (rc == MRL_OK && (dev->recorder.nnodes >= MAX_NODES_EAGER ||
                         mrl_recorder_cut(dev, &dev->recorder, 0) < dev->recorder.nnodes))
        rc = mrl_stream_flush_locked(dev, err);
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_stream_dispatch(mrl_device *dev, const mrl_dispatch *dispatch, mrl_error *err)
{
    mrl_node node = {.kind = MRL_NODE_DISPATCH,
                     .pipeline = dispatch->pipeline,
                     .push_bytes = dispatch->push_bytes,
                     .groups = {dispatch->groups[0], dispatch->groups[1], dispatch->groups[2]},
                     .nreads = (uint8_t)dispatch->nreads,
                     .nwrites = (uint8_t)dispatch->nwrites,
                     .beside = (uint8_t)dispatch->beside,
                     .flops = dispatch->flops};

    if (dispatch->nreads > MRL_MAX_RANGES || dispatch->nwrites > MRL_MAX_RANGES ||
        dispatch->push_bytes > MRL_PUSH_BYTES)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: too many operands", mrl_pipeline_name(dispatch->pipeline));
    for (int i = 0; i < 3; i++)
        if (dispatch->groups[i] == 0 || dispatch->groups[i] > dev->info.max_groups[i])
            return mrl_fail(err, MRL_ERR_VALUE, "%s: %u workgroups along axis %d, the device allows 1 to %u",
                            mrl_pipeline_name(dispatch->pipeline), dispatch->groups[i], i,
                            dev->info.max_groups[i]);
    return record(dev, &node, dispatch->push, dispatch->reads, dispatch->writes, err);
}

mrl_status mrl_stream_copy(mrl_device *dev, mrl_range src, mrl_range dst, mrl_error *err)
{
    mrl_node node = {.kind = MRL_NODE_COPY, .nreads = 1, .nwrites = 1};

    if (src.bytes != dst.bytes || src.offset + src.bytes > src.buffer->reserved ||
        dst.offset + dst.bytes > dst.buffer->reserved)
        return mrl_fail(err, MRL_ERR_VALUE, "copy of %" PRIu64 " bytes does not fit", src.bytes);
    return src.bytes == 0 ? MRL_OK : record(dev, &node, NULL, &src, &dst, err);
}

mrl_status mrl_stream_sync(mrl_device *dev, mrl_error *err)
{
    mrl_status rc = mrl_device_check(dev, err);
    if (rc != MRL_OK)
        return rc;
    mrl_lock_acquire(&dev->stream_lock);
    rc = mrl_stream_flush_locked(dev, err);
    uint64_t value = dev->submitted;
    mrl_lock_release(&dev->stream_lock);
    return rc != MRL_OK ? rc : mrl_device_wait_value(dev, value, err);
}

void mrl_device_idle(mrl_device *dev)
{
    if (!mrl_device_forked(dev) && mrl_stream_sync(dev, NULL) != MRL_OK)
        dev->vk.vkDeviceWaitIdle(dev->handle);
}

mrl_status mrl_stream_set_debug(mrl_device *dev, const mrl_stream_debug *debug, mrl_error *err)
{
    if (debug->check && !mrl_device_has(dev, MRL_BIT(host_visible)))
        return mrl_fail(err, MRL_ERR_VALUE, "set_debug: check compares memory that the host sees, that of %s is not",
                        dev->info.name);
    mrl_lock_acquire(&dev->stream_lock);
    dev->debug = *debug;
    dev->shuffle_state = debug->seed;
    mrl_lock_release(&dev->stream_lock);
    return MRL_OK;
}
