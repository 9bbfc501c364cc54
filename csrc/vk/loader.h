/* Loads Vulkan at run time, so that the wheel imports where there is no driver.
 *
 * One instance a process, made by the first mrl_vk_open and kept until the process ends. Instance
 * functions are in the table mrl_vk_instance; device functions are in a table a device, so that
 * several devices do not meet in the loader's trampolines. A table's members have Vulkan's own
 * names: mrl_vk_instance.vkCreateDevice(...), table->vkCmdDispatch(...). */
#ifndef MRL_VK_LOADER_H
#define MRL_VK_LOADER_H

#include "base/status.h"
#include "vk/vulkan_defs.h"

/* X(name): must be there; O(name): NULL where the loader or device does not have it. */
#define MRL_VK_GLOBAL_FUNCTIONS(X, O)                                                              \
    X(vkEnumerateInstanceVersion)                                                                  \
    X(vkEnumerateInstanceLayerProperties)                                                          \
    X(vkEnumerateInstanceExtensionProperties)                                                      \
    X(vkCreateInstance)

#define MRL_VK_INSTANCE_FUNCTIONS(X, O)                                                            \
    X(vkDestroyInstance)                                                                           \
    X(vkEnumeratePhysicalDevices)                                                                  \
    X(vkEnumerateDeviceExtensionProperties)                                                        \
    X(vkGetPhysicalDeviceFeatures2)                                                                \
    X(vkGetPhysicalDeviceProperties)                                                               \
    X(vkGetPhysicalDeviceProperties2)                                                              \
    X(vkGetPhysicalDeviceQueueFamilyProperties)                                                    \
    X(vkGetPhysicalDeviceMemoryProperties)                                                         \
    X(vkGetPhysicalDeviceMemoryProperties2)                                                        \
    X(vkCreateDevice)                                                                              \
    X(vkGetDeviceProcAddr)                                                                         \
    O(vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)                                           \
    O(vkCreateDebugUtilsMessengerEXT)

#define MRL_VK_DEVICE_FUNCTIONS(X, O)                                                              \
    X(vkDestroyDevice)                                                                             \
    X(vkGetDeviceQueue)                                                                            \
    X(vkDeviceWaitIdle)                                                                            \
    X(vkQueueSubmit)                                                                               \
    X(vkAllocateMemory)                                                                            \
    X(vkFreeMemory)                                                                                \
    X(vkMapMemory)                                                                                 \
    X(vkCreateBuffer)                                                                              \
    X(vkDestroyBuffer)                                                                             \
    X(vkGetBufferMemoryRequirements)                                                               \
    X(vkBindBufferMemory)                                                                          \
    X(vkGetBufferDeviceAddress)                                                                    \
    X(vkCreateShaderModule)                                                                        \
    X(vkDestroyShaderModule)                                                                       \
    X(vkCreatePipelineCache)                                                                       \
    X(vkDestroyPipelineCache)                                                                      \
    X(vkGetPipelineCacheData)                                                                      \
    X(vkCreateComputePipelines)                                                                    \
    X(vkDestroyPipeline)                                                                           \
    X(vkCreatePipelineLayout)                                                                      \
    X(vkDestroyPipelineLayout)                                                                     \
    X(vkCreateQueryPool)                                                                           \
    X(vkDestroyQueryPool)                                                                          \
    X(vkGetQueryPoolResults)                                                                       \
    X(vkCreateSemaphore)                                                                           \
    X(vkDestroySemaphore)                                                                          \
    X(vkGetSemaphoreCounterValue)                                                                  \
    X(vkWaitSemaphores)                                                                            \
    X(vkCreateCommandPool)                                                                         \
    X(vkDestroyCommandPool)                                                                        \
    X(vkResetCommandPool)                                                                          \
    X(vkAllocateCommandBuffers)                                                                    \
    X(vkBeginCommandBuffer)                                                                        \
    X(vkEndCommandBuffer)                                                                          \
    X(vkCmdBindPipeline)                                                                           \
    X(vkCmdPushConstants)                                                                          \
    X(vkCmdDispatch)                                                                               \
    X(vkCmdCopyBuffer)                                                                             \
    X(vkCmdFillBuffer)                                                                             \
    X(vkCmdPipelineBarrier)                                                                        \
    X(vkCmdResetQueryPool)                                                                         \
    X(vkCmdWriteTimestamp)

#define MRL_VK_MEMBER(name) PFN_##name name;
typedef struct mrl_vk_global_table {
    PFN_vkGetInstanceProcAddr vkGetInstanceProcAddr;
    MRL_VK_GLOBAL_FUNCTIONS(MRL_VK_MEMBER, MRL_VK_MEMBER)
} mrl_vk_global_table;

typedef struct mrl_vk_instance_table {
    VkInstance handle;
    uint32_t api_version; /* what the instance was made for: 1.2 or 1.3; a device may have less */
    MRL_VK_INSTANCE_FUNCTIONS(MRL_VK_MEMBER, MRL_VK_MEMBER)
} mrl_vk_instance_table;

typedef struct mrl_vk_device_table {
    MRL_VK_DEVICE_FUNCTIONS(MRL_VK_MEMBER, MRL_VK_MEMBER)
} mrl_vk_device_table;
#undef MRL_VK_MEMBER

/* Filled by mrl_vk_open, constant in a process afterwards. */
extern mrl_vk_global_table mrl_vk_global;
extern mrl_vk_instance_table mrl_vk_instance;

/* "Install ..." for error texts about a missing driver; no full stop. */
extern const char mrl_vk_remedy[];

/* Loads the library and creates the instance, once a process (a forked child makes its own); later
 * calls return at once. Any thread may call it, and after a failure it may be called again.
 * MRL_ERR_DEVICE: no loader, no driver, or older than Vulkan 1.2. */
mrl_status mrl_vk_open(mrl_error *err);

/* "": or, in a process forked from one that had the instance open, what an error about a device should end with. */
const char *mrl_vk_fork_remedy(void);

/* Fills a device's table. MRL_ERR_DEVICE names the first function that the driver lacks. */
mrl_status mrl_vk_device_table_load(VkDevice device, mrl_vk_device_table *table, mrl_error *err);

/* MRL_OK for success and for the codes that are answers (VK_TIMEOUT, VK_NOT_READY, VK_INCOMPLETE);
 * otherwise fills err with "what: VK_ERROR_...: meaning". */
mrl_status mrl_vk_check(VkResult result, const char *what, mrl_error *err);

/* Asks for validation: the Khronos layer with synchronization checks where it is installed, and its
 * messages kept. Must come before the first mrl_vk_open; returns 0 (and changes nothing) where the
 * instance is open. */
int mrl_vk_set_debug(int on);

/* Warnings and errors seen since the instance was made. n > 0: buf gets as many whole texts of the
 * last ones as fit, oldest first, a line each, NUL-terminated. Any thread; nothing is cleared. */
uint64_t mrl_vk_debug_messages(char *buf, size_t n);

#endif
