/* MoE: a router and experts, over Linears that hold their weights. */
#include "py/pymrl.h"

#include <string.h>

#include "engine/moe.h"

typedef struct {
    MRL_PY_HEAD
    mrl_moe *moe;
    /* What moe borrows: Linears, or of EXL3 a tuple of two TrellisLinears and one; or a tuple of those for each stack.
     * They refer to no container. */
    PyObject *router, *gate_up, *down;
} mrl_py_moe;

/* ---- life ---- */

static int linear_of(const mrl_state *state, PyObject *obj, const char *name, PyObject *device,
                     const mrl_linear **out)
{
    if (!PyObject_TypeCheck(obj, state->Linear))
        return mrl_py_wrong_type(name, "a Linear", obj);
    if (device != NULL && mrl_py_device_of(obj) != device) {
        PyErr_Format(PyExc_ValueError, "%s must be on the device of router", name);
        return -1;
    }
    *out = mrl_py_linear_of(obj);
    return 0;
}

static int trellis_of(const mrl_state *state, PyObject *obj, const char *name, PyObject *device,
                      mrl_trellis_linear **out)
{
    if (!PyObject_TypeCheck(obj, state->TrellisLinear))
        return mrl_py_wrong_type(name, "a TrellisLinear", obj);
    if (mrl_py_device_of(obj) != device) {
        PyErr_Format(PyExc_ValueError, "%s must be on the device of router", name);
        return -1;
    }
    *out = mrl_py_trellis_of(obj);
    return 0;
}

/* The experts' weights of a stack: two Linears, or ((gate, up), down) of TrellisLinears. */
static int parse_stack(const mrl_state *state, PyObject *gate_up, PyObject *down, PyObject *device,
                       mrl_moe_weights *stack)
{
    if (!PyTuple_Check(gate_up))
        return linear_of(state, gate_up, "MoE: gate_up", device, &stack->gate_up) < 0 ||
                       linear_of(state, down, "MoE: down", device, &stack->down) < 0
                   ? -1
                   : 0;
    if (PyTuple_Size(gate_up) != 2) {
        PyErr_Format(PyExc_ValueError, "MoE: gate_up must be a Linear or (gate, up), got a tuple of %zd",
                     PyTuple_Size(gate_up));
        return -1;
    }
    return trellis_of(state, PyTuple_GetItem(gate_up, 0), "MoE: gate", device, &stack->trellis[0]) < 0 ||
                   trellis_of(state, PyTuple_GetItem(gate_up, 1), "MoE: up", device, &stack->trellis[1]) < 0 ||
                   trellis_of(state, down, "MoE: down", device, &stack->trellis[2]) < 0
               ? -1
               : 0;
}

/* stacks: a sequence of experts + shared numbers of stacks -> *out, which the caller frees with PyMem_Free. */
static int parse_stack_of(PyObject *stacks, uint32_t count, uint32_t **out)
{
    const Py_ssize_t length = PySequence_Size(stacks);

    if (length < 0)
        return -1;
    if (length != (Py_ssize_t)count) {
        PyErr_Format(PyExc_ValueError, "MoE: stacks must have a number for each of the %u experts, got %zd",
                     (unsigned int)count, length);
        return -1;
    }
    *out = PyMem_Calloc((size_t)length + 1, sizeof **out);
    if (*out == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *number = PySequence_GetItem(stacks, i);
        const int failed = number == NULL || mrl_py_u32(number, "MoE: stacks", 0, UINT32_MAX, &(*out)[i]) < 0;
        Py_XDECREF(number);
        if (failed)
            return -1;
    }
    return 0;
}

/* *gate_up and *down as given; where they are lists they become new tuples, one item a stack. The caller decrefs both
 * and frees config->stack_of, after an error too. */
