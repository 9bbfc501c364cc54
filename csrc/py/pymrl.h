/* What the files of this folder share: module state, object heads, argument parsing, errors.
 *
 * A method parses its arguments into plain C values, then calls the core inside MRL_NOGIL, then
 * turns a failure into an exception with mrl_raise:
 *
 *     static PyObject *Linear_set_bias(PyObject *self, PyObject *arg)
 *     {
 *         mrl_py_linear *linear = (mrl_py_linear *)self;
 *         mrl_error err;
 *         mrl_status rc;
 *         mrl_view bias;
 *         if (mrl_py_view(linear->state, arg, "set_bias: bias", true, &bias) < 0)
 *             return NULL;
 *         MRL_NOGIL(rc = mrl_linear_set_bias(linear->linear, &bias, &err));
 *         if (rc != MRL_OK)
 *             return mrl_raise(linear->state, &err);
 *         Py_RETURN_NONE;
 *     }
 *
 * Functions that return int give 0, or -1 with an exception set. `name` is what error texts call
 * the argument: "linear: x". NULL and None both mean absent where an argument is optional.
 *
 * Limited API of 3.11: a type finds the module state through its objects, which all begin with
 * MRL_PY_HEAD; tp_new takes it from PyType_GetModuleState(type) (no type here can be subclassed).
 */
#ifndef MRL_PY_PYMRL_H
#define MRL_PY_PYMRL_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"
#include "ops/matmul.h"
#include "ops/view.h"
#include "vk/device.h"
#include "vk/program.h"

typedef struct mrl_state {
    PyTypeObject *Device, *Tensor, *Shares, *Program;
    PyTypeObject *Linear, *TrellisLinear, *MoE, *KVCache, *DeltaState, *StepState, *Generator;
    PyObject *MarlinError, *ModelFormatError, *UnsupportedModelError;
    PyObject *DeviceError, *DeviceLostError, *DeviceOutOfMemory;
    PyObject *CancelledError, *QueueFull;
} mrl_state;

/* ---- objects --------------------------------------------------------------------------------- */

/* Every object of this module begins so. state is borrowed (the type holds the module); device is a
 * strong reference to the Device object, NULL in a Device itself. */
#define MRL_PY_HEAD   \
    PyObject_HEAD     \
    mrl_state *state; \
    PyObject *device; \
    PyObject *weakrefs;

typedef struct mrl_py_object {
    MRL_PY_HEAD
} mrl_py_object;

typedef struct mrl_py_tensor {
    MRL_PY_HEAD
    mrl_view view; /* the buffer is retained; nothing here changes after creation */
    Py_ssize_t shape[MRL_MAX_DIMS], strides[MRL_MAX_DIMS]; /* for buffer exports */
} mrl_py_tensor;

/* A zeroed object with state and device (may be NULL) filled in. Types: Py_TPFLAGS_DEFAULT |
 * Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, and Py_TPFLAGS_DISALLOW_INSTANTIATION without a
 * tp_new. */
void *mrl_py_alloc(PyTypeObject *type, mrl_state *state, PyObject *device);
/* tp_dealloc: begin, free the C part (may be NULL after a failed tp_new), end. */
void mrl_py_dealloc_begin(PyObject *self);
void mrl_py_dealloc_end(PyObject *self);
/* Slots for types whose only Python reference is device. */
int mrl_py_traverse(PyObject *self, visitproc visit, void *arg);
int mrl_py_clear(PyObject *self);
/* .device and weak references: {Py_tp_members, mrl_py_members} */
extern PyMemberDef mrl_py_members[];
/* Raises TypeError: GPU objects do not pickle. */
PyObject *mrl_py_reduce(PyObject *self, PyObject *unused);
#define MRL_PY_NO_PICKLE                               \
    {                                                  \
        "__reduce__", mrl_py_reduce, METH_NOARGS, NULL \
    }

