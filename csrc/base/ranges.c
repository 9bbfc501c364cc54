#include "base/ranges.h"

#include <stdlib.h>
#include <string.h>

bool mrl_ranges_init(mrl_ranges *ranges, uint64_t size)
{
    memset(ranges, 0, sizeof *ranges);
    ranges->capacity = 16;
    ranges->free = malloc(ranges->capacity * sizeof *ranges->free);
    if (ranges->free == NULL)
        return false;
    ranges->size = size;
    ranges->free[0].offset = 0;
    ranges->free[0].bytes = size;
    ranges->count = 1;
    return true;
}

void mrl_ranges_destroy(mrl_ranges *ranges)
{
    free(ranges->free);
    memset(ranges, 0, sizeof *ranges);
}

/* Every live allocation may add one hole when it is given back: keep room for it now. */
static bool reserve(mrl_ranges *ranges)
{
    if (ranges->count + ranges->live + 2 < ranges->capacity)
        return true;
    void *grown = realloc(ranges->free, 2 * ranges->capacity * sizeof *ranges->free);
    if (grown == NULL)
        return false;
    ranges->free = grown;
    ranges->capacity *= 2;
    return true;
}

/* `bytes` from `offset` on, which lie in free range i. */
static void carve(mrl_ranges *ranges, size_t i, uint64_t offset, uint64_t bytes)
{
    const uint64_t begin = ranges->free[i].offset, end = begin + ranges->free[i].bytes;

    if (offset > begin && offset + bytes < end) {
        memmove(&ranges->free[i + 1], &ranges->free[i], (ranges->count++ - i) * sizeof *ranges->free);
        ranges->free[i].bytes = offset - begin;
        i++;
        ranges->free[i].offset = offset + bytes;
        ranges->free[i].bytes = end - offset - bytes;
    } else if (offset > begin) {
        ranges->free[i].bytes = offset - begin;
    } else {
        ranges->free[i].offset += bytes;
        ranges->free[i].bytes -= bytes;
    }
    if (ranges->free[i].bytes == 0) {
        ranges->count--;
        memmove(&ranges->free[i], &ranges->free[i + 1], (ranges->count - i) * sizeof *ranges->free);
    }
    ranges->used += bytes;
    ranges->live++;
}

/* The first offset from `from` on where so many bytes are free. */
static bool take_from(mrl_ranges *ranges, uint64_t from, uint64_t bytes, uint64_t *offset)
{
    for (size_t i = 0; i < ranges->count; i++) {
        const uint64_t begin = ranges->free[i].offset, end = begin + ranges->free[i].bytes;
        const uint64_t first = begin > from ? begin : from;
        if (first > end || end - first < bytes)
            continue;
        carve(ranges, i, first, bytes);
        *offset = first;
        return true;
    }
    return false;
}

bool mrl_ranges_take(mrl_ranges *ranges, uint64_t bytes, uint64_t *offset)
{
    return reserve(ranges) && take_from(ranges, 0, bytes, offset);
}

bool mrl_ranges_take_next(mrl_ranges *ranges, uint64_t bytes, uint64_t *offset)
{
    if (!reserve(ranges) || !(take_from(ranges, ranges->next, bytes, offset) || take_from(ranges, 0, bytes, offset)))
        return false;
    ranges->next = *offset + bytes;
    return true;
}

void mrl_ranges_give(mrl_ranges *ranges, uint64_t offset, uint64_t bytes)
{
    size_t i = 0;

    while (i < ranges->count && ranges->free[i].offset < offset)
        i++;
    ranges->used -= bytes;
    ranges->live--;
    bool joins_left = i > 0 && ranges->free[i - 1].offset + ranges->free[i - 1].bytes == offset;
    bool joins_right = i < ranges->count && offset + bytes == ranges->free[i].offset;
    if (joins_left && joins_right) {
        ranges->free[i - 1].bytes += bytes + ranges->free[i].bytes;
        ranges->count--;
        memmove(&ranges->free[i], &ranges->free[i + 1], (ranges->count - i) * sizeof *ranges->free);
    } else if (joins_left) {
        ranges->free[i - 1].bytes += bytes;
    } else if (joins_right) {
        ranges->free[i].offset = offset;
        ranges->free[i].bytes += bytes;
    } else {
        memmove(&ranges->free[i + 1], &ranges->free[i], (ranges->count - i) * sizeof *ranges->free);
        ranges->free[i].offset = offset;
        ranges->free[i].bytes = bytes;
        ranges->count++;
    }
}
