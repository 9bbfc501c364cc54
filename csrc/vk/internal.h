/* What the files of csrc/vk share. Nothing outside this folder includes it. */
#ifndef MRL_VK_INTERNAL_H
#define MRL_VK_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/checked.h"
#include "base/lock.h"
#include "base/ranges.h"
#include "vk/loader.h"
#include "vk/profile.h"
#include "vk/program.h"
#include "vk/vulkan_defs.h"

#define MRL_ALIGNMENT 256u              /* of every buffer */
#define MRL_PUSH_BYTES 128u
#define MRL_COMMAND_BUFFERS 8           /* eager submissions that may be in flight */
#define MRL_STAGING_SEGMENTS 4
#define MRL_STAGING_SEGMENT (8u << 20)  /* bytes */

/* ---- memory.c ---- */
typedef struct mrl_slab {
    struct mrl_slab *next;
    VkDeviceMemory memory;
    VkBuffer buffer;
    uint64_t address;
    uint8_t *mapped; /* NULL when not host-visible */
    mrl_memory_kind kind;
    mrl_ranges ranges;
} mrl_slab;

typedef struct mrl_arena mrl_arena;

struct mrl_buffer {
    atomic_int refs;
    mrl_device *dev;
    mrl_slab *slab;
    mrl_arena *arena;       /* NULL: straight from the slab */
    uint64_t slab_offset;   /* of the first byte */
    uint64_t bytes;         /* as asked for */
    uint64_t reserved;      /* as taken */
};

typedef struct mrl_staging {
    mrl_buffer *buffer[MRL_STAGING_SEGMENTS];
    uint64_t busy_until[MRL_STAGING_SEGMENTS]; /* timeline value */
    int current;
    uint64_t used;                             /* bytes of the current segment */
} mrl_staging;

mrl_arena *mrl_arena_create(mrl_device *dev);
void mrl_arena_release(mrl_arena *arena);
uint64_t mrl_arena_bytes(const mrl_arena *arena);
void mrl_memory_destroy(mrl_device *dev); /* frees every slab: the device goes */

/* ---- recorder (stream.c) ---- */
typedef enum mrl_node_kind { MRL_NODE_DISPATCH, MRL_NODE_COPY, MRL_NODE_FILL } mrl_node_kind;

typedef struct mrl_node {
    mrl_node_kind kind;
    uint8_t barrier;      /* a barrier stands before it */
    uint8_t nreads, nwrites, beside;
    uint32_t push_offset, push_bytes;
    uint32_t range_offset; /* into recorder->ranges: reads, then writes */
    uint32_t groups[3];
    mrl_pipeline *pipeline;
    uint32_t fill_word;
    double flops;
} mrl_node;

typedef struct mrl_span { /* a range by device address; its buffer may be released before it is emitted */
    uint64_t begin, end;
    mrl_slab *slab;
} mrl_span;

typedef struct mrl_recorder {
    mrl_node *nodes;
    mrl_span *ranges;
    uint8_t *push;
    size_t nnodes, cap_nodes, nranges, cap_ranges, npush, cap_push;
    mrl_span *pending_reads, *pending_writes; /* since the last barrier */
    size_t nreads, cap_reads, nwrites, cap_writes;
    double flops;
    uint32_t barriers;
} mrl_recorder;

void mrl_recorder_clear(mrl_recorder *recorder);
void mrl_recorder_destroy(mrl_recorder *recorder);
mrl_status mrl_recorder_add(mrl_recorder *recorder, const mrl_node *node, const void *push,
                            const mrl_range *reads, const mrl_range *writes, bool serial, mrl_error *err);
/* Writes nodes [first, last) into a command buffer in recording state, ending with a full barrier. */
mrl_status mrl_recorder_emit(mrl_device *dev, const mrl_recorder *recorder, size_t first, size_t last,
                             VkCommandBuffer commands, mrl_error *err);
/* End of the part that begins at first and is worth at most one submission. */
size_t mrl_recorder_cut(const mrl_device *dev, const mrl_recorder *recorder, size_t first);

