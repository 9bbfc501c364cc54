#include "vk/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VENDOR_NVIDIA 0x10deu /* PCI */

static const struct {
    const char *name, *text;
} feature_rows[] = {
#define FEATURE(name, text) {#name, text},
#include "features.def"
#undef FEATURE
};

const char *mrl_feature_name(int feature) { return feature_rows[feature].name; }
const char *mrl_feature_text(int feature) { return feature_rows[feature].text; }

/* ---- what a physical device can do ---- */

/* Every struct that is asked about and, with the wanted fields only, handed back at device creation. */
typedef struct feature_chain {
    VkPhysicalDeviceFeatures2 core;
    VkPhysicalDeviceVulkan11Features v11;
    VkPhysicalDeviceVulkan12Features v12;
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT subgroup_size;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coopmat;
    VkPhysicalDeviceCooperativeMatrix2FeaturesNV coopmat2;
    VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR int_dot;
    VkPhysicalDeviceMemoryPriorityFeaturesEXT priority;
    VkPhysicalDevicePageableDeviceLocalMemoryFeaturesEXT pageable;
} feature_chain;

typedef struct extensions {
    bool coopmat, coopmat2, int_dot, budget, priority, pageable, subgroup_size;
} extensions;

static const struct {
    const char *name;
    size_t offset;
} extension_rows[] = {
    {VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, offsetof(extensions, coopmat)},
    {VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME, offsetof(extensions, coopmat2)},
    {VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME, offsetof(extensions, int_dot)},
    {VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, offsetof(extensions, budget)},
    {VK_EXT_MEMORY_PRIORITY_EXTENSION_NAME, offsetof(extensions, priority)},
    {VK_EXT_PAGEABLE_DEVICE_LOCAL_MEMORY_EXTENSION_NAME, offsetof(extensions, pageable)},
    {VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, offsetof(extensions, subgroup_size)},
};
#define EXTENSION_COUNT (sizeof extension_rows / sizeof *extension_rows)

static bool extension_on(const extensions *have, size_t row)
{
    return *(const bool *)((const char *)have + extension_rows[row].offset);
}

