/* DeltaState, and the function gated_delta. */
#include "py/pymrl.h"

#include <float.h>

#include "engine/delta_state.h"

typedef struct {
    MRL_PY_HEAD
    mrl_delta_state *state_of_slots;
} mrl_py_delta_state;

/* ---- DeltaState ---- */

static PyObject *DeltaState_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device",  "layers",    "slots", "key_heads", "value_heads",
                                           "key_dim", "value_dim", "taps",  NULL};
    mrl_state *state = PyType_GetModuleState(type);
    PyObject *device, *given[7] = {NULL};
    uint32_t sizes[7] = {0};
    mrl_device *dev;
    mrl_py_delta_state *self;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|$OOOOOOO:DeltaState", keywords, &device, &given[0], &given[1], &given[2], &given[3],
                   &given[4], &given[5], &given[6]) ||
        (dev = mrl_py_device(state, device, "DeltaState: device")) == NULL)
        return NULL;
    for (int i = 0; i < 7; i++) {
        char name[32];
        PyOS_snprintf(name, sizeof name, "DeltaState: %s", keywords[i + 1]);
        if (mrl_py_missing(given[i], "DeltaState", keywords[i + 1]) < 0 ||
            mrl_py_u32(given[i], name, 1, INT32_MAX, &sizes[i]) < 0)
            return NULL;
    }
    if ((self = mrl_py_alloc(type, state, device)) == NULL) return NULL;
    const mrl_delta delta = {
        .slots = sizes[1],
        .key_heads = sizes[2],
        .value_heads = sizes[3],
        .key_dim = sizes[4],
        .value_dim = sizes[5],
        .taps = sizes[6],
    };
    MRL_NOGIL(rc = mrl_delta_state_create(dev, sizes[0], &delta, &self->state_of_slots, &err));
    if (rc != MRL_OK) {
        Py_DECREF(self);
        return mrl_raise(state, &err);
    }
    return (PyObject *)self;
}

static void DeltaState_dealloc(PyObject *obj)
{
    mrl_delta_state *state = ((mrl_py_delta_state *)obj)->state_of_slots;
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_delta_state_free(state));
    mrl_py_dealloc_end(obj);
}

static mrl_delta layer_of(PyObject *obj, uint32_t layer)
{
    mrl_delta delta;
    mrl_delta_state_layer(((mrl_py_delta_state *)obj)->state_of_slots, layer, &delta, NULL);
    return delta;
}

static int parse_layer(PyObject *obj, PyObject *layer, const char *name, mrl_delta *delta)
{
    uint32_t index = 0;
    const uint32_t layers = mrl_delta_state_layers(((mrl_py_delta_state *)obj)->state_of_slots);

    if (mrl_py_u32(layer, name, 0, layers - 1, &index) < 0) return -1;
    *delta = layer_of(obj, index);
    return 0;
}

static PyObject *DeltaState_read(PyObject *obj, PyObject *layer)
{
    mrl_py_delta_state *self = (mrl_py_delta_state *)obj;
    PyObject *ring, *s, *pair = NULL;
    mrl_delta d;

    if (parse_layer(obj, layer, "DeltaState.read: layer", &d) < 0) return NULL;
    mrl_view view = {
        .buffer = d.ring,
        .dtype = MRL_DTYPE_f32,
        .ndim = 3,
        .shape = {d.slots, d.taps, mrl_delta_channels(&d)},
    };
    ring = mrl_py_tensor_wrap(self->state, self->device, &view);
    view = (mrl_view){
        .buffer = d.state,
        .dtype = MRL_DTYPE_f32,
        .ndim = 4,
        .shape = {d.slots, d.value_heads, d.key_dim, d.value_dim},
    };
    s = mrl_py_tensor_wrap(self->state, self->device, &view);
    if (ring != NULL && s != NULL) pair = PyTuple_Pack(2, ring, s);
    Py_XDECREF(ring);
    Py_XDECREF(s);
    return pair;
}

static PyObject *DeltaState_get_layers(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mrl_delta_state_layers(((mrl_py_delta_state *)obj)->state_of_slots));
}
static PyObject *DeltaState_get_slots(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(layer_of(obj, 0).slots);
}
static PyObject *DeltaState_get_nbytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(mrl_delta_state_bytes(((mrl_py_delta_state *)obj)->state_of_slots));
}

static PyObject *DeltaState_repr(PyObject *obj)
{
    const mrl_delta d = layer_of(obj, 0);
    return PyUnicode_FromFormat("<DeltaState of %u layers, (%u, %u, %u, %u) f32>",
                                (unsigned int)mrl_delta_state_layers(((mrl_py_delta_state *)obj)->state_of_slots),
                                (unsigned int)d.slots, (unsigned int)d.value_heads, (unsigned int)d.key_dim,
                                (unsigned int)d.value_dim);
}

