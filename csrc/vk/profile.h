/* Timestamps around every dispatch. While on, each eager submission and each replay of a program recorded
 * while on leaves one row a dispatch. */
#ifndef MRL_VK_PROFILE_H
#define MRL_VK_PROFILE_H

#include "vk/stream.h"

typedef struct mrl_profile_row {
    char name[96];       /* pipeline name with its specialization constants */
    double ns;
    uint64_t bytes;      /* declared reads + writes */
    double flops;
    uint32_t barrier;    /* 1 when a barrier stood before it */
} mrl_profile_row;

mrl_status mrl_profile_start(mrl_device *dev, mrl_error *err);
/* Waits, stops, and gives the rows (malloc'd: the caller frees). */
mrl_status mrl_profile_stop(mrl_device *dev, mrl_profile_row **rows, size_t *count, mrl_error *err);

#endif