static mrl_status query_extensions(VkPhysicalDevice physical, extensions *have, mrl_error *err)
{
    uint32_t count = 0;
    VkExtensionProperties *rows = NULL;

    memset(have, 0, sizeof *have);
    mrl_vk_instance.vkEnumerateDeviceExtensionProperties(physical, NULL, &count, NULL);
    rows = calloc(count + 1, sizeof *rows);
    if (rows == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    mrl_vk_instance.vkEnumerateDeviceExtensionProperties(physical, NULL, &count, rows);
    for (uint32_t i = 0; i < count; i++)
        for (size_t j = 0; j < EXTENSION_COUNT; j++)
            if (strcmp(rows[i].extensionName, extension_rows[j].name) == 0)
                *(bool *)((char *)have + extension_rows[j].offset) = true;
    free(rows);
    /* Extensions that stand on others. */
    have->coopmat2 = have->coopmat2 && have->coopmat;
    have->pageable = have->pageable && have->priority;
    return MRL_OK;
}

static void chain_link(feature_chain *chain, const extensions *have)
{
    void **tail = &chain->core.pNext;
#define LINK(member, type)                       \
    do {                                         \
        chain->member.sType = (type);            \
        chain->member.pNext = NULL;              \
        *tail = &chain->member;                  \
        tail = (void **)&chain->member.pNext;    \
    } while (0)
    chain->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    chain->core.pNext = NULL;
    LINK(v11, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES);
    LINK(v12, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES);
    if (have->subgroup_size)
        LINK(subgroup_size, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT);
    if (have->coopmat)
        LINK(coopmat, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
    if (have->coopmat2)
        LINK(coopmat2, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_2_FEATURES_NV);
    if (have->int_dot)
        LINK(int_dot, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR);
    if (have->priority)
        LINK(priority, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PRIORITY_FEATURES_EXT);
    if (have->pageable)
        LINK(pageable, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PAGEABLE_DEVICE_LOCAL_MEMORY_FEATURES_EXT);
#undef LINK
}

/* The floor: X(struct, field, name). All of it is enabled on every device. */
#define FLOOR(X)                                                              \
    X(core.features, shaderInt16, "shaderInt16")                              \
    X(v11, storageBuffer16BitAccess, "storageBuffer16BitAccess")              \
    X(v12, storageBuffer8BitAccess, "storageBuffer8BitAccess")                \
    X(v12, shaderInt8, "shaderInt8")                                          \
    X(v12, scalarBlockLayout, "scalarBlockLayout")                            \
    X(v12, timelineSemaphore, "timelineSemaphore")                            \
    X(v12, bufferDeviceAddress, "bufferDeviceAddress")                        \
    X(v12, vulkanMemoryModel, "vulkanMemoryModel")                            \
    X(v12, vulkanMemoryModelDeviceScope, "vulkanMemoryModelDeviceScope")

static void append_missing(mrl_device_info *info, const char *name)
{
    size_t used = strlen(info->missing);
    snprintf(info->missing + used, sizeof info->missing - used, used ? ", %s" : "%s", name);
}

/* Whether there are 16x16x16 products f16 x f16 at subgroup scope with sums of a type; f32 is what the matmul kernels
 * are written for. */
static bool has_coopmat_shape(VkPhysicalDevice physical, VkComponentTypeKHR sums)
{
    uint32_t count = 0;
    bool found = false;
    VkCooperativeMatrixPropertiesKHR *rows;

    if (mrl_vk_instance.vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR == NULL)
        return false;
    mrl_vk_instance.vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR(physical, &count, NULL);
    rows = calloc(count + 1, sizeof *rows);
    if (rows == NULL)
        return false;
    for (uint32_t i = 0; i < count; i++)
        rows[i].sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
    mrl_vk_instance.vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR(physical, &count, rows);
    for (uint32_t i = 0; i < count; i++)
        found |= rows[i].MSize == 16 && rows[i].NSize == 16 && rows[i].KSize == 16 &&
                 rows[i].AType == VK_COMPONENT_TYPE_FLOAT16_KHR && rows[i].BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
                 rows[i].CType == sums && rows[i].ResultType == sums && rows[i].scope == VK_SCOPE_SUBGROUP_KHR;
    free(rows);
    return found;
}

static void query_features(VkPhysicalDevice physical, const extensions *have, feature_chain *chain,
                           mrl_device_info *info)
{
    const VkFlags operations = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_VOTE_BIT |
                               VK_SUBGROUP_FEATURE_ARITHMETIC_BIT | VK_SUBGROUP_FEATURE_BALLOT_BIT |
                               VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    VkPhysicalDeviceSubgroupProperties subgroup = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    VkPhysicalDeviceShaderIntegerDotProductPropertiesKHR dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES_KHR};
    VkPhysicalDeviceFloatControlsProperties floats = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES, .pNext = &subgroup};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                              .pNext = &floats};

    subgroup.pNext = have->int_dot ? &dot : NULL;
    mrl_vk_instance.vkGetPhysicalDeviceProperties2(physical, &properties);
    chain_link(chain, have);
    mrl_vk_instance.vkGetPhysicalDeviceFeatures2(physical, &chain->core);
#define X(group, field, name)          \
    if (!chain->group.field)           \
        append_missing(info, name);
    FLOOR(X)
#undef X
    if ((subgroup.supportedOperations & operations) != operations)
        append_missing(info, "subgroup vote, arithmetic, ballot and shuffle");
    if (chain->v12.shaderFloat16 && info->kind != MRL_DEVICE_SOFTWARE)
        info->features |= MRL_BIT(fp16);
    if (floats.shaderDenormPreserveFloat16 &&
        floats.denormBehaviorIndependence != VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_NONE)
        info->features |= MRL_BIT(subnormals);
    if (have->coopmat && chain->coopmat.cooperativeMatrix && info->features & MRL_BIT(subnormals) &&
        has_coopmat_shape(physical, VK_COMPONENT_TYPE_FLOAT32_KHR)) {
        info->features |= MRL_BIT(coopmat);
        if (has_coopmat_shape(physical, VK_COMPONENT_TYPE_FLOAT16_KHR))
            info->features |= MRL_BIT(coopmat_f16);
    }
    if (have->coopmat2 && chain->coopmat2.cooperativeMatrixWorkgroupScope &&
        chain->coopmat2.cooperativeMatrixFlexibleDimensions &&
        chain->coopmat2.cooperativeMatrixTensorAddressing && chain->coopmat2.cooperativeMatrixBlockLoads)
        info->features |= MRL_BIT(coopmat2);
    if (have->int_dot && chain->int_dot.shaderIntegerDotProduct &&
        dot.integerDotProduct4x8BitPackedSignedAccelerated)
        info->features |= MRL_BIT(int_dot);
    if (have->subgroup_size && chain->subgroup_size.subgroupSizeControl &&
        chain->subgroup_size.computeFullSubgroups)
        info->features |= MRL_BIT(subgroup_size);
    if (have->budget)
        info->features |= MRL_BIT(memory_budget);
}

