#include "vk/loader.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/lock.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif
#include <unistd.h>

mrl_vk_global_table mrl_vk_global;
mrl_vk_instance_table mrl_vk_instance;

#if defined(_WIN32)
const char mrl_vk_remedy[] = "install the GPU maker's driver, which brings vulkan-1.dll";
static const char *const library_names[] = {"vulkan-1.dll"};
#elif defined(__APPLE__)
const char mrl_vk_remedy[] = "install the Vulkan loader and MoltenVK";
static const char *const library_names[] = {"libvulkan.1.dylib", "libvulkan.dylib",
                                            "libMoltenVK.dylib"};
#else
const char mrl_vk_remedy[] =
    "install libvulkan1 and either the GPU's driver or mesa-vulkan-drivers";
static const char *const library_names[] = {"libvulkan.so.1", "libvulkan.so"};
#endif

static mrl_lock open_lock = PTHREAD_MUTEX_INITIALIZER;
static int instance_is_open, debug_wanted;
static atomic_bool instance_was_inherited;
static pid_t instance_pid;

/* ---- results ---- */

static const struct result_row {
    VkResult result;
    mrl_status status;
    const char *name, *meaning;
} result_rows[] = {
#define ROW(name, status, meaning)                                                                 \
    {                                                                                              \
        name, status, #name, meaning                                                               \
    }
    ROW(VK_SUCCESS, MRL_OK, ""),
    ROW(VK_NOT_READY, MRL_OK, ""),
    ROW(VK_TIMEOUT, MRL_OK, ""),
    ROW(VK_EVENT_SET, MRL_OK, ""),
    ROW(VK_EVENT_RESET, MRL_OK, ""),
    ROW(VK_INCOMPLETE, MRL_OK, ""),
    ROW(VK_PIPELINE_COMPILE_REQUIRED, MRL_OK, ""),
    ROW(VK_ERROR_OUT_OF_HOST_MEMORY, MRL_ERR_MEMORY, "the host is out of memory"),
    ROW(VK_ERROR_OUT_OF_DEVICE_MEMORY, MRL_ERR_DEVICE_MEMORY, "the device is out of memory"),
    ROW(VK_ERROR_INITIALIZATION_FAILED, MRL_ERR_DEVICE, "the driver could not start"),
    ROW(VK_ERROR_DEVICE_LOST, MRL_ERR_DEVICE_LOST, "the device was reset, timed out or went away"),
    ROW(VK_ERROR_MEMORY_MAP_FAILED, MRL_ERR_MEMORY, "device memory could not be mapped"),
    ROW(VK_ERROR_LAYER_NOT_PRESENT, MRL_ERR_DEVICE, "a layer is not installed"),
    ROW(VK_ERROR_EXTENSION_NOT_PRESENT, MRL_ERR_DEVICE, "an extension is not supported"),
    ROW(VK_ERROR_FEATURE_NOT_PRESENT, MRL_ERR_DEVICE, "a feature is not supported"),
    ROW(VK_ERROR_INCOMPATIBLE_DRIVER, MRL_ERR_DEVICE, "no driver fits"),
    ROW(VK_ERROR_TOO_MANY_OBJECTS, MRL_ERR_DEVICE_MEMORY, "too many objects of one kind"),
    ROW(VK_ERROR_FORMAT_NOT_SUPPORTED, MRL_ERR_DEVICE, "a format is not supported"),
    ROW(VK_ERROR_FRAGMENTED_POOL, MRL_ERR_DEVICE_MEMORY, "a pool is fragmented"),
    ROW(VK_ERROR_UNKNOWN, MRL_ERR_DEVICE, "the driver gave no reason"),
    ROW(VK_ERROR_VALIDATION_FAILED_EXT, MRL_ERR_DEVICE, "a validation layer refused the call"),
    ROW(VK_ERROR_OUT_OF_POOL_MEMORY, MRL_ERR_DEVICE_MEMORY, "a pool is full"),
    ROW(VK_ERROR_INVALID_EXTERNAL_HANDLE, MRL_ERR_DEVICE, "host memory could not be imported"),
    ROW(VK_ERROR_FRAGMENTATION, MRL_ERR_DEVICE_MEMORY, "device memory is fragmented"),
    ROW(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS, MRL_ERR_DEVICE, "an address is taken"),
#undef ROW
};