static PyMethodDef DeltaState_methods[] = {
    {"read", DeltaState_read, METH_O,
     "read($self, layer, /)\n--\n\nOf a layer the ring (slots, taps, channels), x at position p in entry p % taps, "
     "and S (slots, value_heads, key_dim, value_dim), f32: views, not copies. What no op has written is undefined."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef DeltaState_getset[] = {
    {"layers", DeltaState_get_layers, NULL, "number of layers", NULL},
    {"slots", DeltaState_get_slots, NULL, "sequences that fit", NULL},
    {"nbytes", DeltaState_get_nbytes, NULL, "bytes in all layers", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot DeltaState_slots[] = {
    {Py_tp_doc, "DeltaState(device, *, layers, slots, key_heads, value_heads, key_dim, value_dim, taps)\n--\n\n"
                "What the layers of a gated delta net remember of each slot, f32. Dims: multiples of 8 up to 256; "
                "taps: of the convolution, 1 to 8; value_heads: a multiple of key_heads."},
    {Py_tp_new, DeltaState_new},
    {Py_tp_dealloc, DeltaState_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, DeltaState_repr},
    {Py_tp_methods, DeltaState_methods},
    {Py_tp_getset, DeltaState_getset},
    {Py_tp_members, mrl_py_members},
    {0, NULL},
};

static PyType_Spec DeltaState_spec = {
    .name = "marlin._C.DeltaState",
    .basicsize = sizeof(mrl_py_delta_state),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = DeltaState_slots,
};

/* ---- gated_delta ---- */

static PyObject *module_gated_delta(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x",    "ba",       "conv",  "a_log",     "dt_bias",
                                           "norm", "state",    "layer", "positions", "slots",
                                           "eps",  "sequence", "dtype", "held",      NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *given[8], *holder, *layer, *eps_given = NULL, *dtype_name = NULL, *y;
    mrl_delta_args delta = {0};
    const struct {
        const char *name;
        mrl_view *view;
    } tensors[] = {
        {"gated_delta: x", &delta.x},
        {"gated_delta: ba", &delta.ba},
        {"gated_delta: conv", &delta.conv},
        {"gated_delta: a_log", &delta.a_log},
        {"gated_delta: dt_bias", &delta.dt_bias},
        {"gated_delta: norm", &delta.norm},
        {"gated_delta: positions", &delta.positions},
        {"gated_delta: slots", &delta.slots},
    };
    mrl_delta sizes;
    mrl_dtype dtype;
    mrl_error err;
    mrl_status rc;
    mrl_view view;
    double eps = 1e-6;
    int sequence = 0, held = 0;

    if (!MRL_PARSE(args, kwargs, "OOOOOOOOOO|$OpOp:gated_delta", keywords, &given[0], &given[1], &given[2], &given[3],
                   &given[4], &given[5], &holder, &layer, &given[6], &given[7], &eps_given, &sequence, &dtype_name,
                   &held))
        return NULL;
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (mrl_py_view(state, given[i], tensors[i].name, false, tensors[i].view) < 0) return NULL;
    if (!Py_IS_TYPE(holder, state->DeltaState)) {
        mrl_py_wrong_type("gated_delta: state", "a DeltaState", holder);
        return NULL;
    }
    if (parse_layer(holder, layer, "gated_delta: layer", &sizes) < 0 ||
        mrl_py_float(eps_given, "gated_delta: eps", 0, FLT_MAX, &eps) < 0 ||
        mrl_py_dtype(dtype_name, "gated_delta: dtype", delta.x.dtype, &dtype) < 0)
        return NULL;
    delta.eps = (float)eps;
    delta.sequence = sequence != 0;
    delta.held = held != 0;
    /* Of one row where x has none: the op checks x before it runs. */
    const uint64_t rows = delta.x.ndim == 2 ? delta.x.shape[0] : 1;
    y = mrl_py_tensor_out(state, mrl_py_device_of(given[0]), NULL, "gated_delta: out", dtype, 2,
                          (uint64_t[]){rows, (uint64_t)sizes.value_heads * sizes.value_dim}, &view);
    if (y == NULL) return NULL;
    MRL_NOGIL(rc = mrl_gated_delta(&sizes, &delta, &view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(y);
        return mrl_raise(state, &err);
    }
    return y;
}

static PyMethodDef functions[] = {
    {"gated_delta", (PyCFunction)(void (*)(void))module_gated_delta, METH_VARARGS | METH_KEYWORDS,
     "gated_delta(x, ba, conv, a_log, dt_bias, norm, state, layer, positions, slots, *, eps=1e-06, sequence=False, "
     "dtype=None, held=False)\n--\n\n"
     "The gated delta rule -> (rows, value_heads * value_dim), behind the gated norm. x (rows, columns): for each key "
     "head q, k, and v and z of the value heads that share it; ba (rows, 2 * value_heads): for each key head b and a "
     "of those; conv (channels, taps), a_log, dt_bias (value_heads), norm (value_dim), all f32. A row at position 0 "
     "begins a text; any other takes the state of its slot as it is. A row with position < 0 gives zeros and writes "
     "nothing. "
     "sequence: all rows are of one slot, at consecutive positions from that of row 0; else no two are of the same "
     "slot. held: CPUs take the divisions of work of GPUs, for tests."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_delta_add(PyObject *module, mrl_state *state)
{
    if (mrl_py_add_type(module, &DeltaState_spec, &state->DeltaState) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
