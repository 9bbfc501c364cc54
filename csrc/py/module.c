/* marlin._C: the module, its exceptions, and what it tells of the tables that the core was built
 * from. */
#include "py/pymrl.h"

#include <stddef.h>
#include <string.h>

#include "vk/loader.h"

/* ---- exceptions ------------------------------------------------------------------------------ */

/* In order: a base stands above those who name it. base NULL is Exception. */
static const struct {
    const char *name;
    size_t slot, base;
    PyObject **second;
    const char *doc;
} exceptions[] = {
#define OWN(name) offsetof(mrl_state, name)
#define ROOT      SIZE_MAX
    {"MarlinError", OWN(MarlinError), ROOT, NULL, "Base of all errors of this package."},
    {"ModelFormatError", OWN(ModelFormatError), OWN(MarlinError), &PyExc_ValueError,
     "A file is damaged, cut short, or says what cannot be."},
    {"UnsupportedModelError", OWN(UnsupportedModelError), OWN(MarlinError), NULL,
     "A sound checkpoint of a kind that this version cannot run."},
    {"DeviceError", OWN(DeviceError), OWN(MarlinError), NULL,
     "No usable device, a missing feature, or a device opened before a fork."},
    {"DeviceLostError", OWN(DeviceLostError), OWN(DeviceError), NULL,
     "The driver gave the device up; open it again and reload."},
    {"DeviceOutOfMemory", OWN(DeviceOutOfMemory), OWN(DeviceError), &PyExc_MemoryError,
     "Device memory ran out; nothing was changed."},
    {"CancelledError", OWN(CancelledError), OWN(MarlinError), NULL, "The work was cancelled."},
    {"QueueFull", OWN(QueueFull), OWN(MarlinError), NULL, "Too many requests wait already."},
#undef OWN
#undef ROOT
};
#define EXCEPTION_COUNT (sizeof exceptions / sizeof exceptions[0])

static PyObject **slot_of(mrl_state *state, size_t offset)
{
    return (PyObject **)((char *)state + offset);
}

