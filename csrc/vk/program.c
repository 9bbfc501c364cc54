#include "vk/internal.h"

#include <stdlib.h>

/* A captured program keeps its nodes besides its command buffers: profiling and the debug modes re-emit them. */
struct mrl_program {
    atomic_int refs;
    mrl_device *dev;
    mrl_arena *arena;
    mrl_recorder recorder;
    mrl_buffer **pins;
    size_t npins, cap_pins;
    VkCommandPool pool;
    VkCommandBuffer *commands; /* one a submission */
    uint32_t nsubmissions;
    bool ready;
};

/* The program that this thread records into; at most one, on one device. */
static _Thread_local mrl_program *current;

mrl_program *mrl_program_capturing(mrl_device *dev)
{
    return current != NULL && current->dev == dev ? current : NULL;
}

mrl_recorder *mrl_program_recorder(mrl_program *program) { return &program->recorder; }
mrl_arena *mrl_program_arena(mrl_program *program) { return program->arena; }

mrl_status mrl_program_pin(mrl_program *program, mrl_buffer *buffer, mrl_error *err)
{
    /* Memory of the program's own arena lives as long as the program. */
    if (buffer == NULL || buffer->arena == program->arena)
        return MRL_OK;
    for (size_t i = program->npins; i-- > 0;)
        if (program->pins[i] == buffer)
            return MRL_OK;
    mrl_status rc = mrl_grow((void **)&program->pins, &program->cap_pins, program->npins,
                             sizeof *program->pins, err);
    if (rc == MRL_OK)
        program->pins[program->npins++] = mrl_buffer_retain(buffer);
    return rc;
}

mrl_status mrl_program_begin(mrl_device *dev, mrl_program **out, mrl_error *err)
{
    mrl_status rc = mrl_device_check(dev, err);
    mrl_program *program;

    *out = NULL;
    if (rc != MRL_OK)
        return rc;
    if (current != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "this thread is already capturing a program");
    program = calloc(1, sizeof *program);
    if (program == NULL || (program->arena = mrl_arena_create(dev)) == NULL) {
        free(program);
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    }
    program->refs = 1;
    program->dev = mrl_device_retain(dev);
    current = program;
    *out = program;
    return MRL_OK;
}

static mrl_status record_commands(mrl_program *program, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = program->dev;
    mrl_recorder *recorder = &program->recorder;
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .queueFamilyIndex = dev->queue_family};
    VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY};
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT};

    for (size_t first = 0; first < recorder->nnodes; first = mrl_recorder_cut(dev, recorder, first))
        program->nsubmissions++;
    program->commands = calloc(program->nsubmissions + 1, sizeof *program->commands);
    if (program->commands == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    MRL_TRY(mrl_device_result(dev, dev->vk.vkCreateCommandPool(dev->handle, &pool, NULL, &program->pool),
                              "vkCreateCommandPool", err));
    allocate.commandPool = program->pool;
    allocate.commandBufferCount = program->nsubmissions;
    if (program->nsubmissions > 0)
        MRL_TRY(mrl_device_result(dev, dev->vk.vkAllocateCommandBuffers(dev->handle, &allocate, program->commands),
                                  "vkAllocateCommandBuffers", err));
    for (size_t first = 0, i = 0; first < recorder->nnodes; i++) {
        size_t last = mrl_recorder_cut(dev, recorder, first);
        MRL_TRY(mrl_device_result(dev, dev->vk.vkBeginCommandBuffer(program->commands[i], &begin),
                                  "vkBeginCommandBuffer", err));
        MRL_TRY(mrl_recorder_emit(dev, recorder, first, last, program->commands[i], err));
        MRL_TRY(mrl_device_result(dev, dev->vk.vkEndCommandBuffer(program->commands[i]), "vkEndCommandBuffer",
                                  err));
        first = last;
    }
done:
    return rc;
}

/* After a capture that came to nothing: no thread is in the driver when the process ends. */
static void settle(mrl_device *dev)
{
    if (!mrl_device_forked(dev))
        mrl_pipelines_settle(dev);
}

