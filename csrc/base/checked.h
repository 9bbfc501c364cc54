/* Checked arithmetic: every size that a caller can influence goes through these.
 * Each returns true when the result fits. */
#ifndef MRL_BASE_CHECKED_H
#define MRL_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool mrl_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool mrl_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool mrl_fits_i32(uint64_t value) { return value <= INT32_MAX; }

/* For values already known to be small. */
static inline uint32_t mrl_div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static inline uint32_t mrl_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t mrl_max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint64_t mrl_round_up(uint64_t a, uint64_t alignment)
{
    return (a + alignment - 1) / alignment * alignment;
}

#endif
