/* TrellisLinear: EXL3 weights, and the function hadamard. */
#include "py/pymrl.h"

#include <stdio.h>
#include <string.h>

#include "push.h"

#include "engine/linear.h"
#include "engine/trellis_linear.h"

typedef struct {
    MRL_PY_HEAD
    mrl_trellis_linear *linear; /* its memory is ordered by the stream, its bias has a lock */
} mrl_py_trellis;

struct mrl_trellis_linear *mrl_py_trellis_of(PyObject *trellis)
{
    return ((mrl_py_trellis *)trellis)->linear;
}

static const mrl_trellis *weight_of(PyObject *obj)
{
    return mrl_trellis_linear_weight(((mrl_py_trellis *)obj)->linear);
}

static PyObject *TrellisLinear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "n", "k", "bits", "codebook", "experts", "memory", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    mrl_trellis_config config = {.codebook = "mul1", .experts = 1};
    PyObject *device, *n, *k, *bits, *experts = NULL;
    const char *memory = "device";
    mrl_trellis_linear *linear;
    mrl_py_trellis *self;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "OOOO|sO$s:TrellisLinear", keywords, &device, &n, &k, &bits, &config.codebook,
                   &experts, &memory) ||
        mrl_py_memory(memory, "TrellisLinear", &config.memory) < 0 ||
        (dev = mrl_py_device(state, device, "TrellisLinear: device")) == NULL ||
        mrl_py_u32(n, "TrellisLinear: n", 1, MRL_LINEAR_N_MAX, &config.n) < 0 ||
        mrl_py_u32(k, "TrellisLinear: k", 1, MRL_LINEAR_K_MAX, &config.k) < 0 ||
        mrl_py_float(bits, "TrellisLinear: bits", 1, 8, &config.bits) < 0 ||
        mrl_py_u32(experts, "TrellisLinear: experts", 1, MRL_MOE_EXPERTS_MAX, &config.experts) < 0)
        return NULL;
    MRL_NOGIL(rc = mrl_trellis_linear_create(dev, &config, &linear, &err));
    if (rc != MRL_OK) return mrl_raise(state, &err);
    self = mrl_py_alloc(type, state, device);
    if (self == NULL)
        mrl_trellis_linear_free(linear);
    else
        self->linear = linear;
    return (PyObject *)self;
}

static void TrellisLinear_dealloc(PyObject *obj)
{
    mrl_py_dealloc_begin(obj);
    mrl_trellis_linear_free(((mrl_py_trellis *)obj)->linear);
    mrl_py_dealloc_end(obj);
}

/* ---- loading ---- */

/* The number of one of the matrices; absent: 0. */
static int parse_expert(PyObject *obj, PyObject *arg, uint32_t *out)
{
    *out = 0;
    return mrl_py_u32(arg, "trellis: expert", 0, weight_of(obj)->experts - 1, out);
}

static PyObject *load(PyObject *obj, PyObject *expert, const mrl_source *source)
{
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    uint32_t number;
    mrl_error err;
    mrl_status rc;

    if (mrl_py_device(self->state, self->device, "trellis") == NULL || parse_expert(obj, expert, &number) < 0)
        return NULL;
    MRL_NOGIL(rc = mrl_trellis_linear_load(self->linear, number, source, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *TrellisLinear_load_trellis(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"path", "offset", "nbytes", "expert", NULL};
    PyObject *path, *offset, *nbytes, *expert = NULL, *result = NULL;
    mrl_source source = {0};

    if (!MRL_PARSE(args, kwargs, "O&OO|O:load_trellis", keywords, PyUnicode_FSConverter, &path, &offset, &nbytes,
                   &expert))
        return NULL;
    source.path = PyBytes_AsString(path);
    if (source.path != NULL && mrl_py_u64(offset, "trellis: offset", 0, INT64_MAX, &source.offset) == 0 &&
        mrl_py_u64(nbytes, "trellis: nbytes", 0, INT64_MAX, &source.bytes) == 0)
        result = load(obj, expert, &source);
    Py_DECREF(path);
    return result;
}

static PyObject *TrellisLinear_set_trellis(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"data", "expert", NULL};
    PyObject *data, *expert = NULL, *result;
    mrl_source source = {0};
    Py_buffer buffer;

    if (!MRL_PARSE(args, kwargs, "O|O:set_trellis", keywords, &data, &expert) ||
        mrl_py_buffer(data, "trellis: data", &buffer) < 0)
        return NULL;
    source.data = buffer.buf;
    source.bytes = (uint64_t)buffer.len;
    result = load(obj, expert, &source);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *TrellisLinear_read_trellis(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"expert", NULL};
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    PyObject *bytes, *expert = NULL;
    uint32_t number;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "|O:read_trellis", keywords, &expert) || parse_expert(obj, expert, &number) < 0 ||
        mrl_py_device(self->state, self->device, "trellis") == NULL)
        return NULL;
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)mrl_trellis_bytes(weight_of(obj)));
    if (bytes == NULL) return NULL;
    void *data = PyBytes_AsString(bytes); /* nobody else has seen this object yet */
    MRL_NOGIL(rc = mrl_trellis_linear_read(self->linear, number, data, &err));
    if (rc != MRL_OK) {
        Py_DECREF(bytes);
        return mrl_raise(self->state, &err);
    }
    return bytes;
}