static int find_queue_family(VkPhysicalDevice physical, uint32_t *timestamp_bits)
{
    VkQueueFamilyProperties rows[16];
    uint32_t count = 16;
    int best = -1;

    mrl_vk_instance.vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, rows);
    /* The general family first: some drivers clock the dedicated compute family lower. */
    for (uint32_t i = 0; i < count; i++)
        if (rows[i].queueFlags & VK_QUEUE_COMPUTE_BIT &&
            (best < 0 || (rows[i].queueFlags & VK_QUEUE_GRAPHICS_BIT &&
                          !(rows[best].queueFlags & VK_QUEUE_GRAPHICS_BIT))))
            best = (int)i;
    *timestamp_bits = best < 0 ? 0 : rows[best].timestampValidBits;
    return best;
}

static bool memory_type_has(const VkPhysicalDeviceMemoryProperties *memory, uint32_t type, VkFlags flags)
{
    return (memory->memoryTypes[type].propertyFlags & flags) == flags;
}

/* First type with all of `wanted` and none of `unwanted`; -1 when there is none. */
static int find_memory_type(const VkPhysicalDeviceMemoryProperties *memory, VkFlags wanted, VkFlags unwanted)
{
    for (uint32_t i = 0; i < memory->memoryTypeCount; i++)
        if (memory_type_has(memory, i, wanted) && !(memory->memoryTypes[i].propertyFlags & unwanted))
            return (int)i;
    return -1;
}

#define HOST_FLAGS (VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)

static void query_memory(VkPhysicalDevice physical, VkPhysicalDeviceMemoryProperties *memory, int *device_type,
                         int *host_type, mrl_device_info *info)
{
    bool unified = info->kind == MRL_DEVICE_SOFTWARE || info->kind == MRL_DEVICE_INTEGRATED;

    mrl_vk_instance.vkGetPhysicalDeviceMemoryProperties(physical, memory);
    *device_type = -1;
    if (unified)
        *device_type = find_memory_type(memory, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | HOST_FLAGS |
                                                    VK_MEMORY_PROPERTY_HOST_CACHED_BIT, 0);
    if (unified && *device_type >= 0)
        info->features |= MRL_BIT(host_visible);
    if (*device_type < 0)
        *device_type = find_memory_type(memory, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
    if (*device_type < 0)
        *device_type = find_memory_type(memory, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0);
    *host_type = find_memory_type(memory, HOST_FLAGS | VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                  VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    if (*host_type < 0)
        *host_type = find_memory_type(memory, HOST_FLAGS | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, 0);
    if (*host_type < 0)
        *host_type = find_memory_type(memory, HOST_FLAGS, 0);
    if (*device_type >= 0)
        info->memory_bytes = memory->memoryHeaps[memory->memoryTypes[*device_type].heapIndex].size;
    if (*device_type < 0 || *host_type < 0)
        append_missing(info, "a device-local and a host-visible memory type");
}

static mrl_device_kind kind_of(VkPhysicalDeviceType type)
{
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return MRL_DEVICE_DISCRETE;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return MRL_DEVICE_INTEGRATED;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return MRL_DEVICE_VIRTUAL;
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return MRL_DEVICE_SOFTWARE;
    default: return MRL_DEVICE_OTHER;
    }
}

static void query_properties(VkPhysicalDevice physical, mrl_device_info *info)
{
    VkPhysicalDeviceVulkan13Properties v13 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES};
    VkPhysicalDeviceVulkan12Properties v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES};
    VkPhysicalDeviceVulkan11Properties v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES,
                                              .pNext = &v12};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                              .pNext = &v11};
    const VkPhysicalDeviceProperties *core = &properties.properties;
    uint32_t timestamp_bits;

    mrl_vk_instance.vkGetPhysicalDeviceProperties(physical, &properties.properties);
    info->api_version = core->apiVersion;
    if (info->api_version >= VK_API_VERSION_1_3)
        v12.pNext = &v13;
    mrl_vk_instance.vkGetPhysicalDeviceProperties2(physical, &properties);
    snprintf(info->name, sizeof info->name, "%s", core->deviceName);
    snprintf(info->driver, sizeof info->driver, "%s %s", v12.driverName, v12.driverInfo);
    memcpy(info->uuid, v11.deviceUUID, sizeof info->uuid);
    memcpy(info->driver_uuid, v11.driverUUID, sizeof info->driver_uuid);
    info->vendor = core->vendorID;
    if (info->vendor == VENDOR_NVIDIA)
        info->features |= MRL_BIT(told);
    info->device_id = core->deviceID;
    info->driver_version = core->driverVersion;
    info->kind = kind_of(core->deviceType);
    info->subgroup_size = info->subgroup_min = info->subgroup_max = v11.subgroupSize;
    info->max_allocation = v11.maxMemoryAllocationSize;
    if (v12.pNext != NULL) {
        info->subgroup_min = v13.minSubgroupSize;
        info->subgroup_max = v13.maxSubgroupSize;
        if (v13.maxBufferSize < info->max_allocation)
            info->max_allocation = v13.maxBufferSize;
    }
    info->shared_bytes = core->limits.maxComputeSharedMemorySize;
    info->max_workgroup = core->limits.maxComputeWorkGroupInvocations;
    if (core->limits.maxComputeWorkGroupSize[0] < info->max_workgroup)
        info->max_workgroup = core->limits.maxComputeWorkGroupSize[0];
    memcpy(info->max_groups, core->limits.maxComputeWorkGroupCount, sizeof info->max_groups);
    if (find_queue_family(physical, &timestamp_bits) < 0)
        append_missing(info, "a compute queue");
    info->timestamp_ns = timestamp_bits > 0 ? (double)core->limits.timestampPeriod : 0;
}

