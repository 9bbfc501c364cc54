/* Programs: captured streams. Between begin and end every op that this thread records on the device goes
 * into the program; replay is one submission. Temporaries made while capturing come from the program's
 * arena: when one is released its memory goes to ops recorded later. Buffers from outside are retained. */
#ifndef MRL_VK_PROGRAM_H
#define MRL_VK_PROGRAM_H

#include "vk/stream.h"

typedef struct mrl_program mrl_program;

mrl_status mrl_program_begin(mrl_device *dev, mrl_program **out, mrl_error *err); /* STATE if already capturing */
mrl_status mrl_program_end(mrl_program *program, mrl_error *err);  /* records the command buffers */
void mrl_program_abort(mrl_program *program);                      /* after an error inside the capture */
mrl_program *mrl_program_retain(mrl_program *program);
void mrl_program_release(mrl_program *program);

/* One submission behind everything submitted so far; *value is what mrl_device_wait takes. */
mrl_status mrl_program_replay(mrl_program *program, uint64_t *value, mrl_error *err);
/* Waits for a timeline value; done tells without waiting. */
mrl_status mrl_device_wait(mrl_device *dev, uint64_t value, mrl_error *err);
bool mrl_device_done(mrl_device *dev, uint64_t value);

mrl_program *mrl_program_capturing(mrl_device *dev); /* of this thread, or NULL */

typedef struct mrl_program_stats {
    uint32_t dispatches, barriers, submissions;
    uint64_t arena_bytes, read_bytes, write_bytes;
    double flops;
} mrl_program_stats;
void mrl_program_stats_of(const mrl_program *program, mrl_program_stats *out);

#endif
