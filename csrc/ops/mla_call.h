/* What the dispatches of latent attention share: mla.c (absorbed) and mla_prefill.c (expanded). */
#ifndef MRL_OPS_MLA_CALL_H
#define MRL_OPS_MLA_CALL_H

#include "../shaders/include/push.h"

#include "ops/mla.h"
#include "vk/pipeline.h"

typedef struct mla_call {
    const mrl_kv *kv;
    const mrl_mla_args *args;
    mrl_device *dev;
    const mrl_device_info *info;
    uint32_t rows, nope, v_dim;
    mrl_push_mla push;
    uint32_t spec[MRL_MAX_SPEC]; /* constants 1 .. 10 of mla.glsl; [0] is set by each kernel */
    mrl_range expanded;          /* keys and values of mla_prefill_coopmat, else absent */
} mla_call;

#define MRL_MLA_SPECS 11 /* the first constant of a kernel's own */

mrl_status mrl_mla_record(const mla_call *call, mrl_kernel kernel, const uint32_t *spec, int nspec,
                          const mrl_push_mla *push, const uint32_t groups[3], mrl_range x, mrl_range y, double flops,
                          mrl_error *err);

/* Whether rows that are consecutive positions of one slot can have keys and values made, and whether that pays. */
bool mrl_mla_expands(const mla_call *call, const mrl_view *y);
bool mrl_mla_expansion_pays(const mla_call *call);

/* y = attention of the rows over the cache, which holds theirs already. */
mrl_status mrl_mla_expanded(const mla_call *call, const mrl_view *y, mrl_error *err);

#endif