static PyObject *TrellisLinear_set_scales(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"suh", "svh", "expert", NULL};
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    PyObject *given[2], *expert = NULL;
    uint32_t number;
    Py_buffer buffer;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "OO|O:set_scales", keywords, &given[0], &given[1], &expert) ||
        mrl_py_device(self->state, self->device, "trellis") == NULL || parse_expert(obj, expert, &number) < 0)
        return NULL;
    for (int i = 0; i < 2; i++) {
        if (mrl_py_buffer(given[i], i ? "trellis: svh" : "trellis: suh", &buffer) < 0) return NULL;
        MRL_NOGIL(rc = mrl_trellis_linear_set_scales(self->linear, number, i == 1, buffer.buf, (uint64_t)buffer.len,
                                                     &err));
        PyBuffer_Release(&buffer);
        if (rc != MRL_OK) return mrl_raise(self->state, &err);
    }
    Py_RETURN_NONE;
}

static PyObject *TrellisLinear_set_bias(PyObject *obj, PyObject *arg)
{
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    mrl_error err;
    mrl_status rc;
    mrl_view bias;

    if (mrl_py_view(self->state, arg, "set_bias: bias", true, &bias) < 0) return NULL;
    MRL_NOGIL(rc = mrl_trellis_linear_set_bias(self->linear, &bias, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

/* ---- use ---- */

/* x (m, k) or (k), else ValueError or TypeError. */
static int check_x(const mrl_view *x, uint32_t k)
{
    char got[192];
    if (x->ndim <= 2 && x->shape[x->ndim - 1] == k && mrl_dtype_is_float(x->dtype)) return 0;
    PyErr_Format(mrl_dtype_is_float(x->dtype) ? PyExc_ValueError : PyExc_TypeError,
                 "trellis: x must be (rows, %u) or (%u) f32|f16|bf16, got %s", (unsigned int)k, (unsigned int)k,
                 mrl_view_text(x, got, sizeof got));
    return -1;
}

static PyObject *TrellisLinear_call(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x",   "norm",   "eps",         "activation", "gate",   "residual", "dtype",
                                           "out", "column", "activations", "kernel",     "expert", "shares",   "total",
                                           NULL};
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    const mrl_trellis *t = weight_of(obj);
    mrl_trellis_args call = {.t = t};
    PyObject *x, *norm = NULL, *eps = NULL, *gate = NULL, *residual = NULL, *dtype = NULL, *out = NULL, *column = NULL;
    PyObject *expert = NULL, *total = NULL;
    const char *activation = NULL, *activations = NULL;
    double eps_value = 1e-6;
    mrl_shares open;
    mrl_dtype result;
    int shares = 0;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;
    PyObject *y;

    if (!MRL_PARSE(args, kwargs, "O|$OOzOOOOOzzOpO:TrellisLinear", keywords, &x, &norm, &eps, &activation, &gate,
                   &residual, &dtype, &out, &column, &activations, &call.kernel, &expert, &shares, &total) ||
        (dev = mrl_py_device(self->state, self->device, "trellis")) == NULL ||
        mrl_py_view_or_shares(self->state, x, "trellis: x", &call.x, &call.x_shares, &call.base) < 0 ||
        mrl_py_view(self->state, total, "trellis: total", true, &call.total) < 0 ||
        mrl_py_view(self->state, norm, "trellis: norm", true, &call.norm) < 0 ||
        mrl_py_view(self->state, gate, "trellis: gate", true, &call.gate) < 0 ||
        mrl_py_view(self->state, residual, "trellis: residual", true, &call.residual) < 0 ||
        mrl_py_float(eps, "trellis: eps", 0, 1, &eps_value) < 0 ||
        mrl_py_u32(column, "trellis: column", 0, MRL_LINEAR_N_MAX, &call.y_column) < 0 ||
        mrl_py_activation(activation, "TrellisLinear", &call.activation) < 0 ||
        mrl_py_int8(activations, "trellis", &call.int8) < 0 ||
        parse_expert(obj, expert, &call.expert) < 0 || check_x(&call.x, t->k) < 0)
        return NULL;
    result = call.residual.buffer != NULL ? MRL_DTYPE_f32
             : call.norm.buffer != NULL   ? MRL_DTYPE_f16
                                          : call.x.dtype;
    if (mrl_py_dtype(dtype, "trellis: dtype", result, &result) < 0) return NULL;
    uint64_t shape[2] = {call.x.shape[0], t->n};
    int ndim = call.x.ndim;
    call.eps = (float)eps_value;
    mrl_py_as_rows(&call.gate);
    mrl_py_as_rows(&call.residual);
    MRL_NOGIL(call.bias = mrl_trellis_linear_bias(self->linear));
    if (shares && out == NULL && mrl_trellis_shares(dev, &call) > 0) {
        call.open = &open;
        call.y = (mrl_view){.dtype = MRL_DTYPE_f32, .ndim = 2, .shape = {1, t->n}};
        MRL_NOGIL(rc = mrl_op_trellis(dev, &call, &err));
        mrl_buffer_release(call.bias.buffer);
        if (rc != MRL_OK) return mrl_raise(self->state, &err);
        return mrl_py_shares_new(self->state, self->device, &open, t->n, &call.residual);
    }
    y = mrl_py_tensor_out(self->state, self->device, out, "trellis: out", result, ndim, shape + 2 - ndim, &call.y);
    if (y == NULL) {
        mrl_buffer_release(call.bias.buffer);
        return NULL;
    }
    mrl_py_as_rows(&call.x);
    mrl_py_as_rows(&call.y);
    MRL_NOGIL({
        rc = mrl_op_trellis(dev, &call, &err);
        mrl_buffer_release(call.bias.buffer);
    });
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(self->state, &err);
    }
    return y;
}

static PyObject *decoded(PyObject *obj, bool inner, mrl_dtype dtype, uint32_t expert)
{
    mrl_py_trellis *self = (mrl_py_trellis *)obj;
    const mrl_trellis *t = weight_of(obj);
    uint64_t shape[2] = {inner ? t->k_padded : t->k, inner ? t->n_padded : t->n};
    mrl_device *dev = mrl_py_device(self->state, self->device, "trellis");
    mrl_error err;
    mrl_status rc;
    mrl_view view;
    PyObject *y;

    if (dev == NULL) return NULL;
    y = mrl_py_tensor_out(self->state, self->device, NULL, "", dtype, 2, shape, &view);
    if (y == NULL) return NULL;
    MRL_NOGIL(rc = inner ? mrl_op_trellis_inner(dev, t, expert, &view, &err)
                         : mrl_op_trellis_dequantize(dev, t, expert, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(self->state, &err);
    }
    return y;
}

static PyObject *TrellisLinear_inner(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"expert", NULL};
    PyObject *expert = NULL;
    uint32_t number;

    if (!MRL_PARSE(args, kwargs, "|O:inner", keywords, &expert) || parse_expert(obj, expert, &number) < 0)
        return NULL;
    return decoded(obj, true, MRL_DTYPE_f16, number);
}

static PyObject *TrellisLinear_dequantize(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"dtype", "expert", NULL};
    PyObject *dtype = NULL, *expert = NULL;
    mrl_dtype result;
    uint32_t number;

    if (!MRL_PARSE(args, kwargs, "|OO:dequantize", keywords, &dtype, &expert) ||
        parse_expert(obj, expert, &number) < 0 ||
        mrl_py_dtype(dtype, "dequantize: dtype", MRL_DTYPE_f32, &result) < 0)
        return NULL;
    return decoded(obj, false, result, number);
}

