#include "ops/gemv.h"

#include <string.h>

#include "ops/quantize.h"

#define MAX_LOADS 16u /* of gemv.glsl */
#define MAX_SUBGROUPS 64u /* its partial sums have places for so many */

static const bool has_f16[] = {
#define F16 true
#define F32 false
#define FORMAT(name, bits, math, scale, zero, default_group, text) math,
#include "formats.def"
#undef FORMAT
#undef F16
#undef F32
};

bool mrl_wants_f32(mrl_format format, mrl_dtype x, bool norm)
{
    return !has_f16[format] || (x != MRL_DTYPE_f16 && !norm);
}

static uint32_t floor_power_of_two(uint32_t x)
{
    while (x & (x - 1))
        x &= x - 1;
    return x;
}

/* One row of x on a CPU: a workgroup is one subgroup, which shares x by broadcasts (matmul/gemv_broadcast.glsl). */
static void plan_broadcast(uint32_t lanes, const mrl_gemv_work *work, mrl_gemv_plan *plan)
{
    const mrl_weight *w = work->w;
    const uint32_t unit = 128 / mrl_format_bits(w->format), rows = work->n < 32 * lanes ? 4 : 8;
    const uint32_t spec[] = {lanes,
                             rows,
                             1, 1, 1, unit, 1,
                             (uint32_t)work->x,
                             (uint32_t)work->y,
                             (uint32_t)w->scale_type,
                             w->has_zero,
                             w->group,
                             (uint32_t)work->activation,
                             work->norm,
                             0, 0,
                             w->group != 0 && w->group < unit ? unit / w->group : 1,
                             0, 1};

    plan->math = MRL_MATH_F32;
    memcpy(plan->spec, spec, sizeof spec);
    plan->nspec = sizeof spec / sizeof *spec;
    plan->groups[0] = mrl_div_up(work->n, rows * lanes);
    plan->groups[1] = work->copies;
    plan->groups[2] = 1;
}

mrl_status mrl_plan_gemv(mrl_device *dev, const mrl_gemv_work *work, const mrl_gemv_tuning *asked, mrl_gemv_plan *plan,
                         mrl_error *err)
{
    const mrl_device_info *info = mrl_device_info_of(dev);
    const mrl_weight *w = work->w;
    const bool software = info->kind == MRL_DEVICE_SOFTWARE;
    const uint32_t m = work->m, unit = 128 / mrl_format_bits(w->format);
    const bool f16 = mrl_device_has(dev, MRL_BIT(fp16)) && !mrl_wants_f32(w->format, work->x, work->norm);
    const bool gated = mrl_activation_gated(work->activation);
    const uint32_t width = f16 ? 2 : 4;

    if (software && m == 1 && !work->staged && mrl_whole_subgroups(info)) {
        plan_broadcast(info->subgroup_size, work, plan);
        return MRL_OK;
    }
    /* Measured on an H200 (int4, 4096 to 28672 rows, k 2560 to 14336; benchmarks/kernels.py gemv --sweep): large
     * workgroups stage x least often, two units in flight a row suffice, and splitting a row never pays. A CPU has
     * no latency to hide and pays for every staging of x: many rows an owner. */
    uint32_t local = software ? 8 * info->subgroup_size : 512, rows, split = 1, prefetch = software ? 1 : 2;
    if (software)
        rows = work->n < 256 || m > 4 ? 2 : m == 1 ? 8 : 4;
    else
        rows = gated || (m <= 4 && (uint64_t)work->n * work->copies * work->length >= 32u << 20) ? 2 : 1;
    if (asked->rows)
        rows = asked->rows;
    if (asked->split)
        split = asked->split;
    if (asked->prefetch)
        prefetch = asked->prefetch;
    if (asked->local)
        local = asked->local;
    if (local > info->max_workgroup)
        local = info->max_workgroup;
    if (local > MAX_SUBGROUPS * info->subgroup_min)
        local = MAX_SUBGROUPS * info->subgroup_min;
    uint32_t subgroups = local / info->subgroup_size;
    while (rows * prefetch > MAX_LOADS)
        prefetch /= 2;
    /* All of x is staged where it fits beside the other kernels' use of shared memory; else parts of it. */
    uint32_t shared = info->shared_bytes >= 49152 ? 32768 : 14336;
    uint32_t sums = MAX_SUBGROUPS * m * sizeof(float), fixed = sums + (split > 1 ? rows * sums : sizeof(float));
    if (fixed + shared > info->shared_bytes)
        shared = fixed < info->shared_bytes ? info->shared_bytes - fixed : 0;
    uint32_t chunk = work->length;
    if (chunk * m * width > shared)
        chunk = floor_power_of_two(shared / (m * width)) & ~127u;
    if (subgroups < split || chunk == 0 || (gated && rows == 1))
        return mrl_fail(err, MRL_ERR_VALUE,
                        "linear: gemv of %u rows, split %u, in workgroups of %u, with %u rows of x does not fit %s%s",
                        rows, split, local, m, info->name, gated ? " or a gated activation" : "");
    bool once = chunk == work->length;
    uint32_t blocks = mrl_div_up(work->n, rows * (subgroups / split));
    uint32_t most = asked->workgroups ? asked->workgroups : software ? 64 : 264;
    uint32_t pieces = work->length / (unit < 8 ? 4 : 8); /* of a row of x: FMT_CHUNK of the shader */
    uint32_t kept = once && m == 1 && work->norm && pieces <= 2 * local ? mrl_div_up(pieces, local) : 0;
    most = most > work->copies ? most / work->copies : 1;
    uint32_t walk = once ? mrl_div_up(blocks, most) : 1;

    plan->math = f16 ? MRL_MATH_F16 : MRL_MATH_F32;
    const uint32_t spec[] = {local,
                             rows,
                             split,
                             m,
                             prefetch,
                             chunk,
                             m * chunk * width / 16,
                             (uint32_t)work->x,
                             (uint32_t)work->y,
                             (uint32_t)w->scale_type,
                             w->has_zero,
                             w->group,
                             (uint32_t)work->activation,
                             work->norm,
                             software ? 0 : w->k_padded,
                             once,
                             w->group != 0 && w->group < unit ? unit / w->group : 1,
                             kept,
                             0};
    memcpy(plan->spec, spec, sizeof spec);
    plan->nspec = sizeof spec / sizeof *spec;
    plan->groups[0] = mrl_div_up(blocks, walk);
    plan->groups[1] = work->copies;
    plan->groups[2] = 1;
    return MRL_OK;
}