static mrl_status describe(VkPhysicalDevice physical, extensions *have, feature_chain *chain,
                           mrl_device_info *info, mrl_error *err)
{
    VkPhysicalDeviceMemoryProperties memory;
    int device_type, host_type;
    mrl_status rc = query_extensions(physical, have, err);

    if (rc != MRL_OK)
        return rc;
    memset(info, 0, sizeof *info);
    memset(chain, 0, sizeof *chain);
    query_properties(physical, info);
    if (info->api_version < VK_API_VERSION_1_2) {
        append_missing(info, "Vulkan 1.2");
        return MRL_OK;
    }
    query_features(physical, have, chain, info);
    query_memory(physical, &memory, &device_type, &host_type, info);
    return MRL_OK;
}

/* ---- the list ---- */

#define MAX_DEVICES 32

typedef struct candidate {
    VkPhysicalDevice physical;
    mrl_device_info info;
} candidate;

/* Usable before unusable, then by kind, then larger memory first; stable otherwise. */
static bool better(const mrl_device_info *a, const mrl_device_info *b)
{
    if ((a->missing[0] == 0) != (b->missing[0] == 0))
        return a->missing[0] == 0;
    if (a->kind != b->kind)
        return a->kind < b->kind;
    return a->memory_bytes > b->memory_bytes;
}

static mrl_status list_candidates(candidate *rows, int *count, mrl_error *err)
{
    mrl_status rc;
    VkPhysicalDevice found[MAX_DEVICES];
    uint32_t n = MAX_DEVICES;
    extensions have;
    feature_chain chain;

    *count = 0;
    MRL_TRY(mrl_vk_open(err));
    VkResult result = mrl_vk_instance.vkEnumeratePhysicalDevices(mrl_vk_instance.handle, &n, found);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE)
        n = 0;
    for (uint32_t i = 0; i < n; i++) {
        candidate row = {.physical = found[i]};
        int at = (int)i;
        MRL_TRY(describe(found[i], &have, &chain, &row.info, err));
        while (at > 0 && better(&row.info, &rows[at - 1].info)) {
            rows[at] = rows[at - 1];
            at--;
        }
        rows[at] = row;
    }
    *count = (int)n;
    if (n == 0)
        rc = mrl_fail(err, MRL_ERR_DEVICE, "Vulkan is here but no device is: %s", mrl_vk_remedy);
done:
    return rc;
}

/* In a forked child an error of the driver, whatever it says, is one of the device, and names the remedy. */
static mrl_status explain_fork(mrl_status rc, mrl_error *err)
{
    char text[sizeof err->text];

    if (rc == MRL_OK || rc == MRL_ERR_VALUE || mrl_vk_fork_remedy()[0] == 0)
        return rc;
    snprintf(text, sizeof text, "%s", err->text);
    return mrl_fail(err, MRL_ERR_DEVICE, "%.800s%s", text, mrl_vk_fork_remedy());
}

