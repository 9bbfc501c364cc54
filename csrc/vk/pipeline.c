#include "vk/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- shaders.bin (tools/shaderc.py writes it and describes it) ---- */

typedef struct shader_header {
    char magic[8];
    uint32_t count, build_hash;
} shader_header;

typedef struct shader_entry {
    char name[64];
    uint64_t offset, bytes, source_hash;
    uint32_t needs, spirv_version;
} shader_entry;

_Static_assert(sizeof(shader_header) == 16 && sizeof(shader_entry) == 96, "layout of shaders.bin");

static const char *const kernel_names[] = {
#define KERNEL(name, source, variants, needs) #name,
#include "kernels.def"
#undef KERNEL
};

static const char *const format_names[] = {
#define FORMAT(name, bits, math, scale, zero, default_group, text) #name,
#include "formats.def"
#undef FORMAT
};

const char *mrl_kernel_name(mrl_kernel kernel) { return kernel_names[kernel]; }

#define MATHS 3
#define MODULES (MRL_KERNEL_COUNT * (MRL_FORMAT_COUNT + 1) * MATHS)

static int module_index(mrl_kernel kernel, mrl_format format, mrl_math math)
{
    return ((int)kernel * (MRL_FORMAT_COUNT + 1) + (int)format + 1) * MATHS + (int)math;
}

struct mrl_pipeline {
    VkPipeline handle;  /* null: not compiled yet, or the driver failed to */
    bool building;      /* by some thread, which holds no lock meanwhile */
    bool queued;        /* for a compiler thread */
    mrl_pipeline *next; /* in the queue */
    uint32_t module;
    int nspec;
    uint32_t spec[MRL_MAX_SPEC];
    char name[96];
};

#define COMPILER_THREADS 16

struct mrl_pipelines {
    mrl_lock lock;
    pthread_cond_t built;                /* some pipeline is no longer `building` */
    uint8_t *file;                       /* shaders.bin */
    uint64_t file_bytes;
    const shader_entry *entry[MODULES];  /* NULL: not in the file */
    VkShaderModule module[MODULES];
    mrl_pipeline **table;                /* open addressing, a power of two */
    size_t capacity, count, compiled;
    VkPipelineCache cache;
    char cache_path[1024];               /* empty: none */
    size_t saved;                        /* `compiled` when the cache was last written */
    mrl_pipeline *first, **last;         /* the queue of the compiler threads */
    pthread_cond_t queued;               /* something is in it, or the threads shall end */
    pthread_t thread[COMPILER_THREADS];
    int nthreads, idle;
    bool ending;
};

