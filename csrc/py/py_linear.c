/* Linear: weights in a format, loaded from files or host memory, and the calls that use them. */
#include "py/pymrl.h"

#include <stdlib.h>
#include <string.h>

#include "engine/linear.h"
#include "ops/embedding.h"
#include "ops/matmul.h"

typedef struct {
    MRL_PY_HEAD
    mrl_linear *linear; /* its planes are ordered by the stream, its bias has a lock */
} mrl_py_linear;

struct mrl_linear *mrl_py_linear_of(PyObject *linear)
{
    return ((mrl_py_linear *)linear)->linear;
}

static const mrl_weight *weight_of(PyObject *obj)
{
    return mrl_linear_weight(((mrl_py_linear *)obj)->linear);
}

int mrl_py_weight(const mrl_state *state, PyObject *obj, const char *name, const mrl_weight **out)
{
    if (!Py_IS_TYPE(obj, state->Linear)) return mrl_py_wrong_type(name, "a Linear", obj);
    *out = weight_of(obj);
    return 0;
}

/* The name of the scales' type, or NULL. */
static const char *scale_of(PyObject *obj)
{
    mrl_plane plane;
    bool has = mrl_linear_plane(((mrl_py_linear *)obj)->linear, "scale", &plane, NULL) == MRL_OK;
    return has ? plane.type : NULL;
}

/* ---- life
 * -------------------------------------------------------------------------------------------- */

int mrl_py_memory(const char *name, const char *what, mrl_memory_kind *out)
{
    *out = strcmp(name, "host") == 0 ? MRL_MEMORY_HOST : MRL_MEMORY_DEVICE;
    if (*out == MRL_MEMORY_HOST || strcmp(name, "device") == 0) return 0;
    PyErr_Format(PyExc_ValueError, "%s: memory must be device or host, got '%s'", what, name);
    return -1;
}

static PyObject *Linear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {
        "device", "n", "k", "format", "group", "scale", "zero", "global_scale", "memory", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    mrl_linear_config config = {.format = "f16", .group = -1};
    PyObject *device, *n, *k, *group = Py_None, *global_scale = NULL;
    int64_t group_value = -1;
    double global_value = 1.0;
    const char *memory = "device";
    int zero = 0;
    mrl_linear *linear;
    mrl_py_linear *self;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "OOO|s$OzpOs:Linear", keywords, &device, &n, &k, &config.format,
                   &group, &config.scale, &zero, &global_scale, &memory) ||
        mrl_py_memory(memory, "Linear", &config.memory) < 0 ||
        (dev = mrl_py_device(state, device, "Linear: device")) == NULL ||
        mrl_py_u32(n, "Linear: n", 1, MRL_LINEAR_N_MAX, &config.n) < 0 ||
        mrl_py_u32(k, "Linear: k", 1, MRL_LINEAR_K_MAX, &config.k) < 0 ||
        mrl_py_int(group == Py_None ? NULL : group, "Linear: group", 0, 256, &group_value) < 0 ||
        mrl_py_float(global_scale, "Linear: global_scale", 0x1p-126, 0x1p126, &global_value) < 0)
        return NULL;
    config.group = (int)group_value;
    config.zero = zero;
    config.global_scale = (float)global_value;
    MRL_NOGIL(rc = mrl_linear_create(dev, &config, &linear, &err));
    if (rc != MRL_OK) return mrl_raise(state, &err);
    self = mrl_py_alloc(type, state, device);
    if (self == NULL)
        mrl_linear_free(linear);
    else
        self->linear = linear;
    return (PyObject *)self;
}

static void Linear_dealloc(PyObject *obj)
{
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_linear_free(((mrl_py_linear *)obj)->linear)); /* large memory waits for the GPU */
    mrl_py_dealloc_end(obj);
}

/* ---- loading
 * ----------------------------------------------------------------------------------------- */

/* The arguments that all loaders share; `source` is filled but for where the bytes are. */
typedef struct load_args {
    const char *plane; /* NULL: dense rows */
    const char *dtype;
    PyObject *rows, *row_start, *row_stride;
} load_args;

