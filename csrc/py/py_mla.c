/* The function mla: latent attention over a KVCache with a rank. */
#include "py/pymrl.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "ops/mla.h"

/* The numbers behind the Tensors. scale: 1 / sqrt(width of a query head) where it is None. */
static int parse_numbers(PyObject *const given[6], uint32_t context, uint64_t columns, mrl_mla_args *args)
{
    double eps = 1e-6, scale, rope_scale = 1;

    if (mrl_py_missing(given[0], "mla", "heads") < 0 || mrl_py_missing(given[1], "mla", "bound") < 0 ||
        mrl_py_u32(given[0], "mla: heads", 1, 65535, &args->heads) < 0 ||
        mrl_py_u32(given[1], "mla: bound", 1, context, &args->bound) < 0 ||
        mrl_py_float(given[2], "mla: eps", 0, FLT_MAX, &eps) < 0 ||
        mrl_py_float(given[4], "mla: rope_scale", 0, FLT_MAX, &rope_scale) < 0)
        return -1;
    scale = 1 / sqrt((double)columns / args->heads);
    if (mrl_py_float(given[3] == Py_None ? NULL : given[3], "mla: scale", -FLT_MAX, FLT_MAX, &scale) < 0) return -1;
    args->eps = (float)eps;
    args->scale = (float)scale;
    args->rope_scale = (float)rope_scale;
    return 0;
}

static int parse_kernel(const char *name, mrl_kernel *out)
{
    static const mrl_kernel known[] = {MRL_KERNEL_mla_decode, MRL_KERNEL_mla_decode_coopmat,
                                       MRL_KERNEL_mla_prefill_coopmat};

    *out = MRL_KERNEL_COUNT;
    if (name == NULL) return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, mrl_kernel_name(known[i])) == 0) *out = known[i];
    if (*out != MRL_KERNEL_COUNT) return 0;
    PyErr_Format(PyExc_ValueError, "mla: kernel must be mla_decode, mla_decode_coopmat or mla_prefill_coopmat, got %s",
                 name);
    return -1;
}

static PyObject *module_mla(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"q",     "kv",        "norm",     "kv_b",       "cache",
                                           "layer", "positions", "slots",    "freq",       "heads",
                                           "bound", "eps",       "scale",    "rope_scale", "interleaved",
                                           "dtype", "staged",    "sequence", "kernel",     NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *q, *kv, *norm, *kv_b, *cache, *layer, *positions, *slots, *freq, *dtype_name = NULL, *y;
    PyObject *numbers[6] = {NULL, NULL, NULL, Py_None, NULL, NULL};
    mrl_mla_args mla = {0};
    mrl_kv latent;
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    mrl_view view;
    uint32_t nope, v_dim;
    const char *kernel = NULL;
    int interleaved = 1, staged = 0, sequence = 0;

    if (!MRL_PARSE(args, kwargs, "OOOOOOOOO|$OOOOOpOppz:mla", keywords, &q, &kv, &norm, &kv_b, &cache, &layer,
                   &positions, &slots, &freq, &numbers[0], &numbers[1], &numbers[2], &numbers[3], &numbers[4],
                   &interleaved, &dtype_name, &staged, &sequence, &kernel) ||
        mrl_py_view_or_shares(state, q, "mla: q", &mla.q, &mla.q_shares, NULL) < 0 ||
        mrl_py_view(state, kv, "mla: kv", false, &mla.kv) < 0 ||
        mrl_py_view(state, norm, "mla: norm", false, &mla.norm) < 0 ||
        mrl_py_weight(state, kv_b, "mla: kv_b", &mla.kv_b) < 0 ||
        mrl_py_layer(state, cache, layer, "mla", &latent) < 0 ||
        mrl_py_view(state, positions, "mla: positions", false, &mla.positions) < 0 ||
        mrl_py_view(state, slots, "mla: slots", false, &mla.slots) < 0 ||
        mrl_py_view(state, freq, "mla: freq", false, &mla.freq) < 0 ||
        parse_numbers(numbers, latent.context, mla.q.shape[mla.q.ndim - 1], &mla) < 0 ||
        mrl_py_dtype(dtype_name, "mla: dtype", mla.q.dtype, &dtype) < 0 || parse_kernel(kernel, &mla.kernel) < 0)
        return NULL;
    mla.interleaved = interleaved != 0;
    mla.staged = staged != 0;
    mla.sequence = sequence != 0;
    if ((rc = mrl_mla_dims(&latent, &mla, &nope, &v_dim, &err)) != MRL_OK) return mrl_raise(state, &err);
    y = mrl_py_tensor_out(state, mrl_py_device_of(q), NULL, "mla: out", dtype, 2,
                          (uint64_t[]){mla.q.shape[0], (uint64_t)mla.heads * v_dim}, &view);
    if (y == NULL) return NULL;
    MRL_NOGIL(rc = mrl_mla(&latent, &mla, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(state, &err);
    }
    return y;
}

static PyMethodDef functions[] = {
    {"mla", (PyCFunction)(void (*)(void))module_mla, METH_VARARGS | METH_KEYWORDS,
     "mla(q, kv, norm, kv_b, cache, layer, positions, slots, freq, *, heads, bound, eps=1e-06, scale=None, "
     "rope_scale=1.0, interleaved=True, dtype=None, staged=False, sequence=False, kernel=None)\n--\n\n"
     "Latent attention -> (rows, heads * v_dim). kv (rows, rank + rope_dim): the latent, normed by norm (rank), "
     "and the shared rope part go to a cache with that rank at (slots[row], positions[row]); then q (rows, heads * "
     "(nope + rope_dim)) attends over positions 0 .. positions[row] of its slot. kv_b: the Linear (heads * (nope + "
     "v_dim), rank) that makes keys and values of latents. bound: positions + 1 stays within it. A row with "
     "position < 0 gives zeros and writes nothing. staged: CPUs take the kernels of GPUs for kv_b, for tests. "
     "sequence: all rows are consecutive positions of one slot; padding rows have negative ones. q of one row may be "
     "Shares. kernel: mla_decode, "
     "mla_decode_coopmat, mla_prefill_coopmat, or None to choose."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_mla_add(PyObject *module, mrl_state *state)
{
    (void)state;
    return PyModule_AddFunctions(module, functions);
}