static mrl_status read_file(const char *path, uint8_t **out, uint64_t *bytes, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    struct stat info;
    uint8_t *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &info) != 0) {
        rc = mrl_fail(err, MRL_ERR_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    *bytes = (uint64_t)info.st_size;
    if ((data = malloc(*bytes + 1)) == NULL) {
        rc = mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        goto done;
    }
    for (uint64_t got = 0; got < *bytes;) {
        ssize_t n = read(fd, data + got, *bytes - got);
        if (n <= 0) {
            rc = mrl_fail(err, MRL_ERR_IO, "%s: short read", path);
            goto done;
        }
        got += (uint64_t)n;
    }
    *out = data;
    data = NULL;
done:
    free(data);
    if (fd >= 0)
        close(fd);
    return rc;
}

static void module_name(mrl_kernel kernel, mrl_format format, mrl_math math, char *text, size_t size)
{
    static const char *const suffix[MATHS] = {"", ".f32", ".f16"};
    snprintf(text, size, "%s%s%s%s", kernel_names[kernel], format == MRL_FORMAT_NONE ? "" : ".",
             format == MRL_FORMAT_NONE ? "" : format_names[format], suffix[math]);
}

static const shader_entry *find_entry(const shader_entry *entries, uint32_t count, const char *name)
{
    uint32_t low = 0, high = count; /* sorted by name */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strncmp(entries[middle].name, name, sizeof entries->name);
        if (order == 0)
            return &entries[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static mrl_status index_shaders(mrl_pipelines *pipelines, const char *path, mrl_error *err)
{
    const shader_header *header = (const shader_header *)(const void *)pipelines->file;
    const shader_entry *entries = (const shader_entry *)(const void *)(pipelines->file + sizeof *header);

    if (pipelines->file_bytes < sizeof *header || memcmp(header->magic, "MRLSHDR1", 8) != 0 ||
        header->count > (pipelines->file_bytes - sizeof *header) / sizeof *entries)
        return mrl_fail(err, MRL_ERR_FORMAT, "%s is not a shader file of this version; reinstall marlin", path);
    for (uint32_t i = 0; i < header->count; i++) {
        uint64_t end;
        if (!mrl_add_u64(entries[i].offset, entries[i].bytes, &end) || end > pipelines->file_bytes ||
            entries[i].offset % 4 != 0 || entries[i].bytes % 4 != 0 || entries[i].bytes == 0 ||
            memchr(entries[i].name, 0, sizeof entries->name) == NULL)
            return mrl_fail(err, MRL_ERR_FORMAT, "%s: module %u is damaged; reinstall marlin", path, i);
    }
    for (int k = 0; k < MRL_KERNEL_COUNT; k++)
        for (int f = MRL_FORMAT_NONE; f < MRL_FORMAT_COUNT; f++)
            for (int m = 0; m < MATHS; m++) {
                char name[96];
                module_name((mrl_kernel)k, (mrl_format)f, (mrl_math)m, name, sizeof name);
                pipelines->entry[module_index((mrl_kernel)k, (mrl_format)f, (mrl_math)m)] =
                    find_entry(entries, header->count, name);
            }
    return MRL_OK;
}

/* ---- the driver's cache, with a header of our own so that damaged files never reach the driver ---- */

typedef struct cache_header {
    char magic[8];
    uint8_t device_uuid[16], driver_uuid[16];
    uint32_t driver_version, build_hash;
    uint64_t bytes, checksum;
} cache_header;

static uint64_t fnv1a(const void *data, uint64_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (uint64_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3ull;
    return hash;
}

static cache_header cache_header_of(const mrl_device *dev)
{
    cache_header header = {.driver_version = dev->info.driver_version,
                           .build_hash = ((const shader_header *)(const void *)dev->pipelines->file)->build_hash};
    memcpy(header.magic, "MRLPIPE1", 8);
    memcpy(header.device_uuid, dev->info.uuid, 16);
    memcpy(header.driver_uuid, dev->info.driver_uuid, 16);
    return header;
}

static bool cache_valid(const mrl_device *dev, const uint8_t *data, uint64_t bytes)
{
    cache_header want = cache_header_of(dev), got;
    if (bytes < sizeof got)
        return false;
    memcpy(&got, data, sizeof got);
    want.bytes = bytes - sizeof got;
    want.checksum = fnv1a(data + sizeof got, want.bytes);
    return memcmp(&want, &got, sizeof got) == 0;
}

static mrl_status cache_open(mrl_device *dev, const char *folder, mrl_error *err)
{
    mrl_pipelines *pipelines = dev->pipelines;
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    uint8_t *data = NULL;
    uint64_t bytes = 0;

    if (folder != NULL) {
        char hex[33];
        for (int i = 0; i < 16; i++)
            snprintf(hex + 2 * i, 3, "%02x", dev->info.uuid[i]);
        int n = snprintf(pipelines->cache_path, sizeof pipelines->cache_path, "%s/pipelines-%s-%08x.bin", folder,
                         hex, dev->info.driver_version);
        if (n < 0 || (size_t)n + 8 >= sizeof pipelines->cache_path)
            pipelines->cache_path[0] = 0;
        else if (read_file(pipelines->cache_path, &data, &bytes, NULL) == MRL_OK && cache_valid(dev, data, bytes)) {
            info.initialDataSize = bytes - sizeof(cache_header);
            info.pInitialData = data + sizeof(cache_header);
        }
    }
    mrl_status rc = mrl_device_result(
        dev, dev->vk.vkCreatePipelineCache(dev->handle, &info, NULL, &pipelines->cache), "vkCreatePipelineCache",
        err);
    free(data);
    return rc;
}

static mrl_status write_file(const char *path, const cache_header *header, const void *data, mrl_error *err)
{
    static atomic_uint count; /* devices of one process may write at the same time */
    char temporary[1088];
    snprintf(temporary, sizeof temporary, "%s.%d.%u", path, (int)getpid(), atomic_fetch_add(&count, 1));
    FILE *file = fopen(temporary, "wb");
    bool ok = file != NULL && fwrite(header, sizeof *header, 1, file) == 1 &&
              fwrite(data, 1, header->bytes, file) == header->bytes;
    if (file != NULL)
        ok = fclose(file) == 0 && ok;
    if (!ok || rename(temporary, path) != 0) {
        unlink(temporary);
        return mrl_fail(err, MRL_ERR_IO, "%s: %s", path, strerror(errno));
    }
    return MRL_OK;
}

mrl_status mrl_pipeline_save_cache(mrl_device *dev, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    mrl_pipelines *pipelines = dev->pipelines;
    void *data = NULL;
    size_t bytes = 0;

    if (mrl_device_forked(dev))
        return mrl_device_check(dev, err); /* another thread may have had the lock */
    mrl_lock_acquire(&pipelines->lock);
    if (pipelines->cache_path[0] == 0 || pipelines->compiled == pipelines->saved)
        goto done;
    MRL_TRY(mrl_device_check(dev, err));
    MRL_TRY(mrl_device_result(dev, dev->vk.vkGetPipelineCacheData(dev->handle, pipelines->cache, &bytes, NULL),
                              "vkGetPipelineCacheData", err));
    if ((data = malloc(bytes + 1)) == NULL) {
        rc = mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        goto done;
    }
    MRL_TRY(mrl_device_result(dev, dev->vk.vkGetPipelineCacheData(dev->handle, pipelines->cache, &bytes, data),
                              "vkGetPipelineCacheData", err));
    cache_header header = cache_header_of(dev);
    header.bytes = bytes;
    header.checksum = fnv1a(data, bytes);
    MRL_TRY(write_file(pipelines->cache_path, &header, data, err));
    pipelines->saved = pipelines->compiled;
done:
    mrl_lock_release(&pipelines->lock);
    free(data);
    return rc;
}

/* ---- life ---- */

mrl_status mrl_pipelines_create(mrl_device *dev, const char *shaders, const char *cache, mrl_error *err)
{
    mrl_status rc;
    mrl_pipelines *pipelines = calloc(1, sizeof *pipelines);

    if (pipelines == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    dev->pipelines = pipelines;
    mrl_lock_init(&pipelines->lock);
    pthread_cond_init(&pipelines->built, NULL);
    pthread_cond_init(&pipelines->queued, NULL);
    pipelines->last = &pipelines->first;
    pipelines->capacity = 256;
    pipelines->table = calloc(pipelines->capacity, sizeof *pipelines->table);
    if (pipelines->table == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    MRL_TRY(read_file(shaders, &pipelines->file, &pipelines->file_bytes, err));
    MRL_TRY(index_shaders(pipelines, shaders, err));
    MRL_TRY(cache_open(dev, cache, err));
done:
    return rc;
}

static void end_threads(mrl_pipelines *pipelines)
{
    mrl_lock_acquire(&pipelines->lock);
    pipelines->ending = true;
    pthread_cond_broadcast(&pipelines->queued);
    mrl_lock_release(&pipelines->lock);
    for (int i = 0; i < pipelines->nthreads; i++)
        pthread_join(pipelines->thread[i], NULL);
}

void mrl_pipelines_destroy(mrl_device *dev)
{
    mrl_pipelines *pipelines = dev->pipelines;
    if (pipelines == NULL)
        return;
    end_threads(pipelines);
    for (size_t i = 0; i < pipelines->capacity && pipelines->table != NULL; i++)
        if (pipelines->table[i] != NULL) {
            dev->vk.vkDestroyPipeline(dev->handle, pipelines->table[i]->handle, NULL);
            free(pipelines->table[i]);
        }
    for (int i = 0; i < MODULES; i++)
        if (pipelines->module[i] != VK_NULL_HANDLE)
            dev->vk.vkDestroyShaderModule(dev->handle, pipelines->module[i], NULL);
    if (pipelines->cache != VK_NULL_HANDLE)
        dev->vk.vkDestroyPipelineCache(dev->handle, pipelines->cache, NULL);
    free(pipelines->table);
    free(pipelines->file);
    pthread_cond_destroy(&pipelines->built);
    pthread_cond_destroy(&pipelines->queued);
    mrl_lock_destroy(&pipelines->lock);
    free(pipelines);
    dev->pipelines = NULL;
}

/* ---- lookup and creation ---- */

bool mrl_pipeline_available(mrl_device *dev, mrl_kernel kernel, mrl_format format, mrl_math math)
{
    const shader_entry *entry = dev->pipelines->entry[module_index(kernel, format, math)];
    return entry != NULL && (entry->needs & dev->info.features) == entry->needs;
}

static uint64_t key_hash(uint32_t module, const uint32_t *spec, int nspec)
{
    uint64_t hash = 0x9e3779b97f4a7c15ull ^ module;
    for (int i = 0; i < nspec; i++) {
        hash = (hash ^ spec[i]) * 0xff51afd7ed558ccdull;
        hash ^= hash >> 32;
    }
    return hash;
}

static size_t find_slot(mrl_pipeline **table, size_t capacity, uint32_t module, const uint32_t *spec, int nspec)
{
    size_t at = key_hash(module, spec, nspec) & (capacity - 1);
    while (table[at] != NULL &&
           (table[at]->module != module || table[at]->nspec != nspec ||
            memcmp(table[at]->spec, spec, (size_t)nspec * sizeof *spec) != 0))
        at = (at + 1) & (capacity - 1);
    return at;
}

static mrl_status table_grow(mrl_pipelines *pipelines, mrl_error *err)
{
    if (2 * (pipelines->count + 1) <= pipelines->capacity)
        return MRL_OK;
    size_t capacity = 2 * pipelines->capacity;
    mrl_pipeline **table = calloc(capacity, sizeof *table);
    if (table == NULL)
        return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
    for (size_t i = 0; i < pipelines->capacity; i++)
        if (pipelines->table[i] != NULL) {
            mrl_pipeline *p = pipelines->table[i];
            table[find_slot(table, capacity, p->module, p->spec, p->nspec)] = p;
        }
    free(pipelines->table);
    pipelines->table = table;
    pipelines->capacity = capacity;
    return MRL_OK;
}

static mrl_status missing_module(const mrl_device *dev, const char *name, const shader_entry *entry, mrl_error *err)
{
    char lacks[160] = "";
    if (entry == NULL)
        return mrl_fail(err, MRL_ERR_DEVICE,
                        "kernel %s is not in shaders.bin: the shader compiler of this build could not compile it "
                        "(marlin doctor lists such kernels)", name);
    for (int i = 0; i < MRL_FEATURE_COUNT; i++)
        if (entry->needs & ~dev->info.features & (1u << i)) {
            size_t used = strlen(lacks);
            snprintf(lacks + used, sizeof lacks - used, used ? ", %s" : "%s", mrl_feature_name(i));
        }
    return mrl_fail(err, MRL_ERR_DEVICE, "kernel %s needs %s, which %s lacks or which was disabled", name, lacks,
                    dev->info.name);
}

static void pipeline_text(mrl_pipeline *pipeline, const char *module)
{
    size_t used = (size_t)snprintf(pipeline->name, sizeof pipeline->name, "%s", module);
    for (int i = 0; i < pipeline->nspec && used < sizeof pipeline->name; i++)
        used += (size_t)snprintf(pipeline->name + used, sizeof pipeline->name - used, i == 0 ? "[%u" : ",%u",
                                 pipeline->spec[i]);
    if (used + 1 < sizeof pipeline->name)
        snprintf(pipeline->name + used, sizeof pipeline->name - used, "]");
}

static mrl_status module_locked(mrl_device *dev, uint32_t index, const shader_entry *entry, mrl_error *err)
{
    mrl_pipelines *pipelines = dev->pipelines;
    VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = entry->bytes,
        .pCode = (const uint32_t *)(const void *)(pipelines->file + entry->offset)};

    if (pipelines->module[index] != VK_NULL_HANDLE)
        return MRL_OK;
    return mrl_device_result(dev, dev->vk.vkCreateShaderModule(dev->handle, &code, NULL, &pipelines->module[index]),
                             "vkCreateShaderModule", err);
}

/* Without the lock: drivers compile in as many threads as ask them to, and one pipeline may take a second. */
static mrl_status compile(mrl_device *dev, const mrl_pipeline *pipeline, const char *name, VkPipeline *handle,
                          mrl_error *err)
{
    VkSpecializationMapEntry map[MRL_MAX_SPEC];
    VkSpecializationInfo spec = {(uint32_t)pipeline->nspec, map, (size_t)pipeline->nspec * 4, pipeline->spec};
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .layout = dev->layout};

    for (int i = 0; i < pipeline->nspec; i++)
        map[i] = (VkSpecializationMapEntry){(uint32_t)i, (uint32_t)i * 4, 4};
    info.stage = (VkPipelineShaderStageCreateInfo){.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                   .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                   .module = dev->pipelines->module[pipeline->module],
                                                   .pName = "main",
                                                   .pSpecializationInfo = &spec};
    return mrl_device_result(dev, dev->vk.vkCreateComputePipelines(dev->handle, dev->pipelines->cache, 1, &info, NULL,
                                                                   handle), name, err);
}

/* The entry of a key, added when it is new. */
static mrl_status entry_locked(mrl_pipelines *pipelines, uint32_t module, const uint32_t *spec, int nspec,
                               mrl_pipeline **out, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    size_t slot = find_slot(pipelines->table, pipelines->capacity, module, spec, nspec);

    if (pipelines->table[slot] == NULL) {
        MRL_TRY(table_grow(pipelines, err));
        mrl_pipeline *made = calloc(1, sizeof *made);
        if (made == NULL)
            return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        made->module = module;
        made->nspec = nspec;
        memcpy(made->spec, spec, (size_t)nspec * sizeof *spec);
        pipeline_text(made, pipelines->entry[module]->name);
        slot = find_slot(pipelines->table, pipelines->capacity, module, spec, nspec);
        pipelines->table[slot] = made;
        pipelines->count++;
    }
    *out = pipelines->table[slot];
done:
    return rc;
}

/* Compiles a pipeline that nobody else does; the lock is let go meanwhile. */
static mrl_status build_locked(mrl_device *dev, mrl_pipeline *pipeline, mrl_error *err)
{
    mrl_status rc;
    mrl_pipelines *pipelines = dev->pipelines;
    const shader_entry *entry = pipelines->entry[pipeline->module];
    VkPipeline handle = VK_NULL_HANDLE;

    MRL_TRY(module_locked(dev, pipeline->module, entry, err));
    pipeline->building = true;
    mrl_lock_release(&pipelines->lock);
    rc = compile(dev, pipeline, entry->name, &handle, err);
    mrl_lock_acquire(&pipelines->lock);
    pipeline->building = false;
    pipeline->handle = rc == MRL_OK ? handle : VK_NULL_HANDLE;
    pipelines->compiled += rc == MRL_OK;
    pthread_cond_broadcast(&pipelines->built);
done:
    return rc;
}

static mrl_status wait_built_locked(mrl_device *dev, mrl_pipeline *pipeline, mrl_error *err)
{
    while (pipeline->building)
        pthread_cond_wait(&dev->pipelines->built, &dev->pipelines->lock);
    return pipeline->handle != VK_NULL_HANDLE ? MRL_OK : build_locked(dev, pipeline, err);
}

/* ---- compiler threads: what a capture needs is compiled while it goes on ---- */

static mrl_pipeline *take_locked(mrl_pipelines *pipelines)
{
    mrl_pipeline *pipeline = pipelines->first;
    if (pipeline != NULL) {
        if ((pipelines->first = pipeline->next) == NULL)
            pipelines->last = &pipelines->first;
        pipeline->queued = false;
    }
    return pipeline;
}

static void *compiler(void *argument)
{
    mrl_device *dev = argument;
    mrl_pipelines *pipelines = dev->pipelines;

    mrl_lock_acquire(&pipelines->lock);
    while (!pipelines->ending) {
        mrl_pipeline *pipeline = take_locked(pipelines);
        if (pipeline == NULL) {
            pipelines->idle++;
            pthread_cond_broadcast(&pipelines->built); /* for who lets threads settle */
            pthread_cond_wait(&pipelines->queued, &pipelines->lock);
            pipelines->idle--;
        } else if (!pipeline->building && pipeline->handle == VK_NULL_HANDLE) {
            build_locked(dev, pipeline, NULL); /* who waits for it tries once more and tells why it fails */
        }
    }
    mrl_lock_release(&pipelines->lock);
    return NULL;
}

/* Leaves the pipeline to a compiler thread, of which there is one for each processor if need be. */
static void queue_locked(mrl_device *dev, mrl_pipeline *pipeline)
{
    mrl_pipelines *pipelines = dev->pipelines;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int most = processors < 1 ? 1 : processors > COMPILER_THREADS ? COMPILER_THREADS : (int)processors;

    if (pipelines->idle == 0 && pipelines->nthreads < most &&
        pthread_create(&pipelines->thread[pipelines->nthreads], NULL, compiler, dev) == 0)
        pipelines->nthreads++;
    if (pipelines->nthreads == 0)
        return; /* who waits for it compiles it */
    pipeline->queued = true;
    pipeline->next = NULL;
    *pipelines->last = pipeline;
    pipelines->last = &pipeline->next;
    pthread_cond_signal(&pipelines->queued);
}

void mrl_pipelines_settle(mrl_device *dev)
{
    mrl_pipelines *pipelines = dev->pipelines;

    mrl_lock_acquire(&pipelines->lock);
    while (take_locked(pipelines) != NULL) {
    }
    while (pipelines->idle < pipelines->nthreads)
        pthread_cond_wait(&pipelines->built, &pipelines->lock);
    mrl_lock_release(&pipelines->lock);
}

mrl_status mrl_pipeline_wait(mrl_device *dev, mrl_pipeline *pipeline, mrl_error *err)
{
    mrl_lock_acquire(&dev->pipelines->lock);
    mrl_status rc = wait_built_locked(dev, pipeline, err);
    mrl_lock_release(&dev->pipelines->lock);
    return rc;
}

mrl_status mrl_pipeline_get(mrl_device *dev, mrl_kernel kernel, mrl_format format, mrl_math math,
                            const uint32_t *spec, int nspec, mrl_pipeline **out, mrl_error *err)
{
    mrl_status rc = MRL_OK;
    mrl_pipelines *pipelines = dev->pipelines;
    uint32_t module = (uint32_t)module_index(kernel, format, math);
    const shader_entry *entry = pipelines->entry[module];
    mrl_pipeline *pipeline = NULL;
    char name[96];

    if (entry == NULL || (entry->needs & dev->info.features) != entry->needs) {
        module_name(kernel, format, math, name, sizeof name);
        return missing_module(dev, name, entry, err);
    }
    if (nspec < 1 || nspec > MRL_MAX_SPEC || spec[0] == 0 || spec[0] > dev->info.max_workgroup)
        return mrl_fail(err, MRL_ERR_VALUE, "%s: a workgroup of %u, the device allows 1 to %u", entry->name,
                        nspec < 1 ? 0 : spec[0], dev->info.max_workgroup);
    if ((rc = mrl_device_check(dev, err)) != MRL_OK)
        return rc;
    mrl_lock_acquire(&pipelines->lock);
    MRL_TRY(entry_locked(pipelines, module, spec, nspec, &pipeline, err));
    if (mrl_program_capturing(dev) == NULL)
        MRL_TRY(wait_built_locked(dev, pipeline, err));
    else if (pipeline->handle == VK_NULL_HANDLE && !pipeline->building && !pipeline->queued)
        queue_locked(dev, pipeline);
    *out = pipeline;
done:
    mrl_lock_release(&pipelines->lock);
    return rc;
}

const char *mrl_pipeline_name(const mrl_pipeline *pipeline) { return pipeline->name; }
VkPipeline mrl_pipeline_handle(const mrl_pipeline *pipeline) { return pipeline->handle; }