static int parse_experts(const mrl_state *state, PyObject **gate_up, PyObject **down, PyObject *stacks,
                         PyObject *device, mrl_moe_config *config, uint32_t **stack_of)
{
    const bool several = PyList_Check(*gate_up);

    if (several != (stacks != NULL && stacks != Py_None) || several != (PyList_Check(*down) != 0)) {
        Py_INCREF(*gate_up);
        Py_INCREF(*down);
        PyErr_SetString(PyExc_TypeError, "MoE: gate_up and down must be lists where stacks is given, and only there");
        return -1;
    }
    *gate_up = several ? PyList_AsTuple(*gate_up) : Py_NewRef(*gate_up);
    *down = several ? PyList_AsTuple(*down) : Py_NewRef(*down);
    config->nstacks = 1;
    if (*gate_up == NULL || *down == NULL)
        return -1;
    if (!several)
        return parse_stack(state, *gate_up, *down, device, &config->stacks[0]);
    const Py_ssize_t count = PyTuple_Size(*gate_up);
    if (count < 1 || count > (Py_ssize_t)MRL_MOE_STACKS_MAX || PyTuple_Size(*down) != count) {
        PyErr_Format(PyExc_ValueError, "MoE: gate_up and down must be lists of 1 to %u stacks, got %zd and %zd",
                     MRL_MOE_STACKS_MAX, count, PyTuple_Size(*down));
        return -1;
    }
    config->nstacks = (uint32_t)count;
    for (Py_ssize_t i = 0; i < count; i++)
        if (parse_stack(state, PyTuple_GetItem(*gate_up, i), PyTuple_GetItem(*down, i), device, &config->stacks[i]) < 0)
            return -1;
    if (parse_stack_of(stacks, config->experts + config->shared, stack_of) < 0)
        return -1;
    config->stack_of = *stack_of;
    return 0;
}

static int parse_scoring(const char *name, bool *sigmoid)
{
    *sigmoid = strcmp(name, "sigmoid") == 0;
    if (*sigmoid || strcmp(name, "softmax") == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "MoE: scoring must be softmax or sigmoid, got '%s'", name);
    return -1;
}

/* What the arguments say, into a new object that keeps gate_up and down. */
static PyObject *create(PyTypeObject *type, mrl_state *state, PyObject *device, const mrl_moe_config *config,
                        PyObject *router, PyObject *gate_up, PyObject *down)
{
    mrl_device *dev = mrl_py_device(state, device, "MoE");
    mrl_py_moe *self;
    mrl_error err;
    mrl_status rc;
    mrl_moe *moe;

    if (dev == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_moe_create(dev, config, &moe, &err));
    if (rc != MRL_OK)
        return mrl_raise(state, &err);
    self = mrl_py_alloc(type, state, device);
    if (self == NULL) {
        mrl_moe_free(moe);
        return NULL;
    }
    self->moe = moe;
    self->router = Py_NewRef(router);
    self->gate_up = Py_NewRef(gate_up);
    self->down = Py_NewRef(down);
    return (PyObject *)self;
}

static PyObject *MoE_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"router",     "gate_up",    "down",      "experts",    "top_k",
                                           "shared",     "scoring",    "normalise", "scale",      "groups",
                                           "top_groups", "group_best", "bias",      "activation", "stacks", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    mrl_moe_config config = {.groups = 1, .top_groups = 1, .group_best = 2};
    PyObject *router, *gate_up, *down, *experts = NULL, *top_k = NULL, *shared = NULL, *scale = NULL, *groups = NULL;
    PyObject *top_groups = NULL, *group_best = NULL, *bias = NULL, *stacks = NULL, *self = NULL;
    const char *scoring = "softmax", *activation = "swiglu";
    uint32_t *stack_of = NULL;
    int normalise = 1;
    double factor = 1.0;

    if (!MRL_PARSE(args, kwargs, "OOO|$OOOspOOOOOsO:MoE", keywords, &router, &gate_up, &down, &experts, &top_k, &shared,
                   &scoring, &normalise, &scale, &groups, &top_groups, &group_best, &bias, &activation, &stacks))
        return NULL;
    if (experts == NULL || top_k == NULL) { /* keywords that PyArg_Parse cannot ask for */
        PyErr_Format(PyExc_TypeError, "MoE() missing required keyword '%s'", experts == NULL ? "experts" : "top_k");
        return NULL;
    }
    if (linear_of(state, router, "MoE: router", NULL, &config.router) < 0)
        return NULL;
    PyObject *device = mrl_py_device_of(router);
    if (mrl_py_u32(experts, "MoE: experts", 0, UINT32_MAX, &config.experts) < 0 ||
        mrl_py_u32(top_k, "MoE: top_k", 0, UINT32_MAX, &config.top_k) < 0 ||
        mrl_py_u32(shared, "MoE: shared", 0, UINT32_MAX, &config.shared) < 0 ||
        mrl_py_u32(groups, "MoE: groups", 0, UINT32_MAX, &config.groups) < 0 ||
        mrl_py_u32(top_groups, "MoE: top_groups", 0, UINT32_MAX, &config.top_groups) < 0 ||
        mrl_py_u32(group_best, "MoE: group_best", 0, UINT32_MAX, &config.group_best) < 0 ||
        mrl_py_float(scale, "MoE: scale", 0, 1e6, &factor) < 0 ||
        mrl_py_view(state, bias, "MoE: bias", true, &config.bias) < 0 || parse_scoring(scoring, &config.sigmoid) < 0 ||
        mrl_py_activation(activation, "MoE", &config.activation) < 0)
        return NULL;
    config.scale = (float)factor;
    config.normalise = normalise;
    if (parse_experts(state, &gate_up, &down, stacks, device, &config, &stack_of) == 0)
        self = create(type, state, device, &config, router, gate_up, down);
    Py_XDECREF(gate_up);
    Py_XDECREF(down);
    PyMem_Free(stack_of);
    return self;
}