/* Makes the type in the module, adds it under its last name part, stores a strong reference in
 * *out. */
int mrl_py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out);

/* One a file: adds its types and functions. Functions: PyModule_AddFunctions(module, methods). */
int mrl_py_device_add(PyObject *module, mrl_state *state);
int mrl_py_tensor_add(PyObject *module, mrl_state *state);
int mrl_py_shares_add(PyObject *module, mrl_state *state);
int mrl_py_program_add(PyObject *module, mrl_state *state);
int mrl_py_linear_add(PyObject *module, mrl_state *state);
int mrl_py_moe_add(PyObject *module, mrl_state *state);
int mrl_py_trellis_add(PyObject *module, mrl_state *state);
int mrl_py_attention_add(PyObject *module, mrl_state *state);
int mrl_py_mla_add(PyObject *module, mrl_state *state);
int mrl_py_delta_add(PyObject *module, mrl_state *state);
int mrl_py_generator_add(PyObject *module, mrl_state *state);

/* In a module function `self` is the module. */
static inline mrl_state *mrl_py_state(PyObject *module) { return PyModule_GetState(module); }

/* ---- errors and the GIL ---------------------------------------------------------------------- */

/* Sets the exception that err->status stands for; returns NULL. */
PyObject *mrl_raise(const mrl_state *state, const mrl_error *err);
/* Everything that waits, reads files or records runs inside this. */
#define MRL_NOGIL(...)         \
    do {                       \
        Py_BEGIN_ALLOW_THREADS \
        __VA_ARGS__;           \
        Py_END_ALLOW_THREADS   \
    } while (0)

/* ---- arguments ------------------------------------------------------------------------------- */

/* PyArg_ParseTupleAndKeywords, but an unknown keyword's TypeError names the nearest known one.
 * keywords: `static const char *const keywords[] = {"x", "norm", NULL}`; format ends in ":name".
 * Parse numbers, dtypes, shapes and Tensors as "O" and convert with the functions below; strings as
 * "s" or "z"; flags as "p"; paths as "O&" with PyUnicode_FSConverter. */
#define MRL_PARSE(args, kwargs, format, keywords, ...)                                 \
    (mrl_py_keywords(kwargs, format, keywords) == 0 &&                                 \
     PyArg_ParseTupleAndKeywords(args, kwargs, format, (char **)(uintptr_t)(keywords), \
                                 __VA_ARGS__))
int mrl_py_keywords(PyObject *kwargs, const char *format, const char *const *keywords);

/* An integer in min..max, else ValueError; TypeError when it is none. NULL: *out stays as it is. */
int mrl_py_int(PyObject *obj, const char *name, int64_t min, int64_t max, int64_t *out);
int mrl_py_u32(PyObject *obj, const char *name, uint32_t min, uint32_t max, uint32_t *out);
int mrl_py_u64(PyObject *obj, const char *name, uint64_t min, uint64_t max, uint64_t *out);
/* A float in min..max, not NaN. NULL: *out stays as it is. */
int mrl_py_float(PyObject *obj, const char *name, double min, double max, double *out);
/* A dtype name; fallback when absent. */
int mrl_py_dtype(PyObject *obj, const char *name, mrl_dtype fallback, mrl_dtype *out);
/* A sequence of 1..MRL_MAX_DIMS integers >= 1 whose product with 8 fits 63 bits. */
int mrl_py_shape(PyObject *obj, const char *name, int *ndim, uint64_t *shape);
/* An activation by name; absent: none. */
/* A C-contiguous buffer of any format (PyBUF_FULL_RO: see buffer->format); PyBuffer_Release it. */
int mrl_py_buffer(PyObject *obj, const char *name, Py_buffer *buffer);

/* PyArg_ParseTupleAndKeywords knows no required keyword-only arguments: they start as NULL, which is
 * a TypeError here. */