static PyObject *load(PyObject *obj, const load_args *args, mrl_source *source)
{
    mrl_py_linear *self = (mrl_py_linear *)obj;
    mrl_rows rows = {.count = 0, .start = 0, .stride = 1};
    mrl_error err;
    mrl_status rc;

    source->dtype = args->dtype;
    if (mrl_py_device(self->state, self->device, "linear") == NULL ||
        mrl_py_u32(args->rows, "linear: rows", 1, MRL_LINEAR_N_MAX, &rows.count) < 0 ||
        mrl_py_u32(args->row_start, "linear: row_start", 0, MRL_LINEAR_N_MAX, &rows.start) < 0 ||
        mrl_py_u32(args->row_stride, "linear: row_stride", 1, MRL_LINEAR_N_MAX, &rows.stride) < 0)
        return NULL;
    MRL_NOGIL(rc = args->plane == NULL
                       ? mrl_linear_load_rows(self->linear, source, &rows, &err)
                       : mrl_linear_load_plane(self->linear, args->plane, source, &rows, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *load_file(PyObject *obj, const load_args *args, PyObject *path, PyObject *offset,
                           PyObject *nbytes)
{
    mrl_source source = {0};
    PyObject *result = NULL;

    source.path = PyBytes_AsString(path);
    if (source.path != NULL &&
        mrl_py_u64(offset, "linear: offset", 0, INT64_MAX, &source.offset) == 0 &&
        mrl_py_u64(nbytes, "linear: nbytes", 0, INT64_MAX, &source.bytes) == 0)
        result = load(obj, args, &source);
    Py_DECREF(path);
    return result;
}

static PyObject *load_memory(PyObject *obj, const load_args *args, PyObject *data)
{
    mrl_source source = {0};
    PyObject *result;
    Py_buffer buffer;

    if (mrl_py_buffer(data, "linear: data", &buffer) < 0) return NULL;
    source.data = buffer.buf;
    source.bytes = (uint64_t)buffer.len;
    result = load(obj, args, &source);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *Linear_load_rows(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"path", "offset",    "nbytes",     "dtype",
                                           "rows", "row_start", "row_stride", NULL};
    load_args load = {0};
    PyObject *path, *offset, *nbytes;
    if (!MRL_PARSE(args, kwargs, "O&OOsO|$OO:load_rows", keywords, PyUnicode_FSConverter, &path,
                   &offset, &nbytes, &load.dtype, &load.rows, &load.row_start, &load.row_stride))
        return NULL;
    return load_file(obj, &load, path, offset, nbytes);
}

static PyObject *Linear_set_rows(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"data",      "dtype",      "rows",
                                           "row_start", "row_stride", NULL};
    load_args load = {0};
    PyObject *data;
    if (!MRL_PARSE(args, kwargs, "OsO|$OO:set_rows", keywords, &data, &load.dtype, &load.rows,
                   &load.row_start, &load.row_stride))
        return NULL;
    return load_memory(obj, &load, data);
}

static PyObject *Linear_load_plane(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"plane", "path",      "offset",     "nbytes", "dtype",
                                           "rows",  "row_start", "row_stride", NULL};
    load_args load = {0};
    PyObject *path, *offset, *nbytes;
    if (!MRL_PARSE(args, kwargs, "sO&OOsO|$OO:load_plane", keywords, &load.plane,
                   PyUnicode_FSConverter, &path, &offset, &nbytes, &load.dtype, &load.rows,
                   &load.row_start, &load.row_stride))
        return NULL;
    return load_file(obj, &load, path, offset, nbytes);
}

static PyObject *Linear_set_plane(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"plane",     "data",       "dtype", "rows",
                                           "row_start", "row_stride", NULL};
    load_args load = {0};
    PyObject *data;
    if (!MRL_PARSE(args, kwargs, "sOsO|$OO:set_plane", keywords, &load.plane, &data, &load.dtype,
                   &load.rows, &load.row_start, &load.row_stride))
        return NULL;
    return load_memory(obj, &load, data);
}