static void MoE_dealloc(PyObject *obj)
{
    mrl_py_moe *self = (mrl_py_moe *)obj;
    mrl_py_dealloc_begin(obj);
    mrl_moe_free(self->moe);
    Py_CLEAR(self->router);
    Py_CLEAR(self->gate_up);
    Py_CLEAR(self->down);
    mrl_py_dealloc_end(obj);
}

static int MoE_traverse(PyObject *obj, visitproc visit, void *arg)
{
    mrl_py_moe *self = (mrl_py_moe *)obj;
    Py_VISIT(self->router);
    Py_VISIT(self->gate_up);
    Py_VISIT(self->down);
    return mrl_py_traverse(obj, visit, arg);
}

/* ---- use ---- */

/* One row may come without its leading axis: the op sees (1, columns). */
static void as_rows(mrl_view *view)
{
    if (view->buffer == NULL || view->ndim != 1)
        return;
    view->ndim = 2;
    view->shape[1] = view->shape[0];
    view->shape[0] = 1;
}

/* The input that call and route share; x must have the width of the experts. */
static mrl_device *parse_input(mrl_py_moe *self, PyObject *x, PyObject *norm, PyObject *eps, PyObject *positions,
                               mrl_moe_args *call)
{
    const uint32_t hidden = mrl_moe_layer_of(self->moe)->hidden;
    double eps_value = 1e-6;
    mrl_device *dev;

    call->layer = mrl_moe_layer_of(self->moe);
    if ((dev = mrl_py_device(self->state, self->device, "moe")) == NULL ||
        mrl_py_view(self->state, x, "moe: x", false, &call->x) < 0 ||
        mrl_py_view(self->state, norm, "moe: norm", true, &call->norm) < 0 ||
        mrl_py_view(self->state, positions, "moe: positions", true, &call->positions) < 0 ||
        mrl_py_float(eps, "moe: eps", 0, 1, &eps_value) < 0)
        return NULL;
    if (call->x.ndim > 2 || call->x.shape[call->x.ndim - 1] != hidden || !mrl_dtype_is_float(call->x.dtype)) {
        char got[192];
        PyErr_Format(mrl_dtype_is_float(call->x.dtype) ? PyExc_ValueError : PyExc_TypeError,
                     "moe: x must be (rows, %u) or (%u) f32|f16|bf16, got %s", (unsigned int)hidden,
                     (unsigned int)hidden, mrl_view_text(&call->x, got, sizeof got));
        return NULL;
    }
    call->eps = (float)eps_value;
    return dev;
}