static int add_exceptions(PyObject *module, mrl_state *state)
{
    for (size_t i = 0; i < EXCEPTION_COUNT; i++) {
        PyObject **slot = slot_of(state, exceptions[i].slot), *bases;
        PyObject *base =
            exceptions[i].base == SIZE_MAX ? PyExc_Exception : *slot_of(state, exceptions[i].base);
        char name[64];

        if (exceptions[i].second == NULL)
            bases = PyTuple_Pack(1, base);
        else
            bases = PyTuple_Pack(2, base, *exceptions[i].second);
        if (bases == NULL)
            return -1;
        /* Named after the module that documents them: what a traceback shows can be imported. */
        PyOS_snprintf(name, sizeof name, "marlin.errors.%s", exceptions[i].name);
        *slot = PyErr_NewExceptionWithDoc(name, exceptions[i].doc, bases, NULL);
        Py_DECREF(bases);
        if (*slot == NULL || PyModule_AddObjectRef(module, exceptions[i].name, *slot) < 0)
            return -1;
    }
    return 0;
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Appends a new reference; NULL means that making it failed. */
static int append(PyObject *list, PyObject *item)
{
    int rc = item == NULL ? -1 : PyList_Append(list, item);
    Py_XDECREF(item);
    return rc;
}

static PyObject *module_formats(PyObject *module, PyObject *unused)
{
    static const struct {
        const char *name;
        int bits;
        const char *math, *scale;
        int zero, group;
        const char *text;
    } rows[] = {
#define FORMAT(name, bits, math, scale, zero, default_group, text) \
    {#name, bits, #math, #scale, zero, default_group, text},
#include "formats.def"
#undef FORMAT
    };
    PyObject *list = PyList_New(0);
    (void)module;
    (void)unused;
    for (size_t i = 0; list != NULL && i < sizeof rows / sizeof rows[0]; i++)
        if (append(list, Py_BuildValue("{s:s,s:i,s:s,s:s,s:N,s:i,s:s}", "name", rows[i].name,
                                       "bits", rows[i].bits, "math", rows[i].math, "scale",
                                       rows[i].scale, "zero", PyBool_FromLong(rows[i].zero),
                                       "default_group", rows[i].group, "text", rows[i].text)) < 0)
            Py_CLEAR(list);
    return list;
}

static PyObject *module_kernels(PyObject *module, PyObject *unused)
{
    static const char *const rows[][4] = {
#define KERNEL(name, source, variants, needs) {#name, source, #variants, #needs},
#include "kernels.def"
#undef KERNEL
    };
    PyObject *list = PyList_New(0);
    (void)module;
    (void)unused;
    for (size_t i = 0; list != NULL && i < sizeof rows / sizeof rows[0]; i++)
        if (append(list, Py_BuildValue("{s:s,s:s,s:s,s:s}", "name", rows[i][0], "source",
                                       rows[i][1], "variants", rows[i][2], "needs", rows[i][3])) <
            0)
            Py_CLEAR(list);
    return list;
}

static PyObject *module_features(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    (void)module;
    (void)unused;
    for (int i = 0; list != NULL && i < MRL_FEATURE_COUNT; i++)
        if (append(list, Py_BuildValue("{s:s,s:s}", "name", mrl_feature_name(i), "text",
                                       mrl_feature_text(i))) < 0)
            Py_CLEAR(list);
    return list;
}

/* ---- validation layers ----------------------------------------------------------------------- */

static PyObject *module_set_vulkan_debug(PyObject *module, PyObject *arg)
{
    int on = PyObject_IsTrue(arg);
    if (on < 0)
        return NULL;
    if (!mrl_vk_set_debug(on)) {
        PyErr_SetString(
            mrl_py_state(module)->MarlinError,
            "set_vulkan_debug: Vulkan is open already; call this before the first use of it");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *module_vulkan_messages(PyObject *module, PyObject *unused)
{
    char text[16384];
    unsigned long long count = mrl_vk_debug_messages(text, sizeof text);
    (void)module;
    (void)unused;
    return Py_BuildValue("KN", count,
                         PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace"));
}

static PyMethodDef module_methods[] = {
    {"formats", module_formats, METH_NOARGS,
     "formats()\n--\n\nThe rows of formats.def: name, bits, math, scale, zero, default_group, "
     "text."},
    {"kernels", module_kernels, METH_NOARGS,
     "kernels()\n--\n\nThe rows of kernels.def: name, source, variants, needs; needs is '0' or "
     "names joined by |."},
    {"features", module_features, METH_NOARGS,
     "features()\n--\n\nThe rows of features.def: name, text. Device(disable=...) takes these "
     "names."},
    {"set_vulkan_debug", module_set_vulkan_debug, METH_O,
     "set_vulkan_debug(on, /)\n--\n\nLoads the validation layers; only before the first use of "
     "Vulkan."},
    {"vulkan_messages", module_vulkan_messages, METH_NOARGS,
     "vulkan_messages()\n--\n\nHow many validation messages there were, and their text."},
    {NULL, NULL, 0, NULL},
};

/* ---- module ---------------------------------------------------------------------------------- */

static int module_exec(PyObject *module)
{
    static int (*const add[])(PyObject *, mrl_state *) = {
        add_exceptions,       mrl_py_device_add, mrl_py_tensor_add,  mrl_py_shares_add,
        mrl_py_program_add,   mrl_py_linear_add, mrl_py_trellis_add, mrl_py_moe_add,
        mrl_py_attention_add, mrl_py_mla_add,    mrl_py_delta_add,   mrl_py_generator_add,
    };
    mrl_state *state = mrl_py_state(module);
    for (size_t i = 0; i < sizeof add / sizeof add[0]; i++)
        if (add[i](module, state) < 0)
            return -1;
    return 0;
}

#define STATE_TYPES(X) \
    X(Device) X(Tensor) X(Program) X(Linear) X(TrellisLinear) X(MoE) X(KVCache) X(DeltaState) X(StepState) X(Generator)

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    mrl_state *state = mrl_py_state(module);
#define X(type) Py_VISIT(state->type);
    STATE_TYPES(X)
#undef X
    for (size_t i = 0; i < EXCEPTION_COUNT; i++)
        Py_VISIT(*slot_of(state, exceptions[i].slot));
    return 0;
}

static int module_clear(PyObject *module)
{
    mrl_state *state = mrl_py_state(module);
#define X(type) Py_CLEAR(state->type);
    STATE_TYPES(X)
#undef X
    for (size_t i = 0; i < EXCEPTION_COUNT; i++)
        Py_CLEAR(*slot_of(state, exceptions[i].slot));
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "marlin._C",
    .m_doc = "The C engine of marlin: devices, Tensors, programs and what is built on them.",
    .m_size = sizeof(mrl_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module_def); }
