/* Where the driver puts the elements of a cooperative matrix: asked once a device, see trellis/fragments.glsl. */
#include "ops/trellis.h"
#include "push.h"

mrl_status mrl_op_probe_fragments(mrl_device *dev, uint32_t disable, mrl_error *err)
{
    mrl_status rc;
    const mrl_device_info *info = mrl_device_info_of(dev);
    mrl_buffer *found = NULL;
    mrl_pipeline *pipeline;
    float elements[32 * 8];
    const uint32_t lanes = 32;
    bool same = true;

    if (disable & MRL_BIT(fragments) || info->subgroup_min != 32 || info->subgroup_max != 32 ||
        !mrl_pipeline_available(dev, MRL_KERNEL_fragments, MRL_FORMAT_NONE, MRL_MATH_F16))
        return MRL_OK;
    MRL_TRY(mrl_buffer_create(dev, sizeof elements, MRL_MEMORY_DEVICE, &found, err));
    const mrl_push_trellis_copy push = {.file = mrl_buffer_address(found)};
    const mrl_range writes[] = {{found, 0, sizeof elements}};
    MRL_TRY(mrl_pipeline_get(dev, MRL_KERNEL_fragments, MRL_FORMAT_NONE, MRL_MATH_F16, &lanes, 1, &pipeline, err));
    const mrl_dispatch d = {
        .pipeline = pipeline,
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {1, 1, 1},
        .writes = writes,
        .nwrites = 1,
    };
    MRL_TRY(mrl_stream_dispatch(dev, &d, err));
    MRL_TRY(mrl_buffer_read(found, 0, elements, sizeof elements, err));
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t e = 0; e < 8; e++) { /* as trellis/fragments.glsl fills them */
            const uint32_t row = lane % 4 * 2 + e % 2 + e / 2 % 2 * 8, column = lane / 4 + e / 4 * 8;
            same &= elements[lane * 8 + e] == (float)(row * 16 + column);
        }
    if (same)
        mrl_device_gain(dev, MRL_BIT(fragments));
done:
    mrl_buffer_release(found);
    return rc;
}