static PyObject *MoE_call(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x",   "norm",      "eps",    "residual", "dtype",
                                           "out", "positions", "kernel", "activations", "shares", NULL};
    mrl_py_moe *self = (mrl_py_moe *)obj;
    mrl_shares open = {0};
    mrl_moe_args call = {0};
    int shares = 0;
    PyObject *x, *norm = NULL, *eps = NULL, *residual = NULL, *dtype = NULL, *out = NULL, *positions = NULL, *y;
    const char *activations = NULL;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|$OOOOOOzzp:MoE", keywords, &x, &norm, &eps, &residual, &dtype, &out, &positions,
                   &call.kernel, &activations, &shares) ||
        mrl_py_int8(activations, "moe", &call.int8) < 0 ||
        (dev = parse_input(self, x, norm, eps, positions, &call)) == NULL ||
        mrl_py_view(self->state, residual, "moe: residual", true, &call.residual) < 0 ||
        mrl_py_dtype(dtype, "moe: dtype", call.norm.buffer != NULL ? MRL_DTYPE_f16 : call.x.dtype, &call.dtype) < 0)
        return NULL;
    if (!mrl_dtype_is_float(call.dtype)) {
        PyErr_Format(PyExc_TypeError, "moe: dtype must be f32, f16 or bf16, got %s", mrl_dtype_name(call.dtype));
        return NULL;
    }
    const int ndim = call.x.ndim;
    y = mrl_py_tensor_out(self->state, self->device, out, "moe: out",
                          call.residual.buffer != NULL ? MRL_DTYPE_f32 : call.dtype, ndim, call.x.shape, &call.y);
    if (y == NULL)
        return NULL;
    as_rows(&call.x);
    as_rows(&call.y);
    as_rows(&call.residual);
    if (shares && out == NULL && ndim == 2) call.open = &open;
    MRL_NOGIL(rc = mrl_op_moe(dev, &call, &err));
    if (rc == MRL_OK && open.count == 0) return y;
    Py_DECREF(y);
    if (rc != MRL_OK) {
        mrl_buffer_release(open.buffer);
        return mrl_raise(self->state, &err);
    }
    return mrl_py_shares_new(self->state, self->device, &open, call.layer->hidden, &call.residual);
}

static PyObject *MoE_route(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"x", "norm", "eps", "positions", NULL};
    mrl_py_moe *self = (mrl_py_moe *)obj;
    mrl_moe_args call = {0};
    PyObject *x, *norm = NULL, *eps = NULL, *positions = NULL, *ids, *weights;
    mrl_view ids_view, weights_view;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "O|$OOO:route", keywords, &x, &norm, &eps, &positions) ||
        (dev = parse_input(self, x, norm, eps, positions, &call)) == NULL)
        return NULL;
    as_rows(&call.x);
    const uint64_t shape[2] = {call.x.shape[0], call.layer->top_k + call.layer->shared};
    ids = mrl_py_tensor_out(self->state, self->device, NULL, "", MRL_DTYPE_i32, 2, shape, &ids_view);
    if (ids == NULL)
        return NULL;
    weights = mrl_py_tensor_out(self->state, self->device, NULL, "", MRL_DTYPE_f32, 2, shape, &weights_view);
    if (weights == NULL) {
        Py_DECREF(ids);
        return NULL;
    }
    MRL_NOGIL(rc = mrl_op_route(dev, &call, &ids_view, &weights_view, &err));
    if (rc != MRL_OK) {
        Py_DECREF(ids);
        Py_DECREF(weights);
        return mrl_raise(self->state, &err);
    }
    return Py_BuildValue("(NN)", ids, weights);
}

