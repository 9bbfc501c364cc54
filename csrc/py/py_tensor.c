/* Tensor: a dense, row-major array in GPU memory; its ways to and from the host. */
#include "py/pymrl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/quantize.h"

static mrl_py_tensor *tensor_of(PyObject *obj) { return (mrl_py_tensor *)obj; }

/* ---- making ---------------------------------------------------------------------------------- */

/* Takes over the caller's reference to view->buffer, also when it fails. */
static PyObject *wrap_owned(mrl_state *state, PyObject *device, const mrl_view *view)
{
    mrl_py_tensor *self = mrl_py_alloc(state->Tensor, state, device);
    Py_ssize_t stride = (Py_ssize_t)mrl_dtype_bytes(view->dtype);

    if (self == NULL) {
        mrl_buffer_release(view->buffer);
        return NULL;
    }
    self->view = *view;
    for (int i = view->ndim; i-- > 0;) {
        self->shape[i] = (Py_ssize_t)view->shape[i];
        self->strides[i] = stride;
        stride *= self->shape[i];
    }
    return (PyObject *)self;
}

PyObject *mrl_py_tensor_wrap(mrl_state *state, PyObject *device, const mrl_view *view)
{
    mrl_buffer_retain(view->buffer);
    return wrap_owned(state, device, view);
}

PyObject *mrl_py_tensor_new(mrl_state *state, PyObject *device, mrl_dtype dtype, int ndim,
                            const uint64_t *shape)
{
    mrl_device *dev = mrl_py_device(state, device, "device");
    mrl_view view = {.dtype = dtype, .ndim = ndim};
    mrl_error err;
    mrl_status rc;

    if (dev == NULL)
        return NULL;
    memcpy(view.shape, shape, (size_t)ndim * sizeof *shape);
    /* Whole words: fills work in units of four bytes. */
    uint64_t bytes = mrl_round_up(mrl_view_bytes(&view), 4);
    MRL_NOGIL(rc = mrl_buffer_create(dev, bytes, MRL_MEMORY_DEVICE, &view.buffer, &err));
    if (rc != MRL_OK)
        return mrl_raise(state, &err);
    return wrap_owned(state, device, &view);
}

PyObject *mrl_py_tensor_out(mrl_state *state, PyObject *device, PyObject *out, const char *name,
                            mrl_dtype dtype, int ndim, const uint64_t *shape, mrl_view *view)
{
    PyObject *result;

    if (out == NULL || out == Py_None) {
        if ((result = mrl_py_tensor_new(state, device, dtype, ndim, shape)) == NULL)
            return NULL;
    } else {
        if (mrl_py_view(state, out, name, false, view) < 0)
            return NULL;
        Py_INCREF(out);
        result = out;
    }
    *view = tensor_of(result)->view;
    return result;
}

int mrl_py_view(const mrl_state *state, PyObject *obj, const char *name, bool optional,
                mrl_view *out)
{
    *out = (mrl_view){0};
    if (optional && (obj == NULL || obj == Py_None))
        return 0;
    if (!Py_IS_TYPE(obj, state->Tensor))
        return mrl_py_wrong_type(name, optional ? "a Tensor or None" : "a Tensor", obj);
    *out = tensor_of(obj)->view;
    return 0;
}

/* ---- from host data -------------------------------------------------------------------------- */

/* The dtype whose elements a buffer of this format holds; COUNT when there is none. */
static mrl_dtype dtype_of_format(const char *format, Py_ssize_t itemsize)
{
    static const mrl_dtype order[] = {MRL_DTYPE_f32, MRL_DTYPE_f16, MRL_DTYPE_i32, MRL_DTYPE_u32,
                                      MRL_DTYPE_u8,  MRL_DTYPE_i8,  MRL_DTYPE_u16};
    if (format == NULL)
        format = "B";
    if (format[0] == '@' || format[0] == '=' || format[0] == '<')
        format++;
    if (strcmp(format, "c") == 0)
        format = "B";
    if (itemsize == 4 && strcmp(format, "l") == 0)
        format = "i";
    if (itemsize == 4 && strcmp(format, "L") == 0)
        format = "I";
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        if (strcmp(format, mrl_dtype_buffer_format(order[i])) == 0 &&
            itemsize == (Py_ssize_t)mrl_dtype_bytes(order[i]))
            return order[i];
    return MRL_DTYPE_COUNT;
}

/* May elements of type source be called target? The same, or unsigned integers, which are raw bits.
 */
