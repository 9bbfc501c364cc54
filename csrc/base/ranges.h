/* An allocator of offsets in [0, size): free ranges sorted by offset, neighbours joined. Slabs take the first range
 * that fits, the arenas of programs go round. */
#ifndef MRL_BASE_RANGES_H
#define MRL_BASE_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mrl_ranges {
    struct {
        uint64_t offset, bytes;
    } *free;
    size_t count, capacity, live;
    uint64_t size, used, next; /* next: behind what take_next gave last */
} mrl_ranges;

bool mrl_ranges_init(mrl_ranges *ranges, uint64_t size); /* false: no memory */
void mrl_ranges_destroy(mrl_ranges *ranges);
/* bytes > 0 and a multiple of the granularity that the caller keeps. False when nothing fits. */
bool mrl_ranges_take(mrl_ranges *ranges, uint64_t bytes, uint64_t *offset);
/* The same from where it gave last time on, round and round: what was given back lately is not given out soon, so that
 * work recorded on it needs no barrier before the next. */
bool mrl_ranges_take_next(mrl_ranges *ranges, uint64_t bytes, uint64_t *offset);
/* Room for the list is reserved by take, so giving back cannot fail. */
void mrl_ranges_give(mrl_ranges *ranges, uint64_t offset, uint64_t bytes);

#endif