/* ---- attributes ---- */

static PyObject *TrellisLinear_get_n(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->n);
}

static PyObject *TrellisLinear_get_k(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->k);
}

static PyObject *TrellisLinear_get_bits(PyObject *obj, void *unused)
{
    (void)unused;
    return PyFloat_FromDouble(weight_of(obj)->rate2 / 2.0);
}

static PyObject *TrellisLinear_get_codebook(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mrl_codebook_name(weight_of(obj)->codebook));
}

static PyObject *TrellisLinear_get_experts(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->experts);
}

static PyObject *TrellisLinear_get_nbytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(mrl_trellis_linear_bytes(((mrl_py_trellis *)obj)->linear));
}

static PyObject *TrellisLinear_repr(PyObject *obj)
{
    const mrl_trellis *t = weight_of(obj);
    char bits[16];
    PyOS_snprintf(bits, sizeof bits, "%g", t->rate2 / 2.0);
    return PyUnicode_FromFormat("<TrellisLinear (%u, %u) %s bits, %s>", (unsigned int)t->n, (unsigned int)t->k, bits,
                                mrl_codebook_name(t->codebook));
}

/* ---- hadamard ---- */

static PyObject *module_hadamard(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x", "scales", "dtype", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *x, *scales = NULL, *dtype = NULL, *device, *y;
    mrl_view x_view, scales_view, view;
    mrl_dtype result;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|OO:hadamard", keywords, &x, &scales, &dtype) ||
        mrl_py_view(state, x, "hadamard: x", false, &x_view) < 0 ||
        mrl_py_view(state, scales, "hadamard: scales", true, &scales_view) < 0 ||
        mrl_py_dtype(dtype, "hadamard: dtype", MRL_DTYPE_f32, &result) < 0)
        return NULL;
    device = mrl_py_device_of(x);
    if ((dev = mrl_py_device(state, device, "hadamard")) == NULL) return NULL;
    y = mrl_py_tensor_out(state, device, NULL, "", result, x_view.ndim, x_view.shape, &view);
    if (y == NULL) return NULL;
    MRL_NOGIL(rc = mrl_op_hadamard(dev, &x_view, &scales_view, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(state, &err);
    }
    return y;
}