static bool may_be_called(mrl_dtype source, mrl_dtype target)
{
    return source == target ||
           (mrl_dtype_bytes(source) == mrl_dtype_bytes(target) &&
            (source == MRL_DTYPE_u8 || source == MRL_DTYPE_u16 || source == MRL_DTYPE_u32));
}

/* dtype: COUNT to infer it. On success the buffer's bytes are a row-major array of view's dtype and
 * shape. */
static int view_of_buffer(const Py_buffer *buffer, mrl_dtype dtype, PyObject *shape, mrl_view *view)
{
    const char *format = buffer->format != NULL ? buffer->format : "B";
    mrl_dtype source = dtype_of_format(format, buffer->itemsize);
    bool raw = source == MRL_DTYPE_u8 && (buffer->ndim <= 1 || shape != NULL);

    if (dtype == MRL_DTYPE_COUNT)
        dtype = source;
    if (dtype == MRL_DTYPE_COUNT || source == MRL_DTYPE_COUNT ||
        (!may_be_called(source, dtype) && !raw)) {
        PyErr_Format(PyExc_TypeError,
                     "tensor: data has elements of format '%s' (%zd bytes), %s; convert it first, "
                     "for example with data.astype(numpy.float32), or view bfloat16 as uint16",
                     format, buffer->itemsize,
                     source == MRL_DTYPE_COUNT ? "which no dtype holds"
                                               : "which the dtype does not name");
        return -1;
    }
    *view = (mrl_view){.dtype = dtype};
    if (shape != NULL) {
        if (mrl_py_shape(shape, "tensor: shape", &view->ndim, view->shape) < 0)
            return -1;
    } else if (raw && mrl_dtype_bytes(dtype) != 1) {
        view->ndim = 1;
        view->shape[0] = (uint64_t)buffer->len / mrl_dtype_bytes(dtype);
    } else {
        if (buffer->ndim > MRL_MAX_DIMS) {
            PyErr_Format(PyExc_ValueError, "tensor: data must have 0..%d dimensions, got %d",
                         MRL_MAX_DIMS, buffer->ndim);
            return -1;
        }
        view->ndim = buffer->ndim > 0 ? buffer->ndim : 1;
        view->shape[0] = 1; /* of a scalar */
        for (int i = 0; i < buffer->ndim; i++)
            view->shape[i] = (uint64_t)buffer->shape[i];
    }
    if (buffer->len == 0) {
        PyErr_SetString(PyExc_ValueError,
                        "tensor: data is empty; a Tensor has at least one element");
        return -1;
    }
    if (mrl_view_bytes(view) != (uint64_t)buffer->len) {
        char text[192];
        PyErr_Format(PyExc_ValueError, "tensor: %s needs %llu bytes, data has %zd",
                     mrl_view_text(&(mrl_view){.buffer = (mrl_buffer *)(uintptr_t)1,
                                               .dtype = view->dtype,
                                               .ndim = view->ndim,
                                               .shape = {view->shape[0], view->shape[1],
                                                         view->shape[2], view->shape[3]}},
                                   text, sizeof text),
                     (unsigned long long)mrl_view_bytes(view), buffer->len);
        return -1;
    }
    return 0;
}

static PyObject *module_tensor(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "data", "dtype", "shape", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *device, *data, *dtype_obj = NULL, *shape = NULL, *result = NULL;
    Py_buffer buffer;
    mrl_dtype dtype;
    mrl_view view;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "OO|OO:tensor", keywords, &device, &data, &dtype_obj, &shape) ||
        mrl_py_device(state, device, "tensor: device") == NULL ||
        mrl_py_dtype(dtype_obj, "tensor: dtype", MRL_DTYPE_COUNT, &dtype) < 0 ||
        mrl_py_buffer(data, "tensor: data", &buffer) < 0)
        return NULL;
    if (view_of_buffer(&buffer, dtype, shape == Py_None ? NULL : shape, &view) == 0)
        result = mrl_py_tensor_new(state, device, view.dtype, view.ndim, view.shape);
    if (result != NULL) {
        MRL_NOGIL(rc = mrl_buffer_write(tensor_of(result)->view.buffer, 0, buffer.buf,
                                        (uint64_t)buffer.len, &err));
        if (rc != MRL_OK) {
            Py_CLEAR(result);
            mrl_raise(state, &err);
        }
    }
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *module_empty(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "shape", "dtype", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *device, *shape_obj, *dtype_obj = NULL;
    uint64_t shape[MRL_MAX_DIMS];
    mrl_dtype dtype;
    int ndim;

    if (!MRL_PARSE(args, kwargs, "OO|O:empty", keywords, &device, &shape_obj, &dtype_obj) ||
        mrl_py_device(state, device, "empty: device") == NULL ||
        mrl_py_shape(shape_obj, "empty: shape", &ndim, shape) < 0 ||
        mrl_py_dtype(dtype_obj, "empty: dtype", MRL_DTYPE_f32, &dtype) < 0)
        return NULL;
    return mrl_py_tensor_new(state, device, dtype, ndim, shape);
}