static PyObject *MoE_reset_usage(PyObject *obj, PyObject *unused)
{
    mrl_py_moe *self = (mrl_py_moe *)obj;
    mrl_error err;
    mrl_status rc;

    (void)unused;
    if (mrl_py_device(self->state, self->device, "moe") == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_moe_reset_usage(self->moe, &err));
    if (rc != MRL_OK)
        return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

/* ---- attributes ---- */

static PyObject *MoE_get_usage(PyObject *obj, void *unused)
{
    mrl_py_moe *self = (mrl_py_moe *)obj;
    const mrl_view view = mrl_moe_usage(self->moe);
    (void)unused;
    return mrl_py_tensor_wrap(self->state, self->device, &view);
}

static PyObject *MoE_get_open_choice(PyObject *obj, void *unused)
{
    (void)unused;
    return PyBool_FromLong(mrl_moe_open_choice(((mrl_py_moe *)obj)->moe));
}

/* closure: 0 experts, 1 top_k, 2 shared, 3 hidden, 4 inner */
static PyObject *MoE_get_number(PyObject *obj, void *closure)
{
    const mrl_moe_layer *layer = mrl_moe_layer_of(((mrl_py_moe *)obj)->moe);
    const uint32_t numbers[] = {layer->experts, layer->top_k, layer->shared, layer->hidden, layer->inner};
    return PyLong_FromUnsignedLong(numbers[(uintptr_t)closure]);
}

static PyObject *MoE_repr(PyObject *obj)
{
    mrl_py_moe *self = (mrl_py_moe *)obj;
    const mrl_moe_layer *layer = mrl_moe_layer_of(self->moe);
    PyObject *first = PyTuple_Check(self->gate_up) ? PyTuple_GetItem(self->gate_up, 0) : self->gate_up;
    const char *format = layer->nstacks > 1                ? "several formats"
                         : layer->stacks[0].gate_up == NULL ? "exl3"
                                                            : mrl_linear_format(mrl_py_linear_of(first));
    return PyUnicode_FromFormat("<MoE %u of %u experts (%u, %u) %s%s>", (unsigned int)layer->top_k,
                                (unsigned int)layer->experts, (unsigned int)layer->hidden, (unsigned int)layer->inner,
                                format, layer->shared ? ", shared ones" : "");
}

/* ---- the type ---- */

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef MoE_methods[] = {
    {"route", WITH_KEYWORDS(MoE_route),
     "route($self, x, *, norm=None, eps=1e-06, positions=None)\n--\n\n"
     "What the router chooses: experts (rows, top_k + shared) i32, the best first and the shared ones last, -1 in\n"
     "idle rows, and their weights f32. Counted in usage like a call."},
    {"reset_usage", MoE_reset_usage, METH_NOARGS, "reset_usage($self, /)\n--\n\nSets the counters of usage to 0."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef MoE_getset[] = {
    {"experts", MoE_get_number, NULL, "routed experts", (void *)0},
    {"top_k", MoE_get_number, NULL, "experts that a row goes to", (void *)1},
    {"shared", MoE_get_number, NULL, "experts that every row goes to", (void *)2},
    {"hidden", MoE_get_number, NULL, "columns of x", (void *)3},
    {"inner", MoE_get_number, NULL, "columns between gate/up and down of an expert", (void *)4},
    {"usage", MoE_get_usage, NULL, "(experts) u32 Tensor: how often each was chosen, modulo 2^32", NULL},
    {"open_choice", MoE_get_open_choice, NULL,
     "whether gate and up choose the experts of a single row, so that the router's workgroups wait for nobody", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot MoE_slots[] = {
    {Py_tp_new, MoE_new},
    {Py_tp_dealloc, MoE_dealloc},
    {Py_tp_traverse, MoE_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, MoE_repr},
    {Py_tp_call, MoE_call},
    {Py_tp_methods, MoE_methods},
    {Py_tp_getset, MoE_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc,
     "MoE(router, gate_up, down, *, experts, top_k, shared=0, scoring='softmax', normalise=True, scale=1.0, "
     "groups=1, top_groups=1, group_best=2, bias=None, activation='swiglu', stacks=None)\n--\n\n"
     "A mixture of experts over three Linears: router (experts [+ 1], hidden) f32, f16 or bf16; gate_up\n"
     "((experts + shared) * 2 * inner, hidden), rows of gate and up alternating in each expert; down\n"
     "((experts + shared) * hidden, inner); "
     "or, for EXL3, gate_up is a tuple (gate, up) and all three are TrellisLinears\n"
     "of experts + shared experts. Experts of several formats: gate_up and down are lists, and stacks says for each\n"
     "expert, shared ones last, at which place in them it lies; in each the experts keep their order. Calling it with\n"
     "x (rows, hidden) gives residual + the weighted sum of the experts that the router chooses for norm(x), or with\n"
     "shares, where that saves a wait, Shares to be added to the residual."},
    {0, NULL},
};

static PyType_Spec MoE_spec = {
    .name = "marlin._C.MoE",
    .basicsize = sizeof(mrl_py_moe),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = MoE_slots,
};

int mrl_py_moe_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &MoE_spec, &state->MoE);
}
