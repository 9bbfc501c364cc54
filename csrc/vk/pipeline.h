/* Pipelines: a module of shaders.bin with specialization constants, made on first use, kept for the life
 * of the device and in the driver's cache file. */
#ifndef MRL_VK_PIPELINE_H
#define MRL_VK_PIPELINE_H

#include "vk/device.h"

typedef struct mrl_pipeline mrl_pipeline;

typedef enum mrl_kernel {
#define KERNEL(name, source, variants, needs) MRL_KERNEL_##name,
#include "kernels.def"
#undef KERNEL
    MRL_KERNEL_COUNT
} mrl_kernel;

typedef enum mrl_format {
#define FORMAT(name, bits, math, scale, zero, default_group, text) MRL_FORMAT_##name,
#include "formats.def"
#undef FORMAT
    MRL_FORMAT_COUNT,
    MRL_FORMAT_NONE = -1,
} mrl_format;

typedef enum mrl_math { MRL_MATH_NONE, MRL_MATH_F32, MRL_MATH_F16 } mrl_math;

#define MRL_MAX_SPEC 28

/* spec[0] is local_size_x; spec[i] is constant_id i. While this thread captures a program the pipeline is compiled
 * beside it, and what the driver says is told at the program's end.
 * Found by hash in about 100 ns after the first time. DEVICE error when the module is not in shaders.bin
 * or the device lacks a feature it needs (named). Thread-safe; owned by the device. */
mrl_status mrl_pipeline_get(mrl_device *dev, mrl_kernel kernel, mrl_format format, mrl_math math,
                            const uint32_t *spec, int nspec, mrl_pipeline **out, mrl_error *err);
/* True when shaders.bin has the module and the device supports it. */
bool mrl_pipeline_available(mrl_device *dev, mrl_kernel kernel, mrl_format format, mrl_math math);
const char *mrl_pipeline_name(const mrl_pipeline *pipeline);
/* Writes the pipeline cache file if pipelines were made since the last time. */
mrl_status mrl_pipeline_save_cache(mrl_device *dev, mrl_error *err);
const char *mrl_kernel_name(mrl_kernel kernel);

#endif
