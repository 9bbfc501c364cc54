/* Program: `with device.capture() as program:` and replays. */
#include "py/pymrl.h"

typedef enum { PHASE_NEW, PHASE_CAPTURING, PHASE_READY, PHASE_FAILED } phase;

typedef struct {
    MRL_PY_HEAD
    mrl_device *dev;      /* borrowed from device, from the capture on */
    mrl_program *program; /* NULL before the capture and after a failed one */
    phase phase;          /* changes under the GIL only */
} mrl_py_program_object;

static const char *const phase_texts[] = {
    [PHASE_NEW] = "not captured yet: use `with device.capture() as program:`",
    [PHASE_CAPTURING] = "still being captured",
    [PHASE_READY] = "captured already; device.capture() makes another",
    [PHASE_FAILED] = "empty: its capture failed",
};

static int wrong_phase(const mrl_state *state, const char *name, phase now)
{
    PyErr_Format(state->MarlinError, "%s: the program is %s", name, phase_texts[now]);
    return -1;
}

int mrl_py_program(const mrl_state *state, PyObject *obj, const char *name, mrl_program **out)
{
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    if (!Py_IS_TYPE(obj, state->Program))
        return mrl_py_wrong_type(name, "a Program", obj);
    if (self->phase != PHASE_READY)
        return wrong_phase(state, name, self->phase);
    *out = self->program;
    return 0;
}

static PyObject *Program_enter(PyObject *obj, PyObject *unused)
{
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;

    (void)unused;
    if (self->phase != PHASE_NEW) {
        wrong_phase(self->state, "capture", self->phase);
        return NULL;
    }
    if ((dev = mrl_py_device(self->state, self->device, "capture")) == NULL)
        return NULL;
    self->dev = dev;
    self->phase = PHASE_CAPTURING;
    MRL_NOGIL(rc = mrl_program_begin(dev, &self->program, &err));
    if (rc != MRL_OK) {
        self->phase = PHASE_NEW;
        return mrl_raise(self->state, &err);
    }
    /* The thread records into the program until __exit__, whoever forgets it: one reference is the
     * capture's. */
    Py_INCREF(obj);
    Py_INCREF(obj);
    return obj;
}

static PyObject *Program_exit(PyObject *obj, PyObject *args)
{
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    PyObject *type = Py_None, *value, *traceback;
    mrl_program *dropped = NULL;
    mrl_error err;
    mrl_status rc = MRL_OK;

    if (!PyArg_UnpackTuple(args, "__exit__", 0, 3, &type, &value, &traceback))
        return NULL;
    if (self->phase != PHASE_CAPTURING || self->program == NULL) {
        wrong_phase(self->state, "__exit__", self->phase);
        return NULL;
    }
    if (mrl_program_capturing(self->dev) != self->program) {
        PyErr_SetString(self->state->MarlinError, "a capture must end in the thread that began it");
        return NULL;
    }
    self->phase = PHASE_FAILED; /* until it is known better */
    if (type == Py_None)
        MRL_NOGIL(rc = mrl_program_end(self->program, &err));
    else
        MRL_NOGIL(mrl_program_abort(self->program)); /* waits for compilers */
    if (type == Py_None && rc == MRL_OK) {
        self->phase = PHASE_READY;
    } else {
        dropped = self->program;
        self->program = NULL;
        MRL_NOGIL(mrl_program_release(dropped));
    }
    Py_DECREF(obj); /* the capture's; the caller holds another */
    if (rc != MRL_OK)
        return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *Program_replay(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"wait", NULL};
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    mrl_program *program = NULL;
    mrl_error err;
    mrl_status rc;
    uint64_t value = 0;
    int wait = 0;

    if (!MRL_PARSE(args, kwargs, "|p:replay", keywords, &wait) ||
        mrl_py_program(self->state, obj, "replay", &program) < 0)
        return NULL;
    MRL_NOGIL({
        rc = mrl_program_replay(program, &value, &err);
        if (rc == MRL_OK && wait)
            rc = mrl_device_wait(self->dev, value, &err);
    });
    if (rc != MRL_OK)
        return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *Program_get_stats(PyObject *obj, void *unused)
{
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    mrl_program_stats stats;
    mrl_program *program = NULL;

    (void)unused;
    if (mrl_py_program(self->state, obj, "stats", &program) < 0)
        return NULL;
    mrl_program_stats_of(program, &stats);
    return Py_BuildValue(
        "{s:I,s:I,s:I,s:K,s:K,s:K,s:d}", "dispatches", (unsigned int)stats.dispatches, "barriers",
        (unsigned int)stats.barriers, "submissions", (unsigned int)stats.submissions, "arena_bytes",
        (unsigned long long)stats.arena_bytes, "read_bytes", (unsigned long long)stats.read_bytes,
        "write_bytes", (unsigned long long)stats.write_bytes, "flops", stats.flops);
}

static PyObject *Program_repr(PyObject *obj)
{
    mrl_py_program_object *self = (mrl_py_program_object *)obj;
    mrl_program_stats stats;

    if (self->phase != PHASE_READY)
        return PyUnicode_FromFormat("<Program, %s>", phase_texts[self->phase]);
    mrl_program_stats_of(self->program, &stats);
    return PyUnicode_FromFormat("<Program of %u dispatches, %u barriers>",
                                (unsigned int)stats.dispatches, (unsigned int)stats.barriers);
}

static void Program_dealloc(PyObject *obj)
{
    mrl_program *program = ((mrl_py_program_object *)obj)->program;
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_program_release(program)); /* waits for the GPU */
    mrl_py_dealloc_end(obj);
}

static PyMethodDef Program_methods[] = {
    {"__enter__", Program_enter, METH_NOARGS,
     "__enter__($self)\n--\n\nBegins the capture: what this thread calls on the device goes into "
     "the program."},
    {"__exit__", Program_exit, METH_VARARGS,
     "__exit__($self, *exc)\n--\n\nEnds the capture; after an exception the program stays empty."},
    {"replay", (PyCFunction)(void (*)(void))Program_replay, METH_VARARGS | METH_KEYWORDS,
     "replay($self, wait=False)\n--\n\nSubmits the program behind everything recorded so far; "
     "wait: until it is done."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Program_getset[] = {
    {"stats", Program_get_stats, NULL,
     "dispatches, barriers, submissions, arena_bytes, read_bytes, write_bytes (declared), flops",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Program_slots[] = {
    {Py_tp_dealloc, Program_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Program_repr},
    {Py_tp_methods, Program_methods},
    {Py_tp_getset, Program_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc,
     "A captured list of operations, replayed by one submission; made by Device.capture()."},
    {0, NULL},
};

static PyType_Spec Program_spec = {
    .name = "marlin._C.Program",
    .basicsize = sizeof(mrl_py_program_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Program_slots,
};

int mrl_py_program_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &Program_spec, &state->Program);
}