static PyObject *module_full(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "shape", "word", "dtype", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *device, *shape_obj, *word_obj = NULL, *dtype_obj = NULL, *result;
    uint64_t shape[MRL_MAX_DIMS];
    uint32_t word = 0;
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    int ndim;

    if (!MRL_PARSE(args, kwargs, "OO|OO:full", keywords, &device, &shape_obj, &word_obj,
                   &dtype_obj) ||
        mrl_py_device(state, device, "full: device") == NULL ||
        mrl_py_shape(shape_obj, "full: shape", &ndim, shape) < 0 ||
        mrl_py_u32(word_obj, "full: word", 0, UINT32_MAX, &word) < 0 ||
        mrl_py_dtype(dtype_obj, "full: dtype", MRL_DTYPE_f32, &dtype) < 0 ||
        (result = mrl_py_tensor_new(state, device, dtype, ndim, shape)) == NULL)
        return NULL;
    mrl_buffer *memory = tensor_of(result)->view.buffer;
    MRL_NOGIL(rc = mrl_buffer_fill(memory, 0, mrl_buffer_bytes(memory), word, &err));
    if (rc != MRL_OK) {
        Py_DECREF(result);
        return mrl_raise(state, &err);
    }
    return result;
}

/* ---- attributes ------------------------------------------------------------------------------ */

static PyObject *Tensor_get_shape(PyObject *obj, void *unused)
{
    mrl_py_tensor *self = tensor_of(obj);
    PyObject *shape = PyTuple_New(self->view.ndim);
    (void)unused;
    for (int i = 0; shape != NULL && i < self->view.ndim; i++) {
        PyObject *size = PyLong_FromSsize_t(self->shape[i]);
        if (size == NULL || PyTuple_SetItem(shape, i, size) < 0)
            Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *Tensor_get_dtype(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mrl_dtype_name(tensor_of(obj)->view.dtype));
}

static PyObject *Tensor_get_ndim(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLong(tensor_of(obj)->view.ndim);
}

static PyObject *Tensor_get_nbytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(mrl_view_bytes(&tensor_of(obj)->view));
}