static PyObject *Linear_repeat_rows(PyObject *obj, PyObject *arg)
{
    mrl_py_linear *self = (mrl_py_linear *)obj;
    uint32_t count;
    mrl_error err;
    mrl_status rc;

    if (mrl_py_device(self->state, self->device, "linear") == NULL ||
        mrl_py_u32(arg, "repeat_rows: count", 1, weight_of(obj)->n, &count) < 0)
        return NULL;
    MRL_NOGIL(rc = mrl_linear_repeat_rows(self->linear, count, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *Linear_read_plane(PyObject *obj, PyObject *arg)
{
    mrl_py_linear *self = (mrl_py_linear *)obj;
    const char *name;
    PyObject *bytes;
    mrl_plane plane;
    mrl_error err;
    mrl_status rc;

    if (!PyUnicode_Check(arg)) {
        mrl_py_wrong_type("read_plane: plane", "a name", arg);
        return NULL;
    }
    if ((name = PyUnicode_AsUTF8AndSize(arg, NULL)) == NULL ||
        mrl_py_device(self->state, self->device, "linear") == NULL)
        return NULL;
    if (mrl_linear_plane(self->linear, name, &plane, &err) != MRL_OK)
        return mrl_raise(self->state, &err);
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)plane.bytes);
    if (bytes == NULL) return NULL;
    void *data = PyBytes_AsString(bytes); /* nobody else has seen this object yet */
    MRL_NOGIL(rc = mrl_linear_read_plane(self->linear, name, data, &err));
    if (rc != MRL_OK) {
        Py_DECREF(bytes);
        return mrl_raise(self->state, &err);
    }
    return bytes;
}

static PyObject *Linear_set_bias(PyObject *obj, PyObject *arg)
{
    mrl_py_linear *self = (mrl_py_linear *)obj;
    mrl_error err;
    mrl_status rc;
    mrl_view bias;

    if (mrl_py_view(self->state, arg, "set_bias: bias", true, &bias) < 0) return NULL;
    MRL_NOGIL(rc = mrl_linear_set_bias(self->linear, &bias, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

/* ---- use
 * --------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    mrl_activation value;
} activations[] = {
    {"silu", MRL_ACTIVATION_SILU},           {"gelu", MRL_ACTIVATION_GELU},
    {"gelu_tanh", MRL_ACTIVATION_GELU_TANH}, {"swiglu", MRL_ACTIVATION_SWIGLU},
    {"geglu", MRL_ACTIVATION_GEGLU},         {"geglu_tanh", MRL_ACTIVATION_GEGLU_TANH},
};

int mrl_py_int8(const char *name, const char *what, bool *int8)
{
    *int8 = name != NULL && strcmp(name, "int8") == 0;
    if (name == NULL || *int8 || strcmp(name, "f16") == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: activations must be f16 or int8, got '%s'", what, name);
    return -1;
}

int mrl_py_activation(const char *name, const char *what, mrl_activation *out)
{
    *out = MRL_ACTIVATION_NONE;
    if (name == NULL) return 0;
    for (size_t i = 0; i < sizeof activations / sizeof activations[0]; i++)
        if (strcmp(activations[i].name, name) == 0) {
            *out = activations[i].value;
            return 0;
        }
    PyErr_Format(PyExc_ValueError,
                 "%s: activation must be None, silu, gelu, gelu_tanh, swiglu, geglu or "
                 "geglu_tanh, got '%s'",
                 what, name);
    return -1;
}

static PyObject *Linear_call(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x",     "norm", "eps",    "activation", "residual",
                                           "dtype", "out",  "kernel", NULL};
    mrl_py_linear *self = (mrl_py_linear *)obj;
    const mrl_weight *w = weight_of(obj);
    mrl_matmul_args call = {.w = w};
    PyObject *x, *norm = NULL, *eps = NULL, *residual = NULL, *dtype = NULL, *out = NULL, *y;
    const char *activation = NULL;
    double eps_value = 1e-6;
    mrl_dtype result;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|$OOzOOOz:Linear", keywords, &x, &norm, &eps, &activation,
                   &residual, &dtype, &out, &call.kernel) ||
        (dev = mrl_py_device(self->state, self->device, "linear")) == NULL ||
        mrl_py_view(self->state, x, "linear: x", false, &call.x) < 0 ||
        mrl_py_view(self->state, norm, "linear: norm", true, &call.norm) < 0 ||
        mrl_py_view(self->state, residual, "linear: residual", true, &call.residual) < 0 ||
        mrl_py_float(eps, "linear: eps", 0, 1, &eps_value) < 0 ||
        mrl_py_activation(activation, "linear", &call.activation) < 0)
        return NULL;
    bool gated = mrl_activation_gated(call.activation);
    if (gated && w->n % 2 != 0) {
        PyErr_Format(PyExc_ValueError, "linear: %s takes an even number of rows of W, it has %u",
                     activation, (unsigned int)w->n);
        return NULL;
    }
    if (call.x.ndim > 2 || call.x.shape[call.x.ndim - 1] != w->k ||
        !mrl_dtype_is_float(call.x.dtype)) {
        char got[192];
        PyErr_Format(mrl_dtype_is_float(call.x.dtype) ? PyExc_ValueError : PyExc_TypeError,
                     "linear: x must be (rows, %u) or (%u) f32|f16|bf16, got %s",
                     (unsigned int)w->k, (unsigned int)w->k,
                     mrl_view_text(&call.x, got, sizeof got));
        return NULL;
    }
    result = call.residual.buffer != NULL ? MRL_DTYPE_f32
             : call.norm.buffer != NULL   ? MRL_DTYPE_f16
                                          : call.x.dtype;
    if (mrl_py_dtype(dtype, "linear: dtype", result, &result) < 0) return NULL;
    uint64_t columns = gated ? w->n / 2 : w->n, shape[2] = {call.x.shape[0], columns};
    int ndim = call.x.ndim;
    y = mrl_py_tensor_out(self->state, self->device, out, "linear: out", result, ndim,
                          shape + 2 - ndim, &call.y);
    if (y == NULL) return NULL;
    mrl_py_as_rows(&call.x);
    mrl_py_as_rows(&call.y);
    mrl_py_as_rows(&call.residual);
    call.eps = (float)eps_value;
    MRL_NOGIL({
        call.bias = mrl_linear_bias(self->linear);
        rc = mrl_op_matmul(dev, &call, &err);
        mrl_buffer_release(call.bias.buffer);
    });
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(self->state, &err);
    }
    return y;
}

static PyObject *Linear_dequantize(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"dtype", NULL};
    mrl_py_linear *self = (mrl_py_linear *)obj;
    const mrl_weight *w = weight_of(obj);
    uint64_t shape[2] = {w->n, w->k};
    PyObject *dtype = NULL, *y;
    mrl_dtype result;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;
    mrl_view view;

    if (!MRL_PARSE(args, kwargs, "|O:dequantize", keywords, &dtype) ||
        mrl_py_dtype(dtype, "dequantize: dtype", MRL_DTYPE_f32, &result) < 0 ||
        (dev = mrl_py_device(self->state, self->device, "dequantize")) == NULL ||
        (y = mrl_py_tensor_out(self->state, self->device, NULL, "", result, 2, shape, &view)) ==
            NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_op_dequantize(dev, w, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(self->state, &err);
    }
    return y;
}

static PyObject *Linear_embed(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"ids", "dtype", NULL};
    mrl_py_linear *self = (mrl_py_linear *)obj;
    const mrl_weight *w = weight_of(obj);
    PyObject *ids, *dtype = NULL, *y;
    mrl_view ids_view, view;
    mrl_dtype result;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|O:embed", keywords, &ids, &dtype) ||
        mrl_py_dtype(dtype, "embed: dtype", MRL_DTYPE_f32, &result) < 0 ||
        (dev = mrl_py_device(self->state, self->device, "embed")) == NULL ||
        mrl_py_view(self->state, ids, "embed: ids", false, &ids_view) < 0)
        return NULL;
    if (ids_view.ndim != 1) {
        char got[192];
        PyErr_Format(PyExc_ValueError, "embed: ids must be (rows) i32, got %s",
                     mrl_view_text(&ids_view, got, sizeof got));
        return NULL;
    }
    uint64_t shape[2] = {ids_view.shape[0], w->k};
    y = mrl_py_tensor_out(self->state, self->device, NULL, "", result, 2, shape, &view);
    if (y == NULL) return NULL;
    MRL_NOGIL(rc = mrl_op_embedding(dev, w, &ids_view, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(self->state, &err);
    }
    return y;
}

/* ---- attributes
 * -------------------------------------------------------------------------------------- */

static PyObject *Linear_get_n(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->n);
}

static PyObject *Linear_get_k(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->k);
}

static PyObject *Linear_get_format(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mrl_linear_format(((mrl_py_linear *)obj)->linear));
}

static PyObject *Linear_get_group(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(weight_of(obj)->group);
}

static PyObject *Linear_get_scale(PyObject *obj, void *unused)
{
    (void)unused;
    return Py_BuildValue("z", scale_of(obj));
}

static PyObject *Linear_get_zero(PyObject *obj, void *unused)
{
    (void)unused;
    return PyBool_FromLong(weight_of(obj)->has_zero);
}

static PyObject *Linear_get_nbytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(mrl_linear_bytes(((mrl_py_linear *)obj)->linear));
}

