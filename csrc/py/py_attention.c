/* KVCache, and the functions rms_norm, rope and attention. */
#include "py/pymrl.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "engine/kv_cache.h"
#include "ops/norm.h"

typedef struct {
    MRL_PY_HEAD
    mrl_kv_cache *cache;
} mrl_py_kv_cache;

int mrl_py_missing(PyObject *given, const char *function, const char *keyword)
{
    if (given != NULL) return 0;
    PyErr_Format(PyExc_TypeError, "%s() missing required keyword-only argument: '%s'", function, keyword);
    return -1;
}

/* ---- KVCache
 * ----------------------------------------------------------------------------------------- */

static PyObject *KVCache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "layers", "slots", "context", "kv_heads", "dim",
                                           "dtype",  "rank",   NULL};
    mrl_state *state = PyType_GetModuleState(type);
    PyObject *device, *given[5] = {NULL}, *dtype_name = NULL, *rank_given = NULL;
    uint32_t sizes[5] = {0}, rank = 0;
    mrl_dtype dtype;
    mrl_device *dev;
    mrl_py_kv_cache *self;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|$OOOOOOO:KVCache", keywords, &device, &given[0], &given[1], &given[2], &given[3],
                   &given[4], &dtype_name, &rank_given) ||
        (dev = mrl_py_device(state, device, "KVCache: device")) == NULL ||
        mrl_py_dtype(dtype_name, "KVCache: dtype", MRL_DTYPE_f16, &dtype) < 0 ||
        mrl_py_u32(rank_given, "KVCache: rank", 0, INT32_MAX, &rank) < 0)
        return NULL;
    for (int i = 0; i < 5; i++) {
        char name[32];
        PyOS_snprintf(name, sizeof name, "KVCache: %s", keywords[i + 1]);
        if (mrl_py_missing(given[i], "KVCache", keywords[i + 1]) < 0 ||
            mrl_py_u32(given[i], name, 1, INT32_MAX, &sizes[i]) < 0)
            return NULL;
    }
    if ((self = mrl_py_alloc(type, state, device)) == NULL) return NULL;
    MRL_NOGIL(rc = mrl_kv_cache_create(dev, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], rank, dtype, &self->cache,
                                       &err));
    if (rc != MRL_OK) {
        Py_DECREF(self);
        return mrl_raise(state, &err);
    }
    return (PyObject *)self;
}

static void KVCache_dealloc(PyObject *obj)
{
    mrl_py_kv_cache *self = (mrl_py_kv_cache *)obj;
    mrl_kv_cache *cache = self->cache;
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_kv_cache_free(cache));
    mrl_py_dealloc_end(obj);
}

static mrl_kv layer_of(PyObject *obj, uint32_t layer)
{
    mrl_kv kv;
    mrl_kv_cache_layer(((mrl_py_kv_cache *)obj)->cache, layer, &kv, NULL);
    return kv;
}

int mrl_py_layer(const mrl_state *state, PyObject *obj, PyObject *layer, const char *op, mrl_kv *kv)
{
    char name[64];
    uint32_t index = 0;

    PyOS_snprintf(name, sizeof name, "%s: cache", op);
    if (!Py_IS_TYPE(obj, state->KVCache)) return mrl_py_wrong_type(name, "a KVCache", obj);
    PyOS_snprintf(name, sizeof name, "%s: layer", op);
    if (mrl_py_u32(layer, name, 0, mrl_kv_cache_layers(((mrl_py_kv_cache *)obj)->cache) - 1, &index) < 0) return -1;
    *kv = layer_of(obj, index);
    return 0;
}

static PyObject *KVCache_read(PyObject *obj, PyObject *layer)
{
    mrl_py_kv_cache *self = (mrl_py_kv_cache *)obj;
    PyObject *k, *v, *pair = NULL;
    mrl_kv kv;

    if (mrl_py_layer(self->state, obj, layer, "KVCache.read", &kv) < 0) return NULL;
    mrl_view view = {
        .buffer = kv.k,
        .dtype = kv.dtype,
        .ndim = 4,
        .shape = {kv.slots, kv.context, kv.kv_heads, kv.dim},
    };
    k = mrl_py_tensor_wrap(self->state, self->device, &view);
    if (kv.rank == 0) view.buffer = kv.v;
    v = mrl_py_tensor_wrap(self->state, self->device, &view);
    if (k != NULL && v != NULL) pair = PyTuple_Pack(2, k, v);
    Py_XDECREF(k);
    Py_XDECREF(v);
    return pair;
}