static PyGetSetDef Tensor_getset[] = {
    {"shape", Tensor_get_shape, NULL, "tuple of 1 to 4 sizes", NULL},
    {"dtype", Tensor_get_dtype, NULL, "f32 f16 bf16 i32 u32 u8 i8 or u16", NULL},
    {"ndim", Tensor_get_ndim, NULL, "number of dimensions", NULL},
    {"nbytes", Tensor_get_nbytes, NULL, "bytes of all elements", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* ---- text ------------------------------------------------------------------------------------ */

#define SHOWN 6 /* elements that repr shows */

static double half_value(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    uint32_t word = (uint32_t)(bits & 0x8000) << 16;
    float value;

    if (exponent == 0)
        return (bits & 0x8000 ? -1.0 : 1.0) * fraction / (1 << 24);
    word |= exponent == 31 ? 0x7f800000u : (uint32_t)(exponent + 112) << 23;
    word |= (uint32_t)fraction << 13;
    memcpy(&value, &word, 4);
    return value;
}

static double element_value(mrl_dtype dtype, const uint8_t *at)
{
    uint32_t word = 0;
    float value;
    memcpy(&word, at, mrl_dtype_bytes(dtype));
    switch (dtype) {
    case MRL_DTYPE_bf16:
        word <<= 16; /* the upper half of an f32 */
        memcpy(&value, &word, 4);
        return value;
    case MRL_DTYPE_f32:
        memcpy(&value, &word, 4);
        return value;
    case MRL_DTYPE_f16:
        return half_value((uint16_t)word);
    case MRL_DTYPE_i32:
        return (int32_t)word;
    case MRL_DTYPE_i8:
        return (int8_t)word;
    default:
        return word;
    }
}

static PyObject *Tensor_repr(PyObject *obj)
{
    const mrl_view *view = &tensor_of(obj)->view;
    uint64_t elements = mrl_view_elements(view), shown = elements < SHOWN ? elements : SHOWN;
    uint32_t bytes = mrl_dtype_bytes(view->dtype);
    uint8_t data[SHOWN * 4];
    char shape[192], values[SHOWN * 24 + 8] = "";
    mrl_error err;
    mrl_status rc;

    mrl_view_text(view, shape, sizeof shape);
    MRL_NOGIL(rc = mrl_buffer_read(view->buffer, view->offset, data, shown * bytes, &err));
    /* Inside a capture and after a loss there are no values, and repr must not fail. */
    for (uint64_t i = 0, used = 0; rc == MRL_OK && i < shown; i++)
        used += (uint64_t)snprintf(values + used, sizeof values - used, " %.5g",
                                   element_value(view->dtype, data + i * bytes));
    PyObject *index = PyObject_GetAttrString(tensor_of(obj)->device, "index"), *repr = NULL;
    if (index != NULL)
        repr = PyUnicode_FromFormat("<Tensor %s on device %S%s%s%s>", shape, index,
                                    rc == MRL_OK ? ":" : "", values,
                                    rc == MRL_OK && elements > shown ? " ..." : "");
    Py_XDECREF(index);
    return repr;
}

/* ---- views ----------------------------------------------------------------------------------- */

static Py_ssize_t Tensor_length(PyObject *obj) { return tensor_of(obj)->shape[0]; }

/* Rows first .. first + count - 1; drop: the leading axis goes (of a vector, a length of 1 stays).
 */
static PyObject *rows_of(mrl_py_tensor *self, Py_ssize_t first, Py_ssize_t count, bool drop)
{
    mrl_view view = self->view;

    view.offset += (uint64_t)first * (uint64_t)self->strides[0];
    view.shape[0] = (uint64_t)count;
    if (drop && view.ndim > 1) {
        view.ndim--;
        memmove(view.shape, view.shape + 1, (size_t)view.ndim * sizeof *view.shape);
    }
    return mrl_py_tensor_wrap(self->state, self->device, &view);
}

static PyObject *Tensor_item(PyObject *obj, Py_ssize_t index)
{
    mrl_py_tensor *self = tensor_of(obj);
    if (index < 0 || index >= self->shape[0]) {
        PyErr_Format(PyExc_IndexError, "index is out of range for a leading axis of %zd",
                     self->shape[0]);
        return NULL;
    }
    return rows_of(self, index, 1, true);
}

static PyObject *Tensor_subscript(PyObject *obj, PyObject *key)
{
    mrl_py_tensor *self = tensor_of(obj);
    Py_ssize_t start, stop, step, count;

    if (PyIndex_Check(key)) {
        Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
        if (index == -1 && PyErr_Occurred())
            return NULL;
        return Tensor_item(obj, index < 0 ? index + self->shape[0] : index);
    }
    if (!PySlice_Check(key)) {
        mrl_py_wrong_type("a Tensor's index", "an integer or a slice of the leading axis", key);
        return NULL;
    }
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return NULL;
    count = PySlice_AdjustIndices(self->shape[0], &start, &stop, step);
    if (step != 1 || count < 1) {
        PyErr_Format(PyExc_ValueError,
                     "a Tensor's slice must have step 1 and at least one row, got step %zd, %zd "
                     "rows",
                     step, count);
        return NULL;
    }
    return rows_of(self, start, count, false);
}

static PyObject *Tensor_reshape(PyObject *obj, PyObject *args)
{
    mrl_py_tensor *self = tensor_of(obj);
    uint64_t elements = mrl_view_elements(&self->view), product = 1;
    mrl_view view = self->view;
    int64_t size = 0;
    int inferred = -1;
    PyObject *sizes = args;

    if (PyTuple_Size(args) == 1 && !PyIndex_Check(PyTuple_GetItem(args, 0)))
        sizes = PyTuple_GetItem(args, 0);
    if (!PyTuple_Check(sizes) && !PyList_Check(sizes)) {
        mrl_py_wrong_type("reshape: shape", "integers, or one tuple of them", sizes);
        return NULL;
    }
    Py_ssize_t count = PySequence_Size(sizes);
    if (count < 1 || count > MRL_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "reshape: shape must have 1..%d dimensions, got %zd",
                     MRL_MAX_DIMS, count);
        return NULL;
    }
    view.ndim = (int)count;
    for (int i = 0; i < view.ndim; i++) {
        PyObject *item = PySequence_GetItem(sizes, i);
        int rc = item == NULL ? -1 : mrl_py_int(item, "reshape: a size", -1, INT64_MAX, &size);
        Py_XDECREF(item);
        if (rc < 0)
            return NULL;
        if (size == -1 && inferred < 0)
            inferred = i;
        else if (size < 1 || !mrl_mul_u64(product, (uint64_t)size, &product))
            product = 0; /* matches nothing */
        view.shape[i] = (uint64_t)size;
    }
    if (inferred >= 0 && product > 0 && elements % product == 0) {
        view.shape[inferred] = elements / product;
        product = elements;
    }
    if (product != elements) {
        char text[192];
        PyErr_Format(PyExc_ValueError, "reshape: %s has %llu elements, which do not fill %R",
                     mrl_view_text(&self->view, text, sizeof text), (unsigned long long)elements,
                     sizes);
        return NULL;
    }
    return mrl_py_tensor_wrap(self->state, self->device, &view);
}

static PyObject *Tensor_astype(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"dtype", NULL};
    mrl_py_tensor *self = tensor_of(obj);
    PyObject *dtype_obj, *result;
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O:astype", keywords, &dtype_obj) ||
        mrl_py_dtype(dtype_obj, "astype: dtype", self->view.dtype, &dtype) < 0)
        return NULL;
    if (dtype == self->view.dtype) {
        Py_INCREF(obj);
        return obj;
    }
    if (!mrl_dtype_is_float(dtype) || !mrl_dtype_is_float(self->view.dtype)) {
        PyErr_Format(PyExc_TypeError,
                     "astype: f32, f16 and bf16 convert to each other, not %s to %s; convert on "
                     "the host: tensor.numpy().astype(...)",
                     mrl_dtype_name(self->view.dtype), mrl_dtype_name(dtype));
        return NULL;
    }
    result = mrl_py_tensor_new(self->state, self->device, dtype, self->view.ndim, self->view.shape);
    if (result == NULL)
        return NULL;
    mrl_device *dev = mrl_buffer_device(self->view.buffer);
    MRL_NOGIL(rc = mrl_op_convert(dev, &self->view, &tensor_of(result)->view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(result);
        return mrl_raise(self->state, &err);
    }
    return result;
}

