#include "vk/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_QUERIES 8192u

mrl_status mrl_profile_start(mrl_device *dev, mrl_error *err)
{
    mrl_status rc;
    VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                  .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                  .queryCount = FIRST_QUERIES};

    if (dev->info.timestamp_ns == 0)
        return mrl_fail(err, MRL_ERR_DEVICE, "%s has no timestamps on its compute queue", dev->info.name);
    mrl_lock_acquire(&dev->stream_lock);
    MRL_TRY(mrl_stream_flush_locked(dev, err));
    if (dev->profile.pool == VK_NULL_HANDLE) {
        MRL_TRY(mrl_device_result(dev, dev->vk.vkCreateQueryPool(dev->handle, &info, NULL, &dev->profile.pool),
                                  "vkCreateQueryPool", err));
        dev->profile.capacity = FIRST_QUERIES;
    }
    dev->profile.count = 0;
    dev->profile.on = true;
done:
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_profile_begin_locked(mrl_device *dev, VkCommandBuffer commands, size_t nodes, mrl_error *err)
{
    if (nodes + 1 > dev->profile.capacity)
        return mrl_fail(err, MRL_ERR_STATE, "profile: %zu dispatches in one submission, at most %u", nodes,
                        dev->profile.capacity - 1);
    dev->vk.vkCmdResetQueryPool(commands, dev->profile.pool, 0, (uint32_t)nodes + 1);
    mrl_profile_mark_locked(dev, commands, 0);
    return MRL_OK;
}

void mrl_profile_mark_locked(mrl_device *dev, VkCommandBuffer commands, uint32_t index)
{
    dev->vk.vkCmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, dev->profile.pool, index);
}

static void fill_row(mrl_profile_row *row, const mrl_recorder *recorder, const mrl_node *node)
{
    static const char *const names[] = {[MRL_NODE_COPY] = "copy", [MRL_NODE_FILL] = "fill"};
    const mrl_span *spans = recorder->ranges + node->range_offset;

    snprintf(row->name, sizeof row->name, "%s",
             node->kind == MRL_NODE_DISPATCH ? mrl_pipeline_name(node->pipeline) : names[node->kind]);
    for (int i = 0; i < node->nreads + node->nwrites; i++)
        row->bytes += spans[i].end - spans[i].begin;
    row->flops = node->flops;
    row->barrier = node->barrier;
}

mrl_status mrl_profile_collect_locked(mrl_device *dev, const mrl_recorder *recorder, size_t first, size_t last,
                                      mrl_error *err)
{
    mrl_status rc;
    mrl_profile *profile = &dev->profile;
    uint32_t count = (uint32_t)(last - first) + 1;
    uint64_t *ticks = malloc(count * sizeof *ticks);

    if (ticks == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    MRL_TRY(mrl_device_result(dev, dev->vk.vkGetQueryPoolResults(
                                       dev->handle, profile->pool, 0, count, count * sizeof *ticks, ticks,
                                       sizeof *ticks, VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
                              "vkGetQueryPoolResults", err));
    for (size_t i = first; i < last; i++) {
        mrl_profile_row row = {0};
        MRL_TRY(mrl_grow((void **)&profile->rows, &profile->rows_capacity, profile->count, sizeof row, err));
        fill_row(&row, recorder, &recorder->nodes[i]);
        uint64_t begin = ticks[i - first], end = ticks[i - first + 1];
        row.ns = end > begin ? (double)(end - begin) * dev->info.timestamp_ns : 0;
        profile->rows[profile->count++] = row;
    }
done:
    free(ticks);
    return rc;
}

mrl_status mrl_profile_stop(mrl_device *dev, mrl_profile_row **rows, size_t *count, mrl_error *err)
{
    mrl_status rc;

    *rows = NULL;
    *count = 0;
    mrl_lock_acquire(&dev->stream_lock);
    MRL_TRY(mrl_stream_flush_locked(dev, err));
    *rows = dev->profile.rows;
    *count = dev->profile.count;
    dev->profile.rows = NULL;
    dev->profile.count = dev->profile.rows_capacity = 0;
done:
    dev->profile.on = false;
    mrl_lock_release(&dev->stream_lock);
    return rc;
}