static const struct result_row *result_row_find(VkResult result)
{
    for (size_t i = 0; i < sizeof(result_rows) / sizeof(result_rows[0]); i++)
        if (result_rows[i].result == result)
            return &result_rows[i];
    return NULL;
}

mrl_status mrl_vk_check(VkResult result, const char *what, mrl_error *err)
{
    if (result >= 0)
        return MRL_OK;
    const struct result_row *row = result_row_find(result);
    if (row == NULL)
        return mrl_fail(err, MRL_ERR_DEVICE, "%s: VkResult %d", what, (int)result);
    return mrl_fail(err, row->status, "%s: %s: %s", what, row->name, row->meaning);
}

/* ---- validation messages ---- */

enum { RING_TEXTS = 32, RING_TEXT_BYTES = 1024 };

static struct {
    mrl_lock lock;
    uint64_t count; /* text i lies in slot i % RING_TEXTS */
    char texts[RING_TEXTS][RING_TEXT_BYTES];
} ring = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Called by the layer on whichever thread made the faulty call. */
static VkBool32 messenger_take(int32_t severity, VkFlags types,
                               const VkDebugUtilsMessengerCallbackDataEXT *data, void *user)
{
    (void)types;
    (void)user;
    mrl_lock_acquire(&ring.lock);
    char *text = ring.texts[ring.count++ % RING_TEXTS];
    snprintf(text, RING_TEXT_BYTES, "%s: %s",
             severity & VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT ? "error" : "warning",
             data->pMessage ? data->pMessage : "");
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ' ';
    mrl_lock_release(&ring.lock);
    return VK_FALSE; /* let the call go on */
}

uint64_t mrl_vk_debug_messages(char *buf, size_t n)
{
    mrl_lock_acquire(&ring.lock);
    uint64_t count = ring.count, first = count;
    size_t used = 0;
    /* Newest first while they fit, so that a small buffer holds the last texts. */
    while (n > 0 && first > 0 && count - first < RING_TEXTS) {
        size_t length = strlen(ring.texts[(first - 1) % RING_TEXTS]) + 1;
        if (used + length > n - 1)
            break;
        used += length;
        first--;
    }
    if (n > 0) {
        char *to = buf;
        for (; first < count; first++) {
            size_t length = strlen(ring.texts[first % RING_TEXTS]);
            memcpy(to, ring.texts[first % RING_TEXTS], length);
            to[length] = '\n';
            to += length + 1;
        }
        *to = '\0';
    }
    mrl_lock_release(&ring.lock);
    return count;
}

int mrl_vk_set_debug(int on)
{
    mrl_lock_acquire(&open_lock);
    int changes = !instance_is_open;
    if (changes)
        debug_wanted = on != 0;
    mrl_lock_release(&open_lock);
    return changes;
}

/* ---- tables ---- */