/* The place of a name among `count`; -1 with a Python error that lists them. */
static int place_of(const char *name, const char *what, const char *const *names, int count)
{
    char all[96] = "";

    for (int i = 0; i < count; i++) {
        if (strcmp(name, names[i]) == 0) return i;
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", names[i]);
    }
    PyErr_Format(PyExc_ValueError, "trellis_rate: %s must be one of %s, got %s", what, all, name);
    return -1;
}

static PyObject *module_trellis_rate(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"out", "bits", "codebook", "way", "rounds", NULL};
    static const char *const ways[MRL_WAYS] = {"states", "f32", "pairs", "apart", "int8"};
    mrl_state *state = mrl_py_state(module);
    const char *codebook_name, *way_name;
    const char *codebooks[MRL_CODEBOOK_COUNT];
    PyObject *out, *bits_arg, *rounds_arg = NULL;
    uint32_t rounds = 1;
    mrl_view view;
    double bits;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    for (int i = 0; i < MRL_CODEBOOK_COUNT; i++) codebooks[i] = mrl_codebook_name((mrl_codebook)i);
    if (!MRL_PARSE(args, kwargs, "OOss|O:trellis_rate", keywords, &out, &bits_arg, &codebook_name, &way_name,
                   &rounds_arg) ||
        mrl_py_view(state, out, "trellis_rate: out", false, &view) < 0 ||
        mrl_py_float(bits_arg, "trellis_rate: bits", 1, 8, &bits) < 0 ||
        mrl_py_u32(rounds_arg, "trellis_rate: rounds", 1, 1u << 20, &rounds) < 0)
        return NULL;
    if (2 * bits != (double)(uint32_t)(2 * bits)) {
        PyErr_Format(PyExc_ValueError, "trellis_rate: bits must be 1 to 8 by halves, got %R", bits_arg);
        return NULL;
    }
    const int codebook = place_of(codebook_name, "codebook", codebooks, MRL_CODEBOOK_COUNT);
    const int way = codebook < 0 ? -1 : place_of(way_name, "way", ways, MRL_WAYS);
    if (way < 0 || (dev = mrl_py_device(state, mrl_py_device_of(out), "trellis_rate")) == NULL) return NULL;
    MRL_NOGIL(rc = mrl_op_trellis_rate(dev, (uint32_t)(2 * bits), (mrl_codebook)codebook, (mrl_trellis_way)way, rounds,
                                       &view, &err));
    if (rc != MRL_OK) return mrl_raise(state, &err);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef TrellisLinear_methods[] = {
    {"load_trellis", WITH_KEYWORDS(TrellisLinear_load_trellis),
     "load_trellis($self, path, offset, nbytes, expert=0)\n--\n\n"
     "The packed codes (k / 16, n / 16, 16 * bits) u16 of the padded sizes, from a file; repacked on the device.\n"
     "Raises OSError, ModelFormatError when the file is too short, ValueError when the bytes are not as many."},
    {"set_trellis", WITH_KEYWORDS(TrellisLinear_set_trellis),
     "set_trellis($self, data, expert=0)\n--\n\nAs load_trellis, from a buffer."},
    {"read_trellis", WITH_KEYWORDS(TrellisLinear_read_trellis),
     "read_trellis($self, expert=0)\n--\n\nThe packed codes as they were loaded, bit for bit."},
    {"set_scales", WITH_KEYWORDS(TrellisLinear_set_scales),
     "set_scales($self, suh, svh, expert=0)\n--\n\n"
     "Scales with signs of the input (k padded to 128) and output (n padded) channels, buffers of f16.\n"
     "Raises ValueError for another length, inf and nan."},
    {"set_bias", TrellisLinear_set_bias, METH_O,
     "set_bias($self, bias, /)\n--\n\nA Tensor (n) f32 that calls add from now on, not copied; None takes it away."},
    {"inner", WITH_KEYWORDS(TrellisLinear_inner),
     "inner($self, expert=0)\n--\n\n"
     "The decoded matrix (k, n) f16 of the padded sizes, between the two transforms; exact."},
    {"dequantize", WITH_KEYWORDS(TrellisLinear_dequantize),
     "dequantize($self, dtype='f32', expert=0)\n--\n\nThe weight (k, n) as it multiplies: y = x W."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef TrellisLinear_getset[] = {
    {"n", TrellisLinear_get_n, NULL, "outputs", NULL},
    {"k", TrellisLinear_get_k, NULL, "inputs", NULL},
    {"bits", TrellisLinear_get_bits, NULL, "bits a weight", NULL},
    {"codebook", TrellisLinear_get_codebook, NULL, "3inst, mcg or mul1", NULL},
    {"experts", TrellisLinear_get_experts, NULL, "matrices of this size; 1 for an ordinary layer", NULL},
    {"nbytes", TrellisLinear_get_nbytes, NULL, "bytes of the trellis and the scales", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot TrellisLinear_slots[] = {
    {Py_tp_new, TrellisLinear_new},
    {Py_tp_dealloc, TrellisLinear_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, TrellisLinear_repr},
    {Py_tp_call, TrellisLinear_call},
    {Py_tp_methods, TrellisLinear_methods},
    {Py_tp_getset, TrellisLinear_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc, "TrellisLinear(device, n, k, bits, codebook='mul1', experts=1, *, memory='device')\n--\n\n"
                "A linear layer of EXL3 trellis weights, zeros at first. Calling it gives\n"
                "y = epilogue(norm(x) W + bias): x (m, k) or (k) -> (m, n) or (n). "
                "experts: matrices of this size that lie one\n"
                "behind the other, for MoE; every method works on one of them. memory 'host': the weights lie in host\n"
                "memory, and kernels read them over the bus. "
                "shares: the result of one row is left in Shares where that saves\n"
                "a wait. x may be Shares with a base; total is where the sum goes."},
    {0, NULL},
};

static PyType_Spec TrellisLinear_spec = {
    .name = "marlin._C.TrellisLinear",
    .basicsize = sizeof(mrl_py_trellis),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = TrellisLinear_slots,
};

static PyMethodDef functions[] = {
    {"hadamard", WITH_KEYWORDS(module_hadamard),
     "hadamard(x, scales=None, dtype='f32')\n--\n\n"
     "(x * scales) P with P of orthonormal 128 x 128 Hadamard blocks: x (rows, k), scales (k) f16, k a multiple of\n"
     "128. To f16 the product is rounded before the transform, as ExLlamaV3 does; to f32 nothing is."},
    {"trellis_rate", WITH_KEYWORDS(module_trellis_rate),
     "trellis_rate(out, bits, codebook, way, rounds=1)\n--\n\n"
     "For benchmarks: each of out's elements (f32, a multiple of 128) becomes "
     "the sum of `rounds` times 32 products of\n"
     "weights decoded from registers; shaders/trellis/rate.comp says which. "
     "way: states (no products), f32, pairs, apart\n"
     "(3inst and mcg) or int8 (mul1). bits: 1 to 8 by halves. Raises DeviceError without the features that it needs."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_trellis_add(PyObject *module, mrl_state *state)
{
    if (PyModule_AddFunctions(module, functions) < 0) return -1;
    return mrl_py_add_type(module, &TrellisLinear_spec, &state->TrellisLinear);
}
