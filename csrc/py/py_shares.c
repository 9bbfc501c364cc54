/* Shares: a row that whoever reads it adds up (ops/shares.h). */
#include "py/pymrl.h"

#include "ops/shares.h"

typedef struct {
    MRL_PY_HEAD
    mrl_shares shares;
    mrl_view base; /* (1, columns) f32 that they are added to, retained; or absent */
    uint32_t columns;
} mrl_py_shares;

PyObject *mrl_py_shares_new(mrl_state *state, PyObject *device, const mrl_shares *shares, uint32_t columns,
                            const mrl_view *base)
{
    mrl_py_shares *self = mrl_py_alloc(state->Shares, state, device);
    if (self == NULL) {
        mrl_buffer_release(shares->buffer);
        return NULL;
    }
    self->shares = *shares;
    self->columns = columns;
    if (base != NULL && base->buffer != NULL) {
        self->base = *base;
        mrl_buffer_retain(base->buffer);
    }
    return (PyObject *)self;
}

int mrl_py_view_or_shares(const mrl_state *state, PyObject *obj, const char *name, mrl_view *view, mrl_shares *shares,
                          mrl_view *base)
{
    const mrl_py_shares *self = (mrl_py_shares *)obj;

    if (!PyObject_TypeCheck(obj, state->Shares)) return mrl_py_view(state, obj, name, false, view);
    if ((self->base.buffer != NULL) != (base != NULL)) {
        PyErr_Format(PyExc_ValueError, base == NULL ? "%s: shares with a base are for TrellisLinear"
                                                    : "%s: shares without a base are for mla", name);
        return -1;
    }
    *view = (mrl_view){.dtype = MRL_DTYPE_f16, .ndim = 2, .shape = {1, self->columns}};
    *shares = self->shares;
    if (base != NULL) *base = self->base;
    return 0;
}

static void Shares_dealloc(PyObject *obj)
{
    mrl_py_shares *self = (mrl_py_shares *)obj;
    mrl_py_dealloc_begin(obj);
    mrl_buffer_release(self->shares.buffer);
    mrl_buffer_release(self->base.buffer);
    mrl_py_dealloc_end(obj);
}

static PyObject *Shares_get_shape(PyObject *obj, void *unused)
{
    (void)unused;
    return Py_BuildValue("(iI)", 1, (unsigned int)((mrl_py_shares *)obj)->columns);
}

static PyObject *Shares_get_count(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((mrl_py_shares *)obj)->shares.count);
}

static PyObject *Shares_repr(PyObject *obj)
{
    const mrl_py_shares *self = (mrl_py_shares *)obj;
    return PyUnicode_FromFormat("<Shares (1, %u), %u%s>", (unsigned int)self->columns, (unsigned int)self->shares.count,
                                self->base.buffer != NULL ? " and a base" : "");
}

static PyMethodDef Shares_methods[] = {
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Shares_getset[] = {
    {"shape", Shares_get_shape, NULL, "(1, columns)", NULL},
    {"count", Shares_get_count, NULL, "how many there are", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Shares_slots[] = {
    {Py_tp_dealloc, Shares_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Shares_repr},
    {Py_tp_methods, Shares_methods},
    {Py_tp_getset, Shares_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc, "A result (1, columns) that its workgroups left in shares, for others to add up as they read it: mla,\n"
                "where it is q, or, of shares that are to be added to a base, TrellisLinear. "
                "Made by TrellisLinear and MoE\n"
                "when asked for shares, with the residual as base. The base is read when the shares are."},
    {0, NULL},
};

static PyType_Spec Shares_spec = {
    .name = "marlin._C.Shares",
    .basicsize = sizeof(mrl_py_shares),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Shares_slots,
};

int mrl_py_shares_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &Shares_spec, &state->Shares);
}