mrl_status mrl_program_end(mrl_program *program, mrl_error *err)
{
    mrl_status rc = MRL_OK;

    if (current != program)
        return mrl_fail(err, MRL_ERR_STATE, "this thread is not capturing that program");
    current = NULL;
    MRL_TRY(mrl_device_check(program->dev, err));
    for (size_t i = 0; i < program->recorder.nnodes; i++)
        if (program->recorder.nodes[i].kind == MRL_NODE_DISPATCH)
            MRL_TRY(mrl_pipeline_wait(program->dev, program->recorder.nodes[i].pipeline, err));
    mrl_lock_acquire(&program->dev->stream_lock);
    bool profiling = program->dev->profile.on; /* timestamps belong to re-emission, not to the command buffers */
    program->dev->profile.on = false;
    rc = record_commands(program, err);
    program->dev->profile.on = profiling;
    mrl_lock_release(&program->dev->stream_lock);
    program->ready = rc == MRL_OK;
done:
    if (rc != MRL_OK)
        settle(program->dev);
    return rc;
}

void mrl_program_abort(mrl_program *program)
{
    if (current != program)
        return;
    current = NULL;
    settle(program->dev);
}

mrl_program *mrl_program_retain(mrl_program *program)
{
    atomic_fetch_add(&program->refs, 1);
    return program;
}

void mrl_program_release(mrl_program *program)
{
    if (program == NULL || atomic_fetch_sub(&program->refs, 1) > 1)
        return;
    mrl_device *dev = program->dev;
    mrl_program_abort(program);
    if (program->pool != VK_NULL_HANDLE && !mrl_device_forked(dev)) {
        mrl_device_idle(dev); /* its command buffers may still run */
        dev->vk.vkDestroyCommandPool(dev->handle, program->pool, NULL);
    }
    for (size_t i = 0; i < program->npins; i++)
        mrl_buffer_release(program->pins[i]);
    free(program->pins);
    free(program->commands);
    mrl_recorder_destroy(&program->recorder);
    mrl_arena_release(program->arena);
    free(program);
    mrl_device_release(dev);
}

mrl_status mrl_program_replay(mrl_program *program, uint64_t *value, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = program->dev;

    if (!program->ready)
        return mrl_fail(err, MRL_ERR_STATE, "this program was not captured to its end");
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "replay: not while capturing a program");
    mrl_lock_acquire(&dev->stream_lock);
    MRL_TRY(mrl_stream_flush_locked(dev, err));
    if (dev->profile.on || dev->debug.shuffle || dev->debug.check) {
        MRL_TRY(mrl_stream_run_locked(dev, &program->recorder, err));
    } else {
        for (uint32_t i = 0; i < program->nsubmissions; i++)
            MRL_TRY(mrl_stream_submit_locked(dev, program->commands[i], err));
    }
    if (value != NULL)
        *value = dev->submitted;
done:
    mrl_lock_release(&dev->stream_lock);
    return rc;
}

mrl_status mrl_device_wait(mrl_device *dev, uint64_t value, mrl_error *err)
{
    return mrl_device_wait_value(dev, value, err);
}

bool mrl_device_done(mrl_device *dev, uint64_t value)
{
    uint64_t now = 0;
    if (mrl_device_check(dev, NULL) != MRL_OK ||
        dev->vk.vkGetSemaphoreCounterValue(dev->handle, dev->timeline, &now) != VK_SUCCESS)
        return true; /* a lost device: the wait reports it */
    return now >= value;
}

void mrl_program_stats_of(const mrl_program *program, mrl_program_stats *out)
{
    const mrl_recorder *recorder = &program->recorder;
    *out = (mrl_program_stats){.barriers = recorder->barriers,
                               .submissions = program->nsubmissions,
                               .arena_bytes = mrl_arena_bytes(program->arena),
                               .flops = recorder->flops};
    for (size_t i = 0; i < recorder->nnodes; i++) {
        const mrl_node *node = &recorder->nodes[i];
        const mrl_span *spans = recorder->ranges + node->range_offset;
        out->dispatches += node->kind == MRL_NODE_DISPATCH;
        for (int j = 0; j < node->nreads; j++)
            out->read_bytes += spans[j].end - spans[j].begin;
        for (int j = 0; j < node->nwrites; j++)
            out->write_bytes += spans[node->nreads + j].end - spans[node->nreads + j].begin;
    }
}