/* ---- to and from the host -------------------------------------------------------------------- */

/* Reads all elements; to has nbytes. */
static int read_all(mrl_py_tensor *self, void *to)
{
    uint64_t bytes = mrl_view_bytes(&self->view);
    mrl_error err;
    mrl_status rc;
    MRL_NOGIL(rc = mrl_buffer_read(self->view.buffer, self->view.offset, to, bytes, &err));
    if (rc == MRL_OK)
        return 0;
    mrl_raise(self->state, &err);
    return -1;
}

static PyObject *Tensor_tobytes(PyObject *obj, PyObject *unused)
{
    mrl_py_tensor *self = tensor_of(obj);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)mrl_view_bytes(&self->view));
    (void)unused;
    if (bytes != NULL && read_all(self, PyBytes_AsString(bytes)) < 0)
        Py_CLEAR(bytes);
    return bytes;
}

static PyObject *Tensor_write(PyObject *obj, PyObject *data)
{
    mrl_py_tensor *self = tensor_of(obj);
    uint64_t bytes = mrl_view_bytes(&self->view);
    Py_buffer buffer;
    mrl_error err;
    mrl_status rc;

    if (mrl_py_buffer(data, "write: data", &buffer) < 0)
        return NULL;
    if ((uint64_t)buffer.len != bytes) {
        PyErr_Format(PyExc_ValueError, "write: data must have %llu bytes, got %zd",
                     (unsigned long long)bytes, buffer.len);
        PyBuffer_Release(&buffer);
        return NULL;
    }
    MRL_NOGIL(rc = mrl_buffer_write(self->view.buffer, self->view.offset, buffer.buf, bytes, &err));
    PyBuffer_Release(&buffer);
    if (rc != MRL_OK)
        return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

/* An array: over the tensor's own memory where the host can see it, else a copy. bf16 comes as
 * uint16. */
static PyObject *Tensor_numpy(PyObject *obj, PyObject *unused)
{
    mrl_py_tensor *self = tensor_of(obj);
    PyObject *numpy = PyImport_ImportModule("numpy"), *bytes = NULL, *flat = NULL, *shape = NULL,
             *array = NULL;

    (void)unused;
    if (numpy == NULL)
        return NULL;
    if (mrl_buffer_mapped(self->view.buffer) != NULL) {
        array = PyObject_CallMethod(numpy, "frombuffer", "Os", obj,
                                    mrl_dtype_buffer_format(self->view.dtype));
    } else {
        bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)mrl_view_bytes(&self->view));
        if (bytes != NULL && read_all(self, PyByteArray_AsString(bytes)) == 0)
            array = PyObject_CallMethod(numpy, "frombuffer", "Os", bytes,
                                        mrl_dtype_buffer_format(self->view.dtype));
    }
    flat = array;
    array = NULL;
    if (flat != NULL && (shape = Tensor_get_shape(obj, NULL)) != NULL)
        array = PyObject_CallMethod(flat, "reshape", "O", shape);
    Py_XDECREF(shape);
    Py_XDECREF(flat);
    Py_XDECREF(bytes);
    Py_DECREF(numpy);
    return array;
}

