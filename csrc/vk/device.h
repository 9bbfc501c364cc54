/* Devices: choice, capabilities, features that may be masked, loss. */
#ifndef MRL_VK_DEVICE_H
#define MRL_VK_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mrl_device mrl_device;

typedef enum mrl_feature {
#define FEATURE(name, text) MRL_FEATURE_##name,
#include "features.def"
#undef FEATURE
    MRL_FEATURE_COUNT
} mrl_feature;

#define MRL_BIT(feature) (1u << MRL_FEATURE_##feature)

const char *mrl_feature_name(int feature);
const char *mrl_feature_text(int feature);

typedef enum mrl_device_kind {
    MRL_DEVICE_DISCRETE,
    MRL_DEVICE_INTEGRATED,
    MRL_DEVICE_VIRTUAL,
    MRL_DEVICE_OTHER,
    MRL_DEVICE_SOFTWARE, /* a CPU: lavapipe */
} mrl_device_kind;

typedef struct mrl_device_info {
    char name[256];
    char driver[512];            /* name and version text */
    char missing[256];           /* empty, or the floor features that the device lacks: not usable */
    uint8_t uuid[16];
    uint8_t driver_uuid[16];
    uint32_t vendor, device_id, driver_version, api_version;
    mrl_device_kind kind;
    uint32_t features;           /* MRL_BIT mask */
    uint32_t subgroup_size, subgroup_min, subgroup_max;
    uint32_t shared_bytes;       /* maxComputeSharedMemorySize */
    uint32_t max_workgroup;      /* invocations */
    uint32_t max_groups[3];
    uint64_t memory_bytes;       /* device-local heap */
    uint64_t max_allocation;     /* bytes one allocation and one buffer may have */
    double timestamp_ns;         /* of one tick; 0 without timestamps */
} mrl_device_info;

/* Fills up to capacity rows, best first (discrete, integrated, virtual, other, software); *count is
 * how many there are. No Vulkan at all is not an error: *count = 0 and err->text says why. */
mrl_status mrl_device_list(mrl_device_info *rows, int capacity, int *count, mrl_error *err);

/* Opens the device at an index of mrl_device_list. disable: MRL_BIT mask of features to hide.
 * shaders: path of shaders.bin. cache: folder of the pipeline cache or NULL. Owned by the caller. */
mrl_status mrl_device_open(int index, uint32_t disable, const char *shaders, const char *cache,
                           mrl_device **out, mrl_error *err);
mrl_device *mrl_device_retain(mrl_device *dev);
void mrl_device_release(mrl_device *dev); /* NULL allowed; the last one waits for the GPU and frees all */

const mrl_device_info *mrl_device_info_of(const mrl_device *dev);
/* Whether all subgroups have one size, and so none of a full workgroup lacks lanes. */
static inline bool mrl_whole_subgroups(const mrl_device_info *info)
{
    return info->subgroup_min == info->subgroup_max;
}
static inline bool mrl_device_is_software(const mrl_device *dev)
{
    return mrl_device_info_of(dev)->kind == MRL_DEVICE_SOFTWARE;
}
/* Features that only a kernel can tell, before the device is used. */
void mrl_device_gain(mrl_device *dev, uint32_t bits);

static inline bool mrl_device_has(const mrl_device *dev, uint32_t bits)
{
    return (mrl_device_info_of(dev)->features & bits) == bits;
}

/* MRL_OK, or DEVICE_LOST after a loss, or DEVICE when the process was forked since opening. */
mrl_status mrl_device_check(const mrl_device *dev, mrl_error *err);

typedef struct mrl_memory_stats {
    uint64_t device_used, device_reserved, host_used, host_reserved; /* bytes: handed out, allocated */
    uint64_t device_budget;  /* what the driver says is left for this process, bytes */
    uint64_t device_peak;    /* most of device_used so far */
} mrl_memory_stats;
void mrl_device_memory(mrl_device *dev, mrl_memory_stats *out);

/* Fault injection for the tests: kinds "lost" (the nth submission from now), "memory" (the nth device
 * allocation), "host" (nth host allocation of the core). n = 0 clears. */
mrl_status mrl_device_inject(mrl_device *dev, const char *kind, uint64_t nth, mrl_error *err);

#endif