/* A required function that is missing leaves its name here; the others are still looked up. */
#define LOAD_REQUIRED(name)                                                                        \
    table->name = (PFN_##name)GET(name);                                                           \
    if (table->name == NULL && missing == NULL)                                                    \
        missing = #name;
#define LOAD_OPTIONAL(name) table->name = (PFN_##name)GET(name);

static const char *global_table_load(mrl_vk_global_table *table)
{
    const char *missing = NULL;
#define GET(name) table->vkGetInstanceProcAddr(NULL, #name)
    MRL_VK_GLOBAL_FUNCTIONS(LOAD_REQUIRED, LOAD_OPTIONAL)
#undef GET
    return missing;
}

static const char *instance_table_load(mrl_vk_instance_table *table)
{
    const char *missing = NULL;
#define GET(name) mrl_vk_global.vkGetInstanceProcAddr(table->handle, #name)
    MRL_VK_INSTANCE_FUNCTIONS(LOAD_REQUIRED, LOAD_OPTIONAL)
#undef GET
    return missing;
}

mrl_status mrl_vk_device_table_load(VkDevice device, mrl_vk_device_table *table, mrl_error *err)
{
    const char *missing = NULL;
#define GET(name) mrl_vk_instance.vkGetDeviceProcAddr(device, #name)
    MRL_VK_DEVICE_FUNCTIONS(LOAD_REQUIRED, LOAD_OPTIONAL)
#undef GET
    if (missing)
        return mrl_fail(err, MRL_ERR_DEVICE, "the Vulkan driver has no %s; update the GPU's driver",
                        missing);
    return MRL_OK;
}

/* ---- library ---- */

/* The library is never closed: drivers leave threads and exit handlers behind. */
static PFN_vkGetInstanceProcAddr library_open(void)
{
    for (size_t i = 0; i < sizeof(library_names) / sizeof(library_names[0]); i++) {
#ifdef _WIN32
        HMODULE library = LoadLibraryA(library_names[i]);
        if (library)
            return (PFN_vkGetInstanceProcAddr)(void (*)(void))GetProcAddress(
                library, "vkGetInstanceProcAddr");
#else
        void *library = dlopen(library_names[i], RTLD_NOW | RTLD_LOCAL);
        if (library) {
            /* POSIX gives the function as a data pointer, which ISO C cannot cast. */
            void *symbol = dlsym(library, "vkGetInstanceProcAddr");
            PFN_vkGetInstanceProcAddr get;
            memcpy(&get, &symbol, sizeof(get));
            return get;
        }
#endif
    }
    return NULL;
}

/* ---- instance ---- */

static int has_extension(const char *layer, const char *name)
{
    uint32_t n = 0;
    int found = 0;
    VkExtensionProperties *list;

    if (mrl_vk_global.vkEnumerateInstanceExtensionProperties(layer, &n, NULL) != VK_SUCCESS ||
        n == 0)
        return 0;
    list = calloc(n, sizeof(*list));
    if (list && mrl_vk_global.vkEnumerateInstanceExtensionProperties(layer, &n, list) >= 0)
        for (uint32_t i = 0; i < n && !found; i++)
            found = strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

static int has_layer(const char *name)
{
    uint32_t n = 0;
    int found = 0;
    VkLayerProperties *list;

    if (mrl_vk_global.vkEnumerateInstanceLayerProperties(&n, NULL) != VK_SUCCESS || n == 0)
        return 0;
    list = calloc(n, sizeof(*list));
    if (list && mrl_vk_global.vkEnumerateInstanceLayerProperties(&n, list) >= 0)
        for (uint32_t i = 0; i < n && !found; i++)
            found = strcmp(list[i].layerName, name) == 0;
    free(list);
    return found;
}

/* Creates the instance for mrl_vk_instance.api_version, with messenger and layer where asked for,
 * and fills the table. *missing: a required function that the loader lacks. */
static VkResult instance_create(const char **missing)
{
    static const char layer[] = "VK_LAYER_KHRONOS_validation";
    static const VkValidationFeatureEnableEXT checks[] = {
        VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT,
    };
    const char *layers[1], *extensions[3];
    VkDebugUtilsMessengerCreateInfoEXT messenger = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT |
                       VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                       VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = messenger_take,
    };
    VkValidationFeaturesEXT validation = {
        .sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
        .enabledValidationFeatureCount = 1,
        .pEnabledValidationFeatures = checks,
    };
    VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
        .pApplicationName = "marlin",
        .pEngineName = "marlin",
        .apiVersion = mrl_vk_instance.api_version,
    };
    VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pApplicationInfo = &application,
        .ppEnabledLayerNames = layers,
        .ppEnabledExtensionNames = extensions,
    };

    if (has_extension(NULL, VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {
        extensions[info.enabledExtensionCount++] = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
        info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
    }
    int layer_is_on = debug_wanted && has_layer(layer);
    int messages =
        debug_wanted && (has_extension(NULL, VK_EXT_DEBUG_UTILS_EXTENSION_NAME) ||
                         (layer_is_on && has_extension(layer, VK_EXT_DEBUG_UTILS_EXTENSION_NAME)));
    if (messages) {
        extensions[info.enabledExtensionCount++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
        info.pNext =
            &messenger; /* covers creation; the messenger made afterwards covers the rest */
    }
    if (layer_is_on) {
        layers[info.enabledLayerCount++] = layer;
        if (has_extension(layer, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME)) {
            extensions[info.enabledExtensionCount++] = VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME;
            validation.pNext = info.pNext;
            info.pNext = &validation;
        }
    }

    VkResult result = mrl_vk_global.vkCreateInstance(&info, NULL, &mrl_vk_instance.handle);
    if (result != VK_SUCCESS)
        return result;
    *missing = instance_table_load(&mrl_vk_instance);
    VkDebugUtilsMessengerEXT unused; /* the messenger lives as long as the instance */
    if (*missing == NULL && messages && mrl_vk_instance.vkCreateDebugUtilsMessengerEXT)
        result = mrl_vk_instance.vkCreateDebugUtilsMessengerEXT(mrl_vk_instance.handle, &messenger,
                                                                NULL, &unused);
    return result;
}

static mrl_status open_locked(mrl_error *err)
{
    if (mrl_vk_global.vkGetInstanceProcAddr == NULL) {
        PFN_vkGetInstanceProcAddr get = library_open();
        if (get == NULL)
            return mrl_fail(err, MRL_ERR_DEVICE, "no Vulkan loader (%s): %s", library_names[0],
                            mrl_vk_remedy);
        mrl_vk_global.vkGetInstanceProcAddr = get;
    }

    const char *missing = global_table_load(&mrl_vk_global);
    uint32_t version = VK_API_VERSION_1_0; /* a 1.0 loader has no vkEnumerateInstanceVersion */
    if (mrl_vk_global.vkEnumerateInstanceVersion)
        mrl_vk_global.vkEnumerateInstanceVersion(&version);
    if (missing || version < VK_API_VERSION_1_2)
        return mrl_fail(
            err, MRL_ERR_DEVICE, "the Vulkan loader is version %u.%u, 1.2 is needed: update it",
            (unsigned)VK_API_VERSION_MAJOR(version), (unsigned)VK_API_VERSION_MINOR(version));
    mrl_vk_instance.api_version =
        version < VK_API_VERSION_1_3 ? VK_API_VERSION_1_2 : VK_API_VERSION_1_3;

    VkResult result = instance_create(&missing);
    if (result == VK_ERROR_INCOMPATIBLE_DRIVER)
        return mrl_fail(err, MRL_ERR_DEVICE, "no Vulkan driver found: %s", mrl_vk_remedy);
    if (result == VK_SUCCESS && missing == NULL) {
        instance_is_open = 1;
        instance_pid = getpid();
        return MRL_OK;
    }
    if (mrl_vk_instance.handle && mrl_vk_instance.vkDestroyInstance)
        mrl_vk_instance.vkDestroyInstance(mrl_vk_instance.handle, NULL);
    mrl_vk_instance = (mrl_vk_instance_table){0};
    if (missing)
        return mrl_fail(err, MRL_ERR_DEVICE, "the Vulkan loader has no %s: update it", missing);
    return mrl_vk_check(result, "vkCreateInstance", err);
}

mrl_status mrl_vk_open(mrl_error *err)
{
    mrl_lock_acquire(&open_lock);
    /* A forked child has the parent's instance without its driver's threads, and would wait for them: it forgets it. */
    if (instance_is_open && instance_pid != getpid()) {
        mrl_vk_instance = (mrl_vk_instance_table){0};
        instance_is_open = 0;
        atomic_store(&instance_was_inherited, true);
    }
    mrl_status status = instance_is_open ? MRL_OK : open_locked(err);
    mrl_lock_release(&open_lock);
    return status;
}

const char *mrl_vk_fork_remedy(void)
{
    return !atomic_load(&instance_was_inherited)
               ? ""
               : "; this process was forked from one that had Vulkan open, which not every driver survives: start "
                 "children with multiprocessing's spawn method";
}