/* numpy.asarray comes here where the buffer protocol is refused. */
static PyObject *Tensor_array(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"dtype", "copy", NULL};
    PyObject *dtype = Py_None, *copy = Py_None, *array, *result;

    if (!MRL_PARSE(args, kwargs, "|OO:__array__", keywords, &dtype, &copy))
        return NULL;
    if (copy == Py_False && mrl_buffer_mapped(tensor_of(obj)->view.buffer) == NULL) {
        PyErr_SetString(PyExc_ValueError,
                        "a Tensor in device memory cannot be seen without a copy");
        return NULL;
    }
    if ((array = Tensor_numpy(obj, NULL)) == NULL || (dtype == Py_None && copy != Py_True))
        return array;
    if (dtype == Py_None)
        result = PyObject_CallMethod(array, "copy", NULL);
    else
        result = PyObject_CallMethod(array, "astype", "O", dtype);
    Py_DECREF(array);
    return result;
}

/* ---- buffer protocol ------------------------------------------------------------------------- */

static int Tensor_getbuffer(PyObject *obj, Py_buffer *buffer, int flags)
{
    mrl_py_tensor *self = tensor_of(obj);
    uint8_t *mapped = mrl_buffer_mapped(self->view.buffer);
    mrl_error err;
    mrl_status rc;

    buffer->obj = NULL;
    if (mapped == NULL) {
        PyErr_SetString(PyExc_BufferError,
                        "this Tensor's memory is not visible to the host; use tensor.numpy() or "
                        "tensor.tobytes(), which copy");
        return -1;
    }
    if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && self->view.ndim > 1) {
        PyErr_SetString(PyExc_BufferError, "a Tensor is C-contiguous");
        return -1;
    }
    MRL_NOGIL(rc = mrl_buffer_sync(self->view.buffer, &err));
    if (rc != MRL_OK) {
        mrl_raise(self->state, &err);
        return -1;
    }
    /* The export holds obj, and obj holds the memory. */
    *buffer = (Py_buffer){
        .buf = mapped + self->view.offset,
        .len = (Py_ssize_t)mrl_view_bytes(&self->view),
        .itemsize = (Py_ssize_t)mrl_dtype_bytes(self->view.dtype),
        .ndim = self->view.ndim,
        .format = flags & PyBUF_FORMAT
                      ? (char *)(uintptr_t)mrl_dtype_buffer_format(self->view.dtype)
                      : NULL,
        .shape = flags & PyBUF_ND ? self->shape : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL,
    };
    Py_INCREF(obj);
    buffer->obj = obj;
    return 0;
}

/* ---- DLPack ---------------------------------------------------------------------------------- */

/* The structures of the DLPack interface, version 1.0 (dmlc.github.io/dlpack). */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *);
} dl_managed;

typedef struct dl_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *context;
    void (*deleter)(struct dl_versioned *);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;

#define DL_CPU         1
#define DL_FLAG_COPIED 2

typedef struct {
    union {
        dl_managed managed;
        dl_versioned versioned;
    } head; /* first: the capsule points here */
    mrl_buffer *buffer;
    int64_t shape[MRL_MAX_DIMS], strides[MRL_MAX_DIMS];
} dl_export;

/* Deleters may run in any thread, with or without the GIL: they touch the core only. */
static void dl_free(dl_export *export)
{
    mrl_buffer_release(export->buffer);
    free(export);
}

static void dl_delete(dl_managed *managed) { dl_free(managed->context); }
static void dl_delete_versioned(dl_versioned *versioned) { dl_free(versioned->context); }

/* Runs the deleter of a capsule that nobody consumed (consumers rename it). */
static void dl_capsule_free(PyObject *capsule)
{
    dl_export *export = NULL;
    if (PyCapsule_IsValid(capsule, "dltensor"))
        export = PyCapsule_GetPointer(capsule, "dltensor");
    else if (PyCapsule_IsValid(capsule, "dltensor_versioned"))
        export = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (export != NULL)
        dl_free(export);
}