mrl_status mrl_device_list(mrl_device_info *rows, int capacity, int *count, mrl_error *err)
{
    candidate *found = calloc(MAX_DEVICES, sizeof *found);
    if (found == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    mrl_status rc = explain_fork(list_candidates(found, count, err), err);
    for (int i = 0; i < *count && i < capacity; i++)
        rows[i] = found[i].info;
    free(found);
    return rc == MRL_ERR_DEVICE ? MRL_OK : rc;
}

/* ---- opening ---- */

/* Keeps of the queried chain only what kernels use: unused features can cost speed. */
static void chain_want(feature_chain *chain, const extensions *have, uint32_t features)
{
    feature_chain got = *chain;

    memset(chain, 0, sizeof *chain);
#define X(group, field, name) chain->group.field = VK_TRUE;
    FLOOR(X)
#undef X
    chain->core.features.shaderInt64 = got.core.features.shaderInt64;
    chain->v12.shaderFloat16 = got.v12.shaderFloat16;
    chain->v12.shaderSubgroupExtendedTypes = got.v12.shaderSubgroupExtendedTypes;
    chain->subgroup_size.subgroupSizeControl = (features & MRL_BIT(subgroup_size)) != 0;
    chain->subgroup_size.computeFullSubgroups = (features & MRL_BIT(subgroup_size)) != 0;
    chain->coopmat.cooperativeMatrix = (features & MRL_BIT(coopmat)) != 0;
    if (features & MRL_BIT(coopmat2))
        chain->coopmat2 = got.coopmat2;
    chain->int_dot.shaderIntegerDotProduct = (features & MRL_BIT(int_dot)) != 0;
    chain->priority.memoryPriority = have->priority && got.priority.memoryPriority;
    chain->pageable.pageableDeviceLocalMemory = have->pageable && got.pageable.pageableDeviceLocalMemory;
    chain_link(chain, have);
}

static mrl_status create_handle(mrl_device *dev, const extensions *have, feature_chain *chain, mrl_error *err)
{
    mrl_status rc;
    float priority = 1.0f;
    const char *names[EXTENSION_COUNT];
    uint32_t count = 0, timestamp_bits;
    dev->queue_family = (uint32_t)find_queue_family(dev->physical, &timestamp_bits);
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = dev->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};

    for (size_t i = 0; i < EXTENSION_COUNT; i++)
        if (extension_on(have, i))
            names[count++] = extension_rows[i].name;
    chain_want(chain, have, dev->info.features);
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &chain->core,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = count,
                               .ppEnabledExtensionNames = names};
    MRL_TRY(mrl_vk_check(mrl_vk_instance.vkCreateDevice(dev->physical, &info, NULL, &dev->handle),
                         "vkCreateDevice", err));
    MRL_TRY(mrl_vk_device_table_load(dev->handle, &dev->vk, err));
    dev->vk.vkGetDeviceQueue(dev->handle, dev->queue_family, 0, &dev->queue);
done:
    return rc;
}

static mrl_status create_objects(mrl_device *dev, mrl_error *err)
{
    mrl_status rc;
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, MRL_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &range};
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};

    MRL_TRY(mrl_vk_check(dev->vk.vkCreatePipelineLayout(dev->handle, &layout, NULL, &dev->layout),
                         "vkCreatePipelineLayout", err));
    MRL_TRY(mrl_vk_check(dev->vk.vkCreateSemaphore(dev->handle, &semaphore, NULL, &dev->timeline),
                         "vkCreateSemaphore", err));
done:
    return rc;
}

static void destroy(mrl_device *dev)
{
    if (dev == NULL)
        return;
    if (dev->handle != VK_NULL_HANDLE && !mrl_device_forked(dev)) {
        dev->vk.vkDeviceWaitIdle(dev->handle);
        mrl_pipelines_destroy(dev);
        mrl_memory_destroy(dev);
        for (int i = 0; i < MRL_COMMAND_BUFFERS; i++)
            if (dev->slots[i].pool != VK_NULL_HANDLE)
                dev->vk.vkDestroyCommandPool(dev->handle, dev->slots[i].pool, NULL);
        if (dev->profile.pool != VK_NULL_HANDLE)
            dev->vk.vkDestroyQueryPool(dev->handle, dev->profile.pool, NULL);
        if (dev->timeline != VK_NULL_HANDLE)
            dev->vk.vkDestroySemaphore(dev->handle, dev->timeline, NULL);
        if (dev->layout != VK_NULL_HANDLE)
            dev->vk.vkDestroyPipelineLayout(dev->handle, dev->layout, NULL);
        dev->vk.vkDestroyDevice(dev->handle, NULL);
    }
    free(dev->profile.rows);
    mrl_recorder_destroy(&dev->recorder);
    mrl_lock_destroy(&dev->stream_lock);
    mrl_lock_destroy(&dev->memory_lock);
    free(dev);
}