typedef struct mrl_command_slot {
    VkCommandPool pool;
    VkCommandBuffer commands;
    uint64_t value; /* timeline value of its last submission */
} mrl_command_slot;

typedef struct mrl_profile {
    bool on;
    VkQueryPool pool;
    uint32_t capacity;
    mrl_profile_row *rows;
    size_t count, rows_capacity;
} mrl_profile;

typedef struct mrl_pipelines mrl_pipelines;

struct mrl_device {
    atomic_int refs;
    mrl_device_info info;
    VkPhysicalDevice physical;
    VkDevice handle;
    mrl_vk_device_table vk;
    VkQueue queue;
    uint32_t queue_family;
    pid_t pid;
    atomic_bool lost;
    bool has_budget, has_priority;
    VkPhysicalDeviceMemoryProperties memory_properties;
    int type_device, type_host;     /* memory type indices */
    VkPipelineLayout layout;
    mrl_pipelines *pipelines;

    mrl_lock stream_lock;           /* recorder, queue, staging, command slots, profile */
    mrl_recorder recorder;
    mrl_command_slot slots[MRL_COMMAND_BUFFERS];
    int next_slot;
    VkSemaphore timeline;
    uint64_t submitted;             /* last timeline value given to the queue */
    mrl_staging staging;
    mrl_stream_debug debug;
    uint64_t shuffle_state;
    mrl_profile profile;

    mrl_lock memory_lock;           /* slabs; a leaf lock */
    mrl_slab *slabs;
    mrl_memory_stats stats;

    atomic_ullong inject_lost, inject_memory, inject_host; /* counts down; fires at 1 -> 0 */
};

/* In a forked child the driver's state is the parent's, and a lock may stay with a thread that is not there: objects
 * are forgotten, not destroyed. */
bool mrl_device_forked(const mrl_device *dev);
bool mrl_inject_fires(atomic_ullong *counter);
mrl_status mrl_device_result(mrl_device *dev, VkResult result, const char *what, mrl_error *err);

/* stream.c, under stream_lock */
mrl_status mrl_stream_flush_locked(mrl_device *dev, mrl_error *err);
mrl_status mrl_stream_submit_locked(mrl_device *dev, VkCommandBuffer commands, mrl_error *err);
mrl_status mrl_stream_run_locked(mrl_device *dev, const mrl_recorder *recorder, mrl_error *err);
void mrl_device_idle(mrl_device *dev); /* before something is destroyed: waits on a device counted as lost, too */
mrl_status mrl_device_wait_value(mrl_device *dev, uint64_t value, mrl_error *err); /* no lock needed */

/* program.c: where this thread records */
mrl_recorder *mrl_program_recorder(mrl_program *program);
mrl_arena *mrl_program_arena(mrl_program *program);
mrl_status mrl_program_pin(mrl_program *program, mrl_buffer *buffer, mrl_error *err);

/* profile.c, under stream_lock */
mrl_status mrl_profile_begin_locked(mrl_device *dev, VkCommandBuffer commands, size_t nodes, mrl_error *err);
void mrl_profile_mark_locked(mrl_device *dev, VkCommandBuffer commands, uint32_t index);
mrl_status mrl_profile_collect_locked(mrl_device *dev, const mrl_recorder *recorder, size_t first, size_t last,
                                      mrl_error *err);

/* pipeline.c */
mrl_status mrl_pipelines_create(mrl_device *dev, const char *shaders, const char *cache, mrl_error *err);
void mrl_pipelines_destroy(mrl_device *dev);
VkPipeline mrl_pipeline_handle(const mrl_pipeline *pipeline); /* null until it was waited for */
mrl_status mrl_pipeline_wait(mrl_device *dev, mrl_pipeline *pipeline, mrl_error *err);
void mrl_pipelines_settle(mrl_device *dev); /* forgets what waits for compiler threads, waits for what they do */

/* A growing array: doubles *items (of `size` bytes each) so that count + 1 fit. */
mrl_status mrl_grow(void **items, size_t *capacity, size_t count, size_t size, mrl_error *err);

#endif