static void dl_fill(dl_export *export, dl_tensor *tensor, const mrl_py_tensor *self,
                    uint64_t offset)
{
    static const struct {
        mrl_dtype dtype;
        uint8_t code;
    } codes[] = {{MRL_DTYPE_f32, 2}, {MRL_DTYPE_f16, 2}, {MRL_DTYPE_bf16, 4}, {MRL_DTYPE_i32, 0},
                 {MRL_DTYPE_u32, 1}, {MRL_DTYPE_u8, 1},  {MRL_DTYPE_i8, 0},   {MRL_DTYPE_u16, 1}};
    for (int i = 0; i < self->view.ndim; i++) {
        export->shape[i] = self->shape[i];
        export->strides[i] = self->strides[i] / (int64_t)mrl_dtype_bytes(self->view.dtype);
    }
    tensor->data = (uint8_t *)mrl_buffer_mapped(export->buffer) + offset;
    tensor->device.type = DL_CPU;
    tensor->ndim = self->view.ndim;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (codes[i].dtype == self->view.dtype)
            tensor->dtype.code = codes[i].code;
    tensor->dtype.bits = (uint8_t)(8 * mrl_dtype_bytes(self->view.dtype));
    tensor->dtype.lanes = 1;
    tensor->shape = export->shape;
    tensor->strides = export->strides;
}

/* Host memory that holds the elements once the call returns: the tensor's own, or a copy. */
static mrl_status dl_memory(const mrl_view *view, bool copy, mrl_buffer **out, mrl_error *err)
{
    mrl_status rc;
    mrl_device *dev = mrl_buffer_device(view->buffer);
    mrl_range source = mrl_view_range(view);

    *out = NULL;
    if (mrl_program_capturing(dev) != NULL)
        return mrl_fail(err, MRL_ERR_STATE, "__dlpack__: not while capturing a program");
    if (!copy) {
        MRL_TRY(mrl_buffer_sync(view->buffer, err));
        *out = mrl_buffer_retain(view->buffer);
        return MRL_OK;
    }
    MRL_TRY(mrl_buffer_create(dev, source.bytes, MRL_MEMORY_HOST, out, err));
    MRL_TRY(mrl_stream_copy(dev, source, (mrl_range){*out, 0, source.bytes}, err));
    MRL_TRY(mrl_buffer_sync(*out, err));
    return MRL_OK;
done:
    mrl_buffer_release(*out);
    *out = NULL;
    return rc;
}

static PyObject *Tensor_dlpack(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"stream", "max_version", "dl_device", "copy", NULL};
    mrl_py_tensor *self = tensor_of(obj);
    PyObject *stream = Py_None, *max_version = Py_None, *device = Py_None, *copy_obj = Py_None,
             *capsule;
    bool copy = mrl_buffer_mapped(self->view.buffer) == NULL, versioned = false;
    mrl_buffer *memory;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "|$OOOO:__dlpack__", keywords, &stream, &max_version, &device,
                   &copy_obj))
        return NULL;
    if (stream != Py_None) {
        PyErr_SetString(PyExc_ValueError,
                        "__dlpack__: stream must be None, the memory is the host's");
        return NULL;
    }
    if (max_version != Py_None) {
        int major, minor;
        if (!PyTuple_Check(max_version)) {
            mrl_py_wrong_type("__dlpack__: max_version", "a tuple (major, minor)", max_version);
            return NULL;
        }
        if (!PyArg_ParseTuple(max_version, "ii:max_version", &major, &minor))
            return NULL;
        versioned = major >= 1;
    }
    if (device != Py_None) {
        int type, id;
        if (!PyTuple_Check(device)) {
            mrl_py_wrong_type("__dlpack__: dl_device", "a tuple (type, id)", device);
            return NULL;
        }
        if (!PyArg_ParseTuple(device, "ii:dl_device", &type, &id))
            return NULL;
        if (type != DL_CPU || id != 0) {
            PyErr_SetString(PyExc_BufferError,
                            "__dlpack__: a Tensor is exported to the host, device (1, 0), only");
            return NULL;
        }
    }
    if (copy_obj == Py_False && copy) {
        PyErr_SetString(PyExc_BufferError,
                        "__dlpack__: memory that is not visible to the host must be copied");
        return NULL;
    }
    copy = copy || copy_obj == Py_True;
    MRL_NOGIL(rc = dl_memory(&self->view, copy, &memory, &err));
    if (rc != MRL_OK)
        return mrl_raise(self->state, &err);
    dl_export *export = calloc(1, sizeof *export);
    if (export == NULL) {
        mrl_buffer_release(memory);
        return PyErr_NoMemory();
    }
    export->buffer = memory;
    if (versioned) {
        export->head.versioned.version.major = 1;
        export->head.versioned.context = export;
        export->head.versioned.deleter = dl_delete_versioned;
        export->head.versioned.flags = copy ? DL_FLAG_COPIED : 0;
    } else {
        export->head.managed.context = export;
        export->head.managed.deleter = dl_delete;
    }
    dl_fill(export, versioned ? &export->head.versioned.tensor : &export->head.managed.tensor, self,
            copy ? 0 : self->view.offset);
    capsule = PyCapsule_New(export, versioned ? "dltensor_versioned" : "dltensor", dl_capsule_free);
    if (capsule == NULL)
        dl_free(export);
    return capsule;
}

