#include "ops/sample.h"

#include "push.h"

#define SHARED_BYTES 17000u /* of sample.comp */

_Static_assert(sizeof(mrl_push_sample) <= 128 && sizeof(mrl_push_edit) <= 128, "push constants");
_Static_assert(sizeof(mrl_edit) == 12, "the shader reads (count, 3) u32");

/* A GPU hides latency with threads, a CPU runs them one vector after another. But llvmpipe ends an
 * invocation's loops after 65536 rounds in all (Mesa 22.3), and a draw with every filter on takes 18
 * passes over the vocabulary. */
static uint32_t local_size(mrl_device *dev, uint32_t most, uint32_t items)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    uint32_t size = info->kind == MRL_DEVICE_SOFTWARE ? 64 : most;
    while (size < most && items / size > 2048) size *= 2;
    while (size > 1 && size > info->max_workgroup) size /= 2;
    return size;
}

mrl_status mrl_sample(const mrl_view *logits, const mrl_step_buffers *state, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(state->tokens);
    uint64_t shape[2] = {state->slots, state->vocab};
    uint32_t spec[2] = {local_size(dev, 1024, state->vocab)}, shared = mrl_device_info_of(dev)->shared_bytes;
    mrl_pipeline *pipeline;
    mrl_push_sample push = {.slots = state->slots, .vocab = state->vocab};

    MRL_TRY(mrl_view_check(logits, dev, "sample", "logits", MRL_DTYPE_BIT(f32), 2, shape, err));
    if (shared < SHARED_BYTES)
        return mrl_fail(err, MRL_ERR_DEVICE, "sample: needs %u bytes of shared memory, the device has %u", SHARED_BYTES,
                        shared);
    /* Loads in flight: a GPU needs several a thread, llvmpipe compiles each for half a second. */
    spec[1] = mrl_device_info_of(dev)->kind == MRL_DEVICE_SOFTWARE ? 1 : 4;
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_sample, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 2, &pipeline, err));
    push.logits = mrl_view_address(logits);
    push.tokens = mrl_buffer_address(state->tokens);
    push.positions = mrl_buffer_address(state->positions);
    push.params = mrl_buffer_address(state->params);
    push.seen = mrl_buffer_address(state->seen);
    push.bias = mrl_buffer_address(state->bias);
    push.ring = mrl_buffer_address(state->ring);
    push.step = mrl_buffer_address(state->step);
    mrl_range reads[] = {mrl_view_range(logits), mrl_range_of(state->positions), mrl_range_of(state->params),
                         mrl_range_of(state->seen),     mrl_range_of(state->bias),      mrl_range_of(state->step)};
    mrl_range writes[] = {mrl_range_of(state->tokens), mrl_range_of(state->positions), mrl_range_of(state->params),
                          mrl_range_of(state->seen),   mrl_range_of(state->ring),      mrl_range_of(state->step)};
    mrl_dispatch dispatch = {.pipeline = pipeline,
                             .push = &push,
                             .push_bytes = sizeof push,
                             .groups = {state->slots, 1, 1},
                             .reads = reads,
                             .nreads = 6,
                             .writes = writes,
                             .nwrites = 6};
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    return rc;
}

mrl_status mrl_edit_slots(const mrl_edit *edits, uint32_t count, const mrl_step_buffers *state, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(state->tokens);
    uint64_t bytes = (uint64_t)count * sizeof *edits;
    uint32_t spec[1] = {local_size(dev, 256, count)};
    mrl_buffer *list = NULL;
    mrl_pipeline *pipeline;
    mrl_push_edit push = {.count = count, .slots = state->slots, .vocab = state->vocab};

    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_edit_slots, MRL_FORMAT_NONE, MRL_MATH_NONE, spec, 1, &pipeline, err));
    MRL_TRY(mrl_buffer_create(dev, bytes, MRL_MEMORY_DEVICE, &list, err));
    MRL_TRY(mrl_buffer_write(list, 0, edits, bytes, err));
    push.edits = mrl_buffer_address(list);
    push.tokens = mrl_buffer_address(state->tokens);
    push.positions = mrl_buffer_address(state->positions);
    push.params = mrl_buffer_address(state->params);
    push.seen = mrl_buffer_address(state->seen);
    push.bias = mrl_buffer_address(state->bias);
    mrl_range reads[] = {mrl_range_of(list), mrl_range_of(state->seen)};
    mrl_range writes[] = {mrl_range_of(state->tokens), mrl_range_of(state->positions), mrl_range_of(state->params),
                          mrl_range_of(state->seen), mrl_range_of(state->bias)};
    mrl_dispatch dispatch = {.pipeline = pipeline,
                             .push = &push,
                             .push_bytes = sizeof push,
                             .groups = {1, 1, 1},
                             .reads = reads,
                             .nreads = 2,
                             .writes = writes,
                             .nwrites = 5};
    MRL_TRY(mrl_stream_dispatch(dev, &dispatch, err));
done:
    mrl_buffer_release(list);
    return rc;
}