static PyObject *Linear_get_global_scale(PyObject *obj, void *unused)
{
    (void)unused;
    return PyFloat_FromDouble((double)weight_of(obj)->global_scale);
}

static PyObject *Linear_get_planes(PyObject *obj, void *unused)
{
    static const char *const names[] = {"quant", "scale", "zero"};
    PyObject *planes = PyDict_New();
    mrl_plane plane;

    (void)unused;
    for (int i = 0; planes != NULL && i < 3; i++) {
        if (mrl_linear_plane(((mrl_py_linear *)obj)->linear, names[i], &plane, NULL) != MRL_OK)
            continue;
        PyObject *value = Py_BuildValue("((II)s)", (unsigned int)plane.rows,
                                        (unsigned int)plane.columns, plane.type);
        if (value == NULL || PyDict_SetItemString(planes, names[i], value) < 0) Py_CLEAR(planes);
        Py_XDECREF(value);
    }
    return planes;
}

static PyObject *Linear_repr(PyObject *obj)
{
    const mrl_weight *w = weight_of(obj);
    const char *format = mrl_linear_format(((mrl_py_linear *)obj)->linear);
    char group[32] = "";

    if (w->scale_type == MRL_SCALE_NONE)
        return PyUnicode_FromFormat("<Linear (%u, %u) %s>", (unsigned int)w->n, (unsigned int)w->k,
                                    format);
    if (w->group != 0) PyOS_snprintf(group, sizeof group, "of %u weights", (unsigned int)w->group);
    return PyUnicode_FromFormat("<Linear (%u, %u) %s, %s scales %s%s>", (unsigned int)w->n,
                                (unsigned int)w->k, format, scale_of(obj),
                                w->group ? group : "of a row", w->has_zero ? ", zero points" : "");
}