int mrl_py_missing(PyObject *given, const char *function, const char *keyword);
/* Sets TypeError "name must be expected, got <type>"; returns -1. */
int mrl_py_wrong_type(const char *name, const char *expected, PyObject *got);

/* The device of a Device object, borrowed from it; NULL with DeviceLostError after a loss,
 * DeviceError after a fork, TypeError for anything else. */
mrl_device *mrl_py_device(const mrl_state *state, PyObject *obj, const char *name);
/* The view of a Tensor, borrowed from it. optional: None gives an absent view (buffer NULL). */
int mrl_py_view(const mrl_state *state, PyObject *obj, const char *name, bool optional,
                mrl_view *out);
/* A layer of a KVCache object, borrowed from it; ValueError when there is no such layer. */
struct mrl_kv;
int mrl_py_layer(const mrl_state *state, PyObject *obj, PyObject *layer, const char *op, struct mrl_kv *kv);
/* The weight of a Linear object, borrowed from it; its format must be one of formats.def. */
struct mrl_weight;
int mrl_py_weight(const mrl_state *state, PyObject *obj, const char *name, const struct mrl_weight **out);
/* The program of a captured Program object, borrowed from it. */
int mrl_py_program(const mrl_state *state, PyObject *obj, const char *name, mrl_program **out);

/* The C part of a Linear object, borrowed from it. */
struct mrl_linear *mrl_py_linear_of(PyObject *linear);
struct mrl_trellis_linear *mrl_py_trellis_of(PyObject *trellis);
/* An activation by name, NULL for none; ValueError "what: activation must be ...". */
int mrl_py_activation(const char *name, const char *what, mrl_activation *out);
/* "f16" or "int8"; NULL is f16 */
int mrl_py_int8(const char *name, const char *what, bool *int8);
/* "device" or "host"; ValueError "what: memory must be ...". */
int mrl_py_memory(const char *name, const char *what, mrl_memory_kind *out);

/* ---- Tensors --------------------------------------------------------------------------------- */

/* A new Tensor with memory of its own, contents undefined. device: a Device object. */
PyObject *mrl_py_tensor_new(mrl_state *state, PyObject *device, mrl_dtype dtype, int ndim,
                            const uint64_t *shape);
/* A new Tensor over existing memory (retained). */
PyObject *mrl_py_tensor_wrap(mrl_state *state, PyObject *device, const mrl_view *view);
/* The result of an op: a new reference to the caller's `out` Tensor, or, when that is absent, to a
 * new one of this dtype and shape. *view (borrowed from it) goes to the op, which checks it. */
PyObject *mrl_py_tensor_out(mrl_state *state, PyObject *device, PyObject *out, const char *name,
                            mrl_dtype dtype, int ndim, const uint64_t *shape, mrl_view *view);
/* One row may come without its leading axis: the op sees (1, columns). */
static inline void mrl_py_as_rows(mrl_view *view)
{
    if (view->buffer == NULL || view->ndim != 1) return;
    view->ndim = 2;
    view->shape[1] = view->shape[0];
    view->shape[0] = 1;
}
/* The Device object of a Tensor, borrowed. */
static inline PyObject *mrl_py_device_of(PyObject *tensor)
{
    return ((mrl_py_object *)tensor)->device;
}

/* ---- rows in shares ------------------------------------------------------------------------- */

struct mrl_shares;
/* A new Shares object, which takes over the buffer of *shares, even when that fails. base: what they are to be added
 * to, retained, or NULL. */
PyObject *mrl_py_shares_new(mrl_state *state, PyObject *device, const struct mrl_shares *shares, uint32_t columns,
                            const mrl_view *base);
/* mrl_py_view, or of a Shares object the shape without a buffer, its shares and its base, which it must have; with base
 * NULL it must have none. */
int mrl_py_view_or_shares(const mrl_state *state, PyObject *obj, const char *name, mrl_view *view,
                          struct mrl_shares *shares, mrl_view *base);

#endif
