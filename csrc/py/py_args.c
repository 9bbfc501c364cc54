/* Arguments into C values, errors into exceptions, and what all objects share. */
#include "py/pymrl.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* ---- errors ---------------------------------------------------------------------------------- */

static const struct {
    PyObject **builtin; /* or, when NULL, */
    size_t own;         /* offset in mrl_state */
} exceptions[] = {
    [MRL_ERR_VALUE] = {&PyExc_ValueError, 0},
    [MRL_ERR_TYPE] = {&PyExc_TypeError, 0},
    [MRL_ERR_DEVICE] = {NULL, offsetof(mrl_state, DeviceError)},
    [MRL_ERR_DEVICE_LOST] = {NULL, offsetof(mrl_state, DeviceLostError)},
    [MRL_ERR_DEVICE_MEMORY] = {NULL, offsetof(mrl_state, DeviceOutOfMemory)},
    [MRL_ERR_MEMORY] = {&PyExc_MemoryError, 0},
    [MRL_ERR_IO] = {&PyExc_OSError, 0},
    [MRL_ERR_FORMAT] = {NULL, offsetof(mrl_state, ModelFormatError)},
    [MRL_ERR_UNSUPPORTED] = {NULL, offsetof(mrl_state, UnsupportedModelError)},
    [MRL_ERR_STATE] = {NULL, offsetof(mrl_state, MarlinError)},
    [MRL_ERR_CANCELLED] = {NULL, offsetof(mrl_state, CancelledError)},
};

PyObject *mrl_raise(const mrl_state *state, const mrl_error *err)
{
    PyObject *type, *text;

    if (exceptions[err->status].builtin != NULL)
        type = *exceptions[err->status].builtin;
    else
        type = *(PyObject *const *)((const char *)state + exceptions[err->status].own);
    /* Device names come from drivers, and a long text is cut at a byte: replace what is no UTF-8.
     */
    text = PyUnicode_DecodeUTF8(err->text, (Py_ssize_t)strlen(err->text), "replace");
    if (text != NULL)
        PyErr_SetObject(type, text);
    Py_XDECREF(text);
    return NULL;
}

int mrl_py_wrong_type(const char *name, const char *expected, PyObject *got)
{
    PyObject *type = PyType_GetName(Py_TYPE(got));
    if (type != NULL)
        PyErr_Format(PyExc_TypeError, "%s must be %s, got %U", name, expected, type);
    Py_XDECREF(type);
    return -1;
}

/* ---- keywords -------------------------------------------------------------------------------- */

static int unknown_keyword(PyObject *key, const char *format, const char *const *keywords)
{
    const char *colon = strchr(format, ':'), *function = colon != NULL ? colon + 1 : "function";
    PyObject *known = PyList_New(0), *difflib = NULL, *matches = NULL, *name = NULL;
    int failed = known == NULL;

    for (int i = 0; !failed && keywords[i] != NULL; i++) {
        Py_XDECREF(name);
        name = PyUnicode_FromString(keywords[i]);
        failed = name == NULL || PyList_Append(known, name) < 0;
    }
    if (!failed && (difflib = PyImport_ImportModule("difflib")) != NULL)
        matches = PyObject_CallMethod(difflib, "get_close_matches", "OOi", key, known, 1);
    if (matches != NULL && PyList_Size(matches) > 0)
        PyErr_Format(PyExc_TypeError,
                     "%s() got an unexpected keyword argument '%S'; did you mean '%S'?", function,
                     key, PyList_GetItem(matches, 0));
    else if (matches != NULL)
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%S'", function,
                     key);
    Py_XDECREF(name);
    Py_XDECREF(matches);
    Py_XDECREF(difflib);
    Py_XDECREF(known);
    return -1;
}

int mrl_py_keywords(PyObject *kwargs, const char *format, const char *const *keywords)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;

    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value)) {
        bool found = false;
        for (int i = 0; !found && keywords[i] != NULL; i++)
            found = PyUnicode_CompareWithASCIIString(key, keywords[i]) == 0;
        if (!found)
            return unknown_keyword(key, format, keywords);
    }
    return 0;
}

/* ---- numbers, dtypes, shapes, buffers -------------------------------------------------------- */

int mrl_py_int(PyObject *obj, const char *name, int64_t min, int64_t max, int64_t *out)
{
    PyObject *number;
    long long value;
    int overflow;

    if (obj == NULL)
        return 0;
    if (!PyIndex_Check(obj))
        return mrl_py_wrong_type(name, "an integer", obj);
    if ((number = PyNumber_Index(obj)) == NULL)
        return -1;
    value = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (value == -1 && overflow == 0 && PyErr_Occurred())
        return -1;
    if (overflow != 0 || value < min || value > max) {
        if (overflow != 0)
            PyErr_Format(PyExc_ValueError,
                         "%s must be in %lld..%lld, got an integer beyond 64 bits", name,
                         (long long)min, (long long)max);
        else
            PyErr_Format(PyExc_ValueError, "%s must be in %lld..%lld, got %lld", name,
                         (long long)min, (long long)max, value);
        return -1;
    }
    *out = value;
    return 0;
}

int mrl_py_u32(PyObject *obj, const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    int64_t value = *out;
    if (mrl_py_int(obj, name, min, max, &value) < 0)
        return -1;
    *out = (uint32_t)value;
    return 0;
}

