/* Latent attention of a prompt: keys and values are made of the latents by a product, some heads at a time, and
 * attention runs on cooperative matrices over them (shaders/mla/prefill_coopmat.comp). */
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/mla_call.h"
#include "ops/quantize.h"

#define EXPANDED_MAX (256u << 20) /* bytes of keys and values at a time */
#define ROWS_LEAST 64u            /* fewer rows read the latents themselves: the product would cost too much */
#define ROWS_LANES 256u

bool mrl_mla_expands(const mla_call *call, const mrl_view *y)
{
    mrl_coopmat_attention division;
    const uint32_t rope_dim = call->kv->dim - call->kv->rank;
    const uint64_t gathered = (uint64_t)call->args->bound * (call->kv->rank / 8);

    return call->args->sequence && gathered / ROWS_LANES < call->info->max_groups[0] &&
           call->kv->dtype == MRL_DTYPE_f16 && call->kv->rank % 8 == 0 &&
           call->nope % 8 == 0 && call->v_dim % 8 == 0 && mrl_view_address(y) % 16 == 0 &&
           mrl_attention_coopmat_plan(call->dev, MRL_KERNEL_mla_prefill_coopmat, call->nope + rope_dim, call->v_dim,
                                      &division);
}

bool mrl_mla_expansion_pays(const mla_call *call)
{
    return call->rows >= ROWS_LEAST;
}

/* x (bound, rank) f16: the latents of the slot. */
static mrl_status gather(const mla_call *call, const mrl_view *x, mrl_error *err)
{
    mrl_push_mla push = call->push;
    const uint32_t bound = call->args->bound;
    uint32_t spec[MRL_MAX_SPEC];

    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    spec[0] = call->info->max_workgroup < ROWS_LANES ? call->info->max_workgroup : ROWS_LANES;
    push.y = mrl_view_address(x);
    push.rows = bound;
    push.chunks = call->rows;
    return mrl_mla_record(call, MRL_KERNEL_mla_rows, spec, MRL_MLA_SPECS, &push,
                          (uint32_t[]){mrl_div_up(bound * (call->kv->rank / 8), spec[0]), 1, 1}, (mrl_range){0},
                          mrl_view_range(x), 0, err);
}

/* Attention of `heads` heads from `first` on over their expanded keys and values. */
static mrl_status attend(const mla_call *call, uint32_t first, uint32_t heads, const mrl_view *y, mrl_error *err)
{
    mrl_coopmat_attention division = {0};
    mrl_push_mla push = call->push;
    const mrl_mla_args *args = call->args;
    const uint32_t k_dim = call->nope + call->kv->dim - call->kv->rank;
    uint32_t spec[MRL_MAX_SPEC];

    if (!mrl_attention_coopmat_plan(call->dev, MRL_KERNEL_mla_prefill_coopmat, k_dim, call->v_dim, &division))
        return mrl_fail(err, MRL_ERR_DEVICE, "mla: %s cannot do heads of %u and %u", call->info->name, k_dim,
                        call->v_dim);
    for (int i = 0; i < MRL_MLA_SPECS; i++) spec[i] = call->spec[i];
    spec[0] = division.subgroups * division.subgroup;
    spec[4] = args->q.dtype;
    spec[7] = y->dtype;
    spec[MRL_MLA_SPECS] = division.subgroups;
    spec[MRL_MLA_SPECS + 1] = division.subgroup;
    push.x = mrl_view_address(&args->q);
    push.y = mrl_view_address(y);
    push.quant = mrl_buffer_address(call->expanded.buffer);
    push.first_head = first;
    push.chunks = args->bound;
    return mrl_mla_record(call, MRL_KERNEL_mla_prefill_coopmat, spec, MRL_MLA_SPECS + 2, &push,
                          (uint32_t[]){mrl_div_up(call->rows, division.lines), heads, 1}, mrl_view_range(&args->q),
                          mrl_view_range(y), 2.0 * call->rows * heads * (k_dim + call->v_dim) * args->bound, err);
}

mrl_status mrl_mla_expanded(const mla_call *given, const mrl_view *y, mrl_error *err)
{
    mrl_status rc;
    mla_call call = *given;
    const mrl_mla_args *args = call.args;
    const uint64_t bound = args->bound, width = call.nope + call.v_dim, rank = call.kv->rank;
    const uint64_t fits = EXPANDED_MAX / (bound * width * 2);
    const uint32_t most = fits == 0 ? 1 : fits < args->heads ? (uint32_t)fits : args->heads;
    mrl_view latents = {.dtype = MRL_DTYPE_f16, .ndim = 2, .shape = {bound, rank}};
    mrl_view expanded = {.dtype = MRL_DTYPE_f16, .ndim = 2, .shape = {bound, most * width}};
    mrl_buffer *x = NULL, *kv = NULL;

    MRL_TRY(mrl_buffer_create(call.dev, mrl_view_bytes(&latents), MRL_MEMORY_DEVICE, &x, err));
    MRL_TRY(mrl_buffer_create(call.dev, mrl_view_bytes(&expanded), MRL_MEMORY_DEVICE, &kv, err));
    latents.buffer = x;
    expanded.buffer = kv;
    call.expanded = mrl_range_of(kv);
    MRL_TRY(gather(&call, &latents, err));
    for (uint32_t first = 0; first < args->heads; first += most) {
        const uint32_t heads = args->heads - first < most ? args->heads - first : most;
        mrl_weight part = *args->kv_b;
        part.first = first * (uint32_t)width;
        part.n = heads * (uint32_t)width;
        expanded.shape[1] = part.n;
        const mrl_matmul_args product = {.w = &part, .x = latents, .y = expanded};
        MRL_TRY(mrl_op_matmul(call.dev, &product, err));
        MRL_TRY(attend(&call, first, heads, y, err));
    }
done:
    mrl_buffer_release(x);
    mrl_buffer_release(kv);
    return rc;
}