static PyObject *KVCache_get_layers(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mrl_kv_cache_layers(((mrl_py_kv_cache *)obj)->cache));
}
static PyObject *KVCache_get_slots(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(layer_of(obj, 0).slots);
}
static PyObject *KVCache_get_context(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(layer_of(obj, 0).context);
}
static PyObject *KVCache_get_nbytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(mrl_kv_cache_bytes(((mrl_py_kv_cache *)obj)->cache));
}
static PyObject *KVCache_get_dtype(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mrl_dtype_name(layer_of(obj, 0).dtype));
}

static PyObject *KVCache_get_rank(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(layer_of(obj, 0).rank);
}

static PyObject *KVCache_repr(PyObject *obj)
{
    mrl_kv kv = layer_of(obj, 0);
    return PyUnicode_FromFormat("<KVCache of %u layers, (%u, %u, %u, %u) %s>",
                                (unsigned int)mrl_kv_cache_layers(((mrl_py_kv_cache *)obj)->cache),
                                (unsigned int)kv.slots, (unsigned int)kv.context, (unsigned int)kv.kv_heads,
                                (unsigned int)kv.dim, mrl_dtype_name(kv.dtype));
}

static PyMethodDef KVCache_methods[] = {
    {"read", KVCache_read, METH_O,
     "read($self, layer, /)\n--\n\nK and V of a layer as Tensors (slots, context, kv_heads, dim): views, "
     "not copies. A latent cache gives its rows twice. "
     "What no op has written is undefined."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef KVCache_getset[] = {
    {"layers", KVCache_get_layers, NULL, "number of layers", NULL},
    {"slots", KVCache_get_slots, NULL, "sequences that fit", NULL},
    {"context", KVCache_get_context, NULL, "positions a slot", NULL},
    {"nbytes", KVCache_get_nbytes, NULL, "bytes of K and V in all layers", NULL},
    {"dtype", KVCache_get_dtype, NULL, "f16 or f32", NULL},
    {"rank", KVCache_get_rank, NULL, "of a latent cache; 0: keys and values", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot KVCache_slots[] = {
    {Py_tp_doc, "KVCache(device, *, layers, slots, context, kv_heads, dim, dtype='f16', "
                "rank=0)\n--\n\n"
                "Keys and values of all layers. dim: a multiple of 8 up to 256; dtype: f16 or f32. rank: of a "
                "latent cache, whose rows of dim (up to 1024) elements serve all heads (kv_heads 1) and hold the "
                "values in their first rank."},
    {Py_tp_new, KVCache_new},
    {Py_tp_dealloc, KVCache_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, KVCache_repr},
    {Py_tp_methods, KVCache_methods},
    {Py_tp_getset, KVCache_getset},
    {Py_tp_members, mrl_py_members},
    {0, NULL},
};

static PyType_Spec KVCache_spec = {
    .name = "marlin._C.KVCache",
    .basicsize = sizeof(mrl_py_kv_cache),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = KVCache_slots,
};

/* ---- functions
 * --------------------------------------------------------------------------------------- */

static PyObject *module_rms_norm(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x", "weight", "eps", "residual", "dtype", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *x, *weight, *eps_given, *residual = Py_None, *dtype_name = NULL, *y, *sum = NULL, *pair;
    mrl_view x_view, weight_view, residual_view, y_view, sum_view = {0};
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    double eps;

    if (!MRL_PARSE(args, kwargs, "OOO|$OO:rms_norm", keywords, &x, &weight, &eps_given, &residual, &dtype_name) ||
        mrl_py_view(state, x, "rms_norm: x", false, &x_view) < 0 ||
        mrl_py_view(state, weight, "rms_norm: weight", false, &weight_view) < 0 ||
        mrl_py_view(state, residual, "rms_norm: residual", true, &residual_view) < 0 ||
        mrl_py_float(eps_given, "rms_norm: eps", 0, FLT_MAX, &eps) < 0 ||
        mrl_py_dtype(dtype_name, "rms_norm: dtype", x_view.dtype, &dtype) < 0)
        return NULL;
    PyObject *device = mrl_py_device_of(x);
    y = mrl_py_tensor_out(state, device, NULL, "rms_norm: out", dtype, x_view.ndim, x_view.shape, &y_view);
    if (y == NULL) return NULL;
    if (residual_view.buffer != NULL) {
        sum = mrl_py_tensor_out(state, device, NULL, "rms_norm: sum", residual_view.dtype, x_view.ndim, x_view.shape,
                                &sum_view);
        if (sum == NULL) {
            Py_DECREF(y);
            return NULL;
        }
    }
    MRL_NOGIL(rc = mrl_rms_norm(&x_view, &weight_view, (float)eps, &residual_view, &y_view, &sum_view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        Py_XDECREF(sum);
        return mrl_raise(state, &err);
    }
    if (sum == NULL) return y;
    pair = PyTuple_Pack(2, y, sum);
    Py_DECREF(y);
    Py_DECREF(sum);
    return pair;
}

/* The arguments that rope and attention share, as Python gives them. */
typedef struct rope_given {
    PyObject *qkv, *cache, *layer, *positions, *slots, *freq, *heads;
    PyObject *q_norm, *k_norm, *eps, *rope_scale, *dtype;
    int interleaved, gated;
} rope_given;

#define ROPE_GIVEN                                                                                                     \
    {                                                                                                                  \
        .q_norm = Py_None, .k_norm = Py_None                                                                           \
    }

static const char *label(char text[64], const char *op, const char *name)
{
    PyOS_snprintf(text, 64, "%s: %s", op, name);
    return text;
}

static int parse_rope(const mrl_state *state, const rope_given *given, const char *op, mrl_kv *kv, mrl_rope_args *args,
                      mrl_dtype *dtype)
{
    const struct {
        PyObject *obj;
        const char *name;
        bool optional;
        mrl_view *view;
    } tensors[] = {
        {given->qkv, "qkv", false, &args->qkv},         {given->positions, "positions", false, &args->positions},
        {given->slots, "slots", false, &args->slots},   {given->freq, "freq", false, &args->freq},
        {given->q_norm, "q_norm", true, &args->q_norm}, {given->k_norm, "k_norm", true, &args->k_norm},
    };
    double eps = 1e-6, rope_scale = 1;
    char name[64];

    if (mrl_py_missing(given->heads, op, "heads") < 0) return -1;
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (mrl_py_view(state, tensors[i].obj, label(name, op, tensors[i].name), tensors[i].optional, tensors[i].view) <
            0)
            return -1;
    if (mrl_py_layer(state, given->cache, given->layer, op, kv) < 0 ||
        mrl_py_u32(given->heads, label(name, op, "heads"), 1, 65535, &args->heads) < 0 ||
        mrl_py_float(given->eps, label(name, op, "eps"), 0, FLT_MAX, &eps) < 0 ||
        mrl_py_float(given->rope_scale, label(name, op, "rope_scale"), 0, FLT_MAX, &rope_scale) < 0 ||
        mrl_py_dtype(given->dtype, label(name, op, "dtype"), args->qkv.dtype, dtype) < 0)
        return -1;
    args->eps = (float)eps;
    args->rope_scale = (float)rope_scale;
    args->interleaved = given->interleaved != 0;
    args->gated = given->gated != 0;
    return 0;
}

/* The result (rows, heads * dim), of one row when qkv has none: the op checks qkv before it runs. */
static PyObject *result(mrl_state *state, const rope_given *given, const mrl_kv *kv, const mrl_rope_args *args,
                        const char *op, mrl_dtype dtype, mrl_view *view)
{
    uint64_t rows = args->qkv.ndim == 2 ? args->qkv.shape[0] : 1, shape[2] = {rows, (uint64_t)args->heads * kv->dim};
    char name[64];
    return mrl_py_tensor_out(state, mrl_py_device_of(given->qkv), NULL, label(name, op, "out"), dtype, 2, shape, view);
}

static PyObject *module_rope(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"qkv",    "cache",  "layer", "positions",  "slots",       "freq",  "heads",
                                           "q_norm", "k_norm", "eps",   "rope_scale", "interleaved", "gated", "dtype",
                                           NULL};
    mrl_state *state = mrl_py_state(module);
    rope_given given = ROPE_GIVEN;
    mrl_rope_args rope = {0};
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    mrl_view view;
    mrl_kv kv;
    PyObject *y;

    if (!MRL_PARSE(args, kwargs, "OOOOOO|$OOOOOppO:rope", keywords, &given.qkv, &given.cache, &given.layer,
                   &given.positions, &given.slots, &given.freq, &given.heads, &given.q_norm, &given.k_norm, &given.eps,
                   &given.rope_scale, &given.interleaved, &given.gated, &given.dtype) ||
        parse_rope(state, &given, "rope", &kv, &rope, &dtype) < 0 ||
        (y = result(state, &given, &kv, &rope, "rope", dtype, &view)) == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_rope(&kv, &rope, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(state, &err);
    }
    return y;
}

static int parse_kernel(const char *name, mrl_kernel *out)
{
    *out = MRL_KERNEL_COUNT;
    if (name == NULL) return 0;
    for (int i = 0; i < MRL_KERNEL_COUNT; i++)
        if (strcmp(name, mrl_kernel_name((mrl_kernel)i)) == 0) *out = (mrl_kernel)i;
    if (*out != MRL_KERNEL_COUNT) return 0;
    PyErr_Format(PyExc_ValueError, "attention: kernel must be attention_decode, attention_prefill or "
                 "attention_prefill_coopmat, got %s", name);
    return -1;
}

static PyObject *module_attention(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"qkv",        "cache",       "layer",    "positions", "slots",  "freq",
                                           "heads",      "bound",       "q_norm",   "k_norm",    "eps",    "scale",
                                           "rope_scale", "interleaved", "gated",    "sequence",  "dtype",  "kernel",
                                           NULL};
    mrl_state *state = mrl_py_state(module);
    rope_given given = ROPE_GIVEN;
    mrl_attention_args attention = {0};
    PyObject *bound = NULL, *scale_given = Py_None, *y;
    const char *kernel = NULL;
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    mrl_view view;
    mrl_kv kv;
    double scale;
    int sequence = 0;

    if (!MRL_PARSE(args, kwargs, "OOOOOO|$OOOOOOOpppOz:attention", keywords, &given.qkv, &given.cache, &given.layer,
                   &given.positions, &given.slots, &given.freq, &given.heads, &bound, &given.q_norm, &given.k_norm,
                   &given.eps, &scale_given, &given.rope_scale, &given.interleaved, &given.gated, &sequence,
                   &given.dtype, &kernel) ||
        parse_rope(state, &given, "attention", &kv, &attention.rope, &dtype) < 0 ||
        mrl_py_missing(bound, "attention", "bound") < 0 ||
        mrl_py_u32(bound, "attention: bound", 1, kv.context, &attention.bound) < 0 ||
        parse_kernel(kernel, &attention.kernel) < 0)
        return NULL;
    scale = 1 / sqrt(kv.dim);
    if (mrl_py_float(scale_given == Py_None ? NULL : scale_given, "attention: scale", -FLT_MAX, FLT_MAX, &scale) < 0 ||
        (y = result(state, &given, &kv, &attention.rope, "attention", dtype, &view)) == NULL)
        return NULL;
    attention.scale = (float)scale;
    attention.sequence = sequence != 0;
    MRL_NOGIL(rc = mrl_attention(&kv, &attention, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(state, &err);
    }
    return y;
}

static PyMethodDef functions[] = {
    {"rms_norm", (PyCFunction)(void (*)(void))module_rms_norm, METH_VARARGS | METH_KEYWORDS,
     "rms_norm(x, weight, eps, *, residual=None, dtype=None)\n--\n\n"
     "y = s / sqrt(mean(s^2) + eps) * weight over the last axis, s = x; with residual s = x + "
     "residual and "
     "(y, s) is returned, s in residual's dtype."},
    {"rope", (PyCFunction)(void (*)(void))module_rope, METH_VARARGS | METH_KEYWORDS,
     "rope(qkv, cache, layer, positions, slots, freq, *, heads, q_norm=None, k_norm=None, "
     "eps=1e-06, "
     "rope_scale=1.0, interleaved=False, gated=False, dtype=None)\n--\n\n"
     "Rotated q (rows, heads * dim) of qkv (rows, (heads + 2 kv_heads) * dim); k (rotated) and v "
     "go to the cache at "
     "(slots[row], positions[row]). A row with position < 0 gives zeros and writes nothing. gated: a gate of "
     "dim follows each head of q, and is skipped."},
    {"attention", (PyCFunction)(void (*)(void))module_attention, METH_VARARGS | METH_KEYWORDS,
     "attention(qkv, cache, layer, positions, slots, freq, *, heads, bound, q_norm=None, "
     "k_norm=None, eps=1e-06, "
     "scale=None, rope_scale=1.0, interleaved=False, gated=False, sequence=False, dtype=None, "
     "kernel=None)\n--\n\n"
     "rope(...), then attention of each row over positions 0 .. positions[row] of its slot -> "
     "(rows, heads * dim). "
     "bound: positions + 1 stays within it. sequence: all rows are of one slot, at consecutive "
     "positions. gated: a gate of dim follows each head of q in qkv; its sigmoid multiplies what the head gives."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_attention_add(PyObject *module, mrl_state *state)
{
    if (mrl_py_add_type(module, &KVCache_spec, &state->KVCache) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