mrl_status mrl_device_open(int index, uint32_t disable, const char *shaders, const char *cache,
                           mrl_device **out, mrl_error *err)
{
    mrl_status rc;
    int count;
    extensions have;
    feature_chain chain;
    mrl_device *dev = NULL;
    candidate *found = calloc(MAX_DEVICES, sizeof *found);

    *out = NULL;
    if (found == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    MRL_TRY(list_candidates(found, &count, err));
    if (index < 0 || index >= count) {
        rc = mrl_fail(err, MRL_ERR_VALUE, "device %d does not exist: there are %d (marlin devices lists them)",
                      index, count);
        goto done;
    }
    if (found[index].info.missing[0] != 0) {
        rc = mrl_fail(err, MRL_ERR_DEVICE, "%s lacks %s; update its driver or choose another device",
                      found[index].info.name, found[index].info.missing);
        goto done;
    }
    dev = calloc(1, sizeof *dev);
    if (dev == NULL) {
        rc = mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        goto done;
    }
    dev->refs = 1;
    dev->pid = getpid();
    mrl_lock_init(&dev->stream_lock);
    mrl_lock_init(&dev->memory_lock);
    dev->physical = found[index].physical;
    MRL_TRY(describe(dev->physical, &have, &chain, &dev->info, err));
    query_memory(dev->physical, &dev->memory_properties, &dev->type_device, &dev->type_host, &dev->info);
    dev->info.features &= ~disable;
    dev->has_budget = have.budget && !(disable & MRL_BIT(memory_budget));
    dev->has_priority = have.priority && chain.priority.memoryPriority;
    MRL_TRY(create_handle(dev, &have, &chain, err));
    MRL_TRY(create_objects(dev, err));
    MRL_TRY(mrl_pipelines_create(dev, shaders, cache, err));
    *out = dev;
    dev = NULL;
done:
    destroy(dev);
    free(found);
    return explain_fork(rc, err);
}

mrl_device *mrl_device_retain(mrl_device *dev)
{
    atomic_fetch_add(&dev->refs, 1);
    return dev;
}

void mrl_device_release(mrl_device *dev)
{
    if (dev != NULL && atomic_fetch_sub(&dev->refs, 1) == 1)
        destroy(dev);
}

const mrl_device_info *mrl_device_info_of(const mrl_device *dev) { return &dev->info; }

void mrl_device_gain(mrl_device *dev, uint32_t bits) { dev->info.features |= bits; }

bool mrl_device_forked(const mrl_device *dev) { return dev->pid != getpid(); }

mrl_status mrl_device_check(const mrl_device *dev, mrl_error *err)
{
    if (atomic_load(&dev->lost))
        return mrl_fail(err, MRL_ERR_DEVICE_LOST,
                        "%s was lost (a driver reset or a crash of its work); open the device again and reload%s",
                        dev->info.name, mrl_vk_fork_remedy());
    if (mrl_device_forked(dev))
        return mrl_fail(err, MRL_ERR_DEVICE,
                        "%s was opened before this process was forked; open it again in the child, or start "
                        "children with multiprocessing's spawn method",
                        dev->info.name);
    return MRL_OK;
}

mrl_status mrl_device_result(mrl_device *dev, VkResult result, const char *what, mrl_error *err)
{
    if (result == VK_ERROR_DEVICE_LOST) {
        atomic_store(&dev->lost, true);
        return mrl_device_check(dev, err);
    }
    return mrl_vk_check(result, what, err);
}

/* ---- fault injection ---- */

bool mrl_inject_fires(atomic_ullong *counter)
{
    unsigned long long now = atomic_load(counter);
    while (now > 0)
        if (atomic_compare_exchange_weak(counter, &now, now - 1))
            return now == 1;
    return false;
}

mrl_status mrl_device_inject(mrl_device *dev, const char *kind, uint64_t nth, mrl_error *err)
{
    const struct {
        const char *name;
        atomic_ullong *counter;
    } kinds[] = {{"lost", &dev->inject_lost}, {"memory", &dev->inject_memory}, {"host", &dev->inject_host}};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i].name) == 0) {
            atomic_store(kinds[i].counter, nth);
            return MRL_OK;
        }
    return mrl_fail(err, MRL_ERR_VALUE, "inject: kind must be lost, memory or host, got %s", kind);
}