/* ---- the type
 * ---------------------------------------------------------------------------------------- */

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef Linear_methods[] = {
    {"load_rows", WITH_KEYWORDS(Linear_load_rows),
     "load_rows($self, path, offset, nbytes, dtype, rows, *, row_start=0, row_stride=1)\n--\n\n"
     "Rows (rows, k) f32, f16 or bf16 of a file, rounded to the format on the device; row i "
     "becomes row\n"
     "row_start + i * row_stride. Raises OSError, ModelFormatError when the file is too short, "
     "ValueError for\n"
     "inf, nan, numbers too large for the format, and sizes that do not agree."},
    {"set_rows", WITH_KEYWORDS(Linear_set_rows),
     "set_rows($self, data, dtype, rows, *, row_start=0, row_stride=1)\n--\n\n"
     "As load_rows, from a buffer."},
    {"load_plane", WITH_KEYWORDS(Linear_load_plane),
     "load_plane($self, plane, path, offset, nbytes, dtype, rows, *, row_start=0, "
     "row_stride=1)\n--\n\n"
     "Rows of one plane, already quantized. quant: u8, i32 or u32 rows of k * bits / 8 bytes (i8 "
     "with int8 adds\n"
     "128); scale: f32, f16 or bf16, or the codes; zero: u8, or i8 about the symmetric zero point. "
     "A scale or\n"
     "zero of one row serves all rows."},
    {"set_plane", WITH_KEYWORDS(Linear_set_plane),
     "set_plane($self, plane, data, dtype, rows, *, row_start=0, row_stride=1)\n--\n\n"
     "As load_plane, from a buffer."},
    {"repeat_rows", Linear_repeat_rows, METH_O,
     "repeat_rows($self, count, /)\n--\n\n"
     "Copies the first rows over all behind them, again and again: random weights made quickly."},
    {"read_plane", Linear_read_plane, METH_O,
     "read_plane($self, plane, /)\n--\n\nThe bytes of a plane in kernel layout (see planes)."},
    {"set_bias", Linear_set_bias, METH_O,
     "set_bias($self, bias, /)\n--\n\nA Tensor (n) f32 that calls add from now on, not copied; None "
     "takes it away."},
    {"dequantize", WITH_KEYWORDS(Linear_dequantize),
     "dequantize($self, dtype='f32')\n--\n\nThe weights as a Tensor (n, k) f32, f16 or bf16."},
    {"embed", WITH_KEYWORDS(Linear_embed),
     "embed($self, ids, dtype='f32')\n--\n\nRows of the weights: ids (rows) i32 -> (rows, k). Ids "
     "outside of\n"
     "0..n-1 are clamped on the device; check those that come from people."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Linear_getset[] = {
    {"n", Linear_get_n, NULL, "rows of W", NULL},
    {"k", Linear_get_k, NULL, "columns of W", NULL},
    {"format", Linear_get_format, NULL, "name of the weight format", NULL},
    {"group", Linear_get_group, NULL, "weights that share a scale; 0: the row", NULL},
    {"scale", Linear_get_scale, NULL, "type of the scales, or None", NULL},
    {"zero", Linear_get_zero, NULL, "whether zero points are stored", NULL},
    {"nbytes", Linear_get_nbytes, NULL, "bytes of all planes", NULL},
    {"global_scale", Linear_get_global_scale, NULL, "the factor beside e4m3 scales; else 1", NULL},
    {"planes", Linear_get_planes, NULL, "{name: ((rows, columns), type)} of the planes in memory",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Linear_slots[] = {
    {Py_tp_new, Linear_new},
    {Py_tp_dealloc, Linear_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Linear_repr},
    {Py_tp_call, Linear_call},
    {Py_tp_methods, Linear_methods},
    {Py_tp_getset, Linear_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc, "Linear(device, n, k, format='f16', *, group=None, scale=None, zero=False, "
                "global_scale=1.0, memory='device')\n--\n\n"
                "A weight matrix (n, k) in a weight format, zeros at first. Calling it gives\n"
                "y = epilogue(norm(x) W^T + bias): x (m, k) or (k) -> (m, n) or (n), n / 2 columns "
                "with the gated\n"
                "activations swiglu, geglu and geglu_tanh. memory 'host': the weights lie in host memory, "
                "and kernels read them\nover the bus."},
    {0, NULL},
};

static PyType_Spec Linear_spec = {
    .name = "marlin._C.Linear",
    .basicsize = sizeof(mrl_py_linear),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Linear_slots,
};

int mrl_py_linear_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &Linear_spec, &state->Linear);
}