static PyObject *Tensor_dlpack_device(PyObject *obj, PyObject *unused)
{
    (void)obj;
    (void)unused;
    return Py_BuildValue("(ii)", DL_CPU, 0);
}

/* ---- type ------------------------------------------------------------------------------------ */

static void Tensor_dealloc(PyObject *obj)
{
    mrl_py_dealloc_begin(obj);
    mrl_buffer_release(tensor_of(obj)->view.buffer);
    mrl_py_dealloc_end(obj);
}

static PyMethodDef Tensor_methods[] = {
    {"reshape", Tensor_reshape, METH_VARARGS,
     "reshape($self, *shape)\n--\n\nA view of another shape with as many elements; one size may be "
     "-1."},
    {"astype", (PyCFunction)(void (*)(void))Tensor_astype, METH_VARARGS | METH_KEYWORDS,
     "astype($self, dtype)\n--\n\nA converted copy, made on the device: f32, f16, bf16 among each "
     "other. The same dtype gives the Tensor itself."},
    {"tobytes", Tensor_tobytes, METH_NOARGS,
     "tobytes($self)\n--\n\nWaits; the elements, row-major."},
    {"numpy", Tensor_numpy, METH_NOARGS,
     "numpy($self)\n--\n\nWaits; an array over the same memory where the host can see it, else "
     "over a copy. bf16 comes as uint16."},
    {"write", Tensor_write, METH_O,
     "write($self, data, /)\n--\n\nReplaces all elements by the bytes of a C-contiguous buffer of "
     "as many bytes."},
    {"__array__", (PyCFunction)(void (*)(void))Tensor_array, METH_VARARGS | METH_KEYWORDS,
     "__array__($self, dtype=None, copy=None)\n--\n\nFor numpy.asarray where memory is not "
     "host-visible."},
    {"__dlpack__", (PyCFunction)(void (*)(void))Tensor_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
     "A DLPack capsule of host memory: the Tensor's own where the host can see it, else a copy."},
    {"__dlpack_device__", Tensor_dlpack_device, METH_NOARGS,
     "__dlpack_device__($self)\n--\n\n(1, 0): the host."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Tensor_slots[] = {
    {Py_tp_dealloc, Tensor_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Tensor_repr},
    {Py_tp_methods, Tensor_methods},
    {Py_tp_getset, Tensor_getset},
    {Py_tp_members, mrl_py_members},
    {Py_mp_length, Tensor_length},
    {Py_mp_subscript, Tensor_subscript},
    {Py_sq_length, Tensor_length},
    {Py_sq_item, Tensor_item}, /* iteration */
    {Py_bf_getbuffer, Tensor_getbuffer},
    {Py_tp_doc, "A dense, row-major array in the memory of a device; made by tensor, empty, full "
                "and operations. Work is queued: reading waits for it."},
    {0, NULL},
};

static PyType_Spec Tensor_spec = {
    .name = "marlin._C.Tensor",
    .basicsize = sizeof(mrl_py_tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Tensor_slots,
};

static PyMethodDef functions[] = {
    {"tensor", (PyCFunction)(void (*)(void))module_tensor, METH_VARARGS | METH_KEYWORDS,
     "tensor(device, data, dtype=None, shape=None)\n--\n\n"
     "Copies a C-contiguous buffer to the device. dtype: what the elements are, inferred when "
     "None; bf16 comes as uint16. shape: that of data when None."},
    {"empty", (PyCFunction)(void (*)(void))module_empty, METH_VARARGS | METH_KEYWORDS,
     "empty(device, shape, dtype='f32')\n--\n\nA Tensor with undefined elements."},
    {"full", (PyCFunction)(void (*)(void))module_full, METH_VARARGS | METH_KEYWORDS,
     "full(device, shape, word=0, dtype='f32')\n--\n\nA Tensor whose memory repeats a 32-bit "
     "word."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_tensor_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &Tensor_spec, &state->Tensor) < 0
               ? -1
               : PyModule_AddFunctions(module, functions);
}