int mrl_py_u64(PyObject *obj, const char *name, uint64_t min, uint64_t max, uint64_t *out)
{
    PyObject *number;
    unsigned long long value;

    if (obj == NULL)
        return 0;
    if (!PyIndex_Check(obj))
        return mrl_py_wrong_type(name, "an integer", obj);
    if ((number = PyNumber_Index(obj)) == NULL)
        return -1;
    value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be in %llu..%llu, got a number outside of 64 bits",
                     name, (unsigned long long)min, (unsigned long long)max);
        return -1;
    }
    if (value < min || value > max) {
        PyErr_Format(PyExc_ValueError, "%s must be in %llu..%llu, got %llu", name,
                     (unsigned long long)min, (unsigned long long)max, value);
        return -1;
    }
    *out = value;
    return 0;
}

int mrl_py_float(PyObject *obj, const char *name, double min, double max, double *out)
{
    double value;
    char text[160];

    if (obj == NULL)
        return 0;
    value = PyFloat_AsDouble(obj);
    if (value == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            value = INFINITY;
        } else if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            return mrl_py_wrong_type(name, "a number", obj);
        } else {
            return -1;
        }
    }
    if (!(value >= min && value <= max)) {
        snprintf(text, sizeof text, "%s must be in %g..%g, got %g", name, min, max, value);
        PyErr_SetString(PyExc_ValueError, text);
        return -1;
    }
    *out = value;
    return 0;
}

int mrl_py_dtype(PyObject *obj, const char *name, mrl_dtype fallback, mrl_dtype *out)
{
    const char *text;
    Py_ssize_t length;

    *out = fallback;
    if (obj == NULL || obj == Py_None)
        return 0;
    if (!PyUnicode_Check(obj))
        return mrl_py_wrong_type(name, "a dtype name such as 'f16'", obj);
    if ((text = PyUnicode_AsUTF8AndSize(obj, &length)) == NULL)
        return -1;
    *out = mrl_dtype_parse(text);
    if (*out == MRL_DTYPE_COUNT || (size_t)length != strlen(text)) {
#define X(dtype, bytes, format, kind) " " #dtype
        PyErr_Format(PyExc_ValueError, "%s must be one of" MRL_DTYPES(X) ", got %R", name, obj);
#undef X
        return -1;
    }
    return 0;
}

int mrl_py_shape(PyObject *obj, const char *name, int *ndim, uint64_t *shape)
{
    PyObject *items;
    Py_ssize_t count;
    uint64_t bytes = 8; /* the widest element */
    int failed = 0;

    if (!PySequence_Check(obj) || PyUnicode_Check(obj))
        return mrl_py_wrong_type(name, "a sequence of integers", obj);
    if ((count = PySequence_Size(obj)) < 0)
        return -1;
    if (count < 1 || count > MRL_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s must have 1..%d dimensions, got %zd", name, MRL_MAX_DIMS,
                     count);
        return -1;
    }
    if ((items = PySequence_Tuple(obj)) == NULL)
        return -1;
    *ndim = (int)count;
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        char label[128];
        PyObject *item = i < PyTuple_Size(items) ? PyTuple_GetItem(items, i) : Py_None;
        snprintf(label, sizeof label, "%s[%d]", name, (int)i);
        failed = mrl_py_u64(item, label, 1, INT64_MAX, &shape[i]) < 0;
        if (!failed && (!mrl_mul_u64(bytes, shape[i], &bytes) || bytes > INT64_MAX)) {
            PyErr_Format(PyExc_ValueError, "%s has too many elements: %S", name, items);
            failed = 1;
        }
    }
    Py_DECREF(items);
    return failed ? -1 : 0;
}

int mrl_py_buffer(PyObject *obj, const char *name, Py_buffer *buffer)
{
    if (!PyObject_CheckBuffer(obj))
        return mrl_py_wrong_type(name, "a C-contiguous buffer (bytes, a NumPy array)", obj);
    if (PyObject_GetBuffer(obj, buffer, PyBUF_FULL_RO) < 0)
        return -1;
    if (!PyBuffer_IsContiguous(buffer, 'C')) {
        PyBuffer_Release(buffer);
        PyErr_Format(PyExc_ValueError,
                     "%s must be C-contiguous, got a strided buffer; use numpy.ascontiguousarray",
                     name);
        return -1;
    }
    return 0;
}

/* ---- objects --------------------------------------------------------------------------------- */

void *mrl_py_alloc(PyTypeObject *type, mrl_state *state, PyObject *device)
{
    mrl_py_object *self = (mrl_py_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state;
    Py_XINCREF(device);
    self->device = device;
    return self;
}

void mrl_py_dealloc_begin(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (((mrl_py_object *)self)->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
}

void mrl_py_dealloc_end(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(((mrl_py_object *)self)->device);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

int mrl_py_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((mrl_py_object *)self)->device);
    return 0;
}

int mrl_py_clear(PyObject *self)
{
    /* device stays until dealloc: it refers to no container, so no cycle runs through it, and
     * methods may rely on it. */
    (void)self;
    return 0;
}

PyMemberDef mrl_py_members[] = {
    {"device", T_OBJECT_EX, offsetof(mrl_py_object, device), READONLY,
     "the Device that it lives on"},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(mrl_py_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyObject *mrl_py_reduce(PyObject *self, PyObject *unused)
{
    PyObject *type = PyType_GetName(Py_TYPE(self));
    (void)unused;
    if (type != NULL)
        PyErr_Format(PyExc_TypeError,
                     "cannot pickle or copy a %U: it is memory of a device; send bytes", type);
    Py_XDECREF(type);
    return NULL;
}

int mrl_py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *out == NULL ? -1 : PyModule_AddType(module, *out);
}
