/* StepState, sample and Generator: decode steps that run without Python. */
#include "py/pymrl.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "engine/generator.h"

#define WAIT_MS 100 /* between two looks at pending signals */

typedef struct {
    MRL_PY_HEAD
    mrl_step_state *step;
} mrl_py_step_state;

typedef struct {
    MRL_PY_HEAD
    mrl_generator *generator;
    uint32_t slots;
} mrl_py_generator;

/* ---- StepState
 * --------------------------------------------------------------------------------------- */

static PyObject *StepState_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"device", "slots", "vocab", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    PyObject *device, *slots_obj, *vocab_obj;
    mrl_py_step_state *self;
    mrl_step_state *step;
    mrl_device *dev;
    mrl_error err;
    mrl_status rc;
    uint32_t slots = 0, vocab = 0;

    if (!MRL_PARSE(args, kwargs, "OOO:StepState", keywords, &device, &slots_obj, &vocab_obj) ||
        (dev = mrl_py_device(state, device, "StepState: device")) == NULL ||
        mrl_py_u32(slots_obj, "StepState: slots", 1, MRL_SLOTS_MAX, &slots) < 0 ||
        mrl_py_u32(vocab_obj, "StepState: vocab", 1, MRL_VOCAB_MAX, &vocab) < 0)
        return NULL;
    MRL_NOGIL(rc = mrl_step_state_create(dev, slots, vocab, &step, &err));
    if (rc != MRL_OK) return mrl_raise(state, &err);
    if ((self = mrl_py_alloc(type, state, device)) == NULL)
        mrl_step_state_release(step);
    else
        self->step = step;
    return (PyObject *)self;
}

static void StepState_dealloc(PyObject *obj)
{
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_step_state_release(((mrl_py_step_state *)obj)->step)); /* large memory waits for the GPU */
    mrl_py_dealloc_end(obj);
}

static const mrl_step_buffers *buffers_of(PyObject *obj)
{
    return mrl_step_state_buffers(((mrl_py_step_state *)obj)->step);
}

static PyObject *StepState_get_slots(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(buffers_of(obj)->slots);
}

static PyObject *StepState_get_vocab(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(buffers_of(obj)->vocab);
}

static PyObject *row_tensor(PyObject *obj, mrl_buffer *buffer)
{
    mrl_py_step_state *self = (mrl_py_step_state *)obj;
    mrl_view view = {
        .buffer = buffer, .dtype = MRL_DTYPE_i32, .ndim = 1, .shape = {buffers_of(obj)->slots}};
    return mrl_py_tensor_wrap(self->state, self->device, &view);
}

static PyObject *StepState_get_tokens(PyObject *obj, void *unused)
{
    (void)unused;
    return row_tensor(obj, buffers_of(obj)->tokens);
}

static PyObject *StepState_get_positions(PyObject *obj, void *unused)
{
    (void)unused;
    return row_tensor(obj, buffers_of(obj)->positions);
}

static PyObject *StepState_get_slot_ids(PyObject *obj, void *unused)
{
    (void)unused;
    return row_tensor(obj, mrl_step_state_slot_ids(((mrl_py_step_state *)obj)->step));
}

static PyObject *StepState_repr(PyObject *obj)
{
    const mrl_step_buffers *buffers = buffers_of(obj);
    return PyUnicode_FromFormat("<StepState of %u slots, vocabulary %u>",
                                (unsigned int)buffers->slots, (unsigned int)buffers->vocab);
}

static PyMethodDef StepState_methods[] = {
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef StepState_getset[] = {
    {"slots", StepState_get_slots, NULL, "rows of a decode step", NULL},
    {"vocab", StepState_get_vocab, NULL, "logits a row", NULL},
    {"tokens", StepState_get_tokens, NULL, "(slots) i32: the next input token; the memory itself",
     NULL},
    {"positions", StepState_get_positions, NULL,
     "(slots) i32: where it stands, -1 when idle; the memory itself", NULL},
    {"slot_ids", StepState_get_slot_ids, NULL, "(slots) i32: 0, 1, 2 ...; the memory itself", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot StepState_slots[] = {
    {Py_tp_new, StepState_new},
    {Py_tp_dealloc, StepState_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, StepState_repr},
    {Py_tp_methods, StepState_methods},
    {Py_tp_getset, StepState_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc,
     "StepState(device, slots, vocab)\n--\n\n"
     "What changes from step to step, one row a slot, in GPU memory: tokens, positions, sampling "
     "parameters. Kernels advance it."},
    {0, NULL},
};

static PyType_Spec StepState_spec = {
    .name = "marlin._C.StepState",
    .basicsize = sizeof(mrl_py_step_state),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = StepState_slots,
};

/* ---- sample
 * ------------------------------------------------------------------------------------------ */

static PyObject *module_sample(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"logits", "state", NULL};
    mrl_state *state = mrl_py_state(module);
    PyObject *logits_obj, *step_obj;
    mrl_view logits;
    mrl_error err;
    mrl_status rc;

    if (!MRL_PARSE(args, kwargs, "OO:sample", keywords, &logits_obj, &step_obj) ||
        mrl_py_view(state, logits_obj, "sample: logits", false, &logits) < 0)
        return NULL;
    if (!Py_IS_TYPE(step_obj, state->StepState)) {
        mrl_py_wrong_type("sample: state", "a StepState", step_obj);
        return NULL;
    }
    MRL_NOGIL(rc = mrl_sample(&logits, buffers_of(step_obj), &err));
    if (rc != MRL_OK) return mrl_raise(state, &err);
    Py_RETURN_NONE;
}

/* ---- Generator
 * --------------------------------------------------------------------------------------- */

/* The items of an iterable as a tuple, and their number. */
static PyObject *items_of(PyObject *obj, const char *name, const char *expected, size_t *count)
{
    PyObject *items = PySequence_Tuple(obj);
    if (items != NULL)
        *count = (size_t)PyTuple_Size(items);
    else if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        mrl_py_wrong_type(name, expected, obj);
    }
    return items;
}

/* A pair in a tuple of pairs, its halves borrowed. */
static int pair_at(PyObject *items, size_t i, const char *name, const char *expected,
                   PyObject **first, PyObject **second)
{
    PyObject *pair = PyTuple_GetItem(items, (Py_ssize_t)i);
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2)
        return mrl_py_wrong_type(name, expected, pair);
    *first = PyTuple_GetItem(pair, 0);
    *second = PyTuple_GetItem(pair, 1);
    return 0;
}

static int parse_programs(const mrl_state *state, PyObject *device, PyObject *items, size_t count,
                          mrl_step_program *out)
{
    static const char expected[] = "a tuple (bound, Program)";
    for (size_t i = 0; i < count; i++) {
        PyObject *bound, *program;
        if (pair_at(items, i, "Generator: each of programs", expected, &bound, &program) < 0 ||
            mrl_py_u32(bound, "Generator: bound", 1, INT32_MAX, &out[i].bound) < 0 ||
            mrl_py_program(state, program, "Generator: program", &out[i].program) < 0)
            return -1;
        if (mrl_py_device_of(program) != device) {
            PyErr_SetString(PyExc_ValueError,
                            "Generator: the programs must be on the device of the state");
            return -1;
        }
    }
    return 0;
}

static PyObject *Generator_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"state", "programs", "depth", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    PyObject *step_obj, *programs_obj, *depth_obj = NULL, *items = NULL;
    mrl_step_program *programs = NULL;
    mrl_py_generator *self = NULL;
    mrl_generator *generator;
    mrl_error err;
    mrl_status rc;
    size_t count;
    uint32_t depth = 4;

    if (!MRL_PARSE(args, kwargs, "OO|$O:Generator", keywords, &step_obj, &programs_obj, &depth_obj))
        return NULL;
    if (!Py_IS_TYPE(step_obj, state->StepState)) {
        mrl_py_wrong_type("Generator: state", "a StepState", step_obj);
        return NULL;
    }
    PyObject *device = mrl_py_device_of(step_obj);
    mrl_step_state *step = ((mrl_py_step_state *)step_obj)->step;
    if (mrl_py_u32(depth_obj, "Generator: depth", 1, MRL_RING_STEPS, &depth) < 0 ||
        (items = items_of(programs_obj, "Generator: programs", "a sequence of (bound, Program)",
                          &count)) == NULL)
        return NULL;
    if ((programs = calloc(count + 1, sizeof *programs)) == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (parse_programs(state, device, items, count, programs) < 0) goto done;
    rc = mrl_generator_create(step, programs, count, depth, &generator, &err);
    if (rc != MRL_OK) {
        mrl_raise(state, &err);
        goto done;
    }
    if ((self = mrl_py_alloc(type, state, device)) == NULL) {
        mrl_generator_destroy(generator);
        goto done;
    }
    self->generator = generator;
    self->slots = buffers_of(step_obj)->slots;
done:
    free(programs);
    Py_DECREF(items);
    return (PyObject *)self;
}

static void Generator_dealloc(PyObject *obj)
{
    mrl_generator *generator = ((mrl_py_generator *)obj)->generator;
    mrl_py_dealloc_begin(obj);
    MRL_NOGIL(mrl_generator_destroy(generator)); /* its programs may have to wait for the GPU */
    mrl_py_dealloc_end(obj);
}

/* ids of an optional iterable of integers; *out is malloc'd, NULL when absent. */
static int parse_ids(PyObject *obj, const char *name, uint32_t **out, size_t *count)
{
    PyObject *items;
    int failed = 0;

    if (obj == NULL) return 0;
    if ((items = items_of(obj, name, "a sequence of token ids", count)) == NULL) return -1;
    if ((*out = malloc((*count + 1) * sizeof **out)) == NULL) {
        PyErr_NoMemory();
        failed = 1;
    }
    for (size_t i = 0; !failed && i < *count; i++)
        failed = mrl_py_u32(PyTuple_GetItem(items, (Py_ssize_t)i), name, 0, MRL_VOCAB_MAX,
                            &(*out)[i]) < 0;
    Py_DECREF(items);
    return failed ? -1 : 0;
}

static int parse_biases(PyObject *obj, mrl_bias **out, size_t *count)
{
    PyObject *items;
    int failed = 0;

    if (obj == NULL) return 0;
    items = items_of(obj, "admit: bias", "a sequence of tuples (id, bias)", count);
    if (items == NULL) return -1;
    if ((*out = calloc(*count + 1, sizeof **out)) == NULL) {
        PyErr_NoMemory();
        failed = 1;
    }
    for (size_t i = 0; !failed && i < *count; i++) {
        PyObject *id, *value;
        double number = 0.0;
        failed = pair_at(items, i, "admit: each bias", "a tuple (id, bias)", &id, &value) < 0 ||
                 mrl_py_u32(id, "admit: bias id", 0, MRL_VOCAB_MAX, &(*out)[i].id) < 0 ||
                 mrl_py_float(value, "admit: bias", -INFINITY, (double)FLT_MAX, &number) < 0;
        (*out)[i].value = (float)number;
    }
    Py_DECREF(items);
    return failed ? -1 : 0;
}

static int required(PyObject *obj, const char *name)
{
    if (obj == NULL) PyErr_Format(PyExc_TypeError, "admit() needs the keyword %s", name);
    return obj == NULL ? -1 : 0;
}

static PyObject *Generator_admit(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"slot",     "token",       "position",
                                           "limit",    "temperature", "top_k",
                                           "top_p",    "min_p",       "repetition_penalty",
                                           "seed",     "draws",       "stop_ids",
                                           "logprobs", "bias",        "seen",
                                           NULL};
    enum {
        SLOT,
        TOKEN,
        POSITION,
        LIMIT,
        TEMPERATURE,
        TOP_K,
        TOP_P,
        MIN_P,
        PENALTY,
        SEED,
        DRAWS,
        STOPS,
        LOGPROBS,
        BIAS,
        SEEN,
        COUNT
    };
    mrl_py_generator *self = (mrl_py_generator *)obj;
    PyObject *o[COUNT] = {NULL};
    mrl_admission a = {0};
    double temperature = 0.0, top_p = 1.0, min_p = 0.0, penalty = 1.0;
    uint32_t *stops = NULL, *seen = NULL;
    mrl_bias *biases = NULL;
    mrl_error err;
    mrl_status rc = MRL_ERR_STATE;
    bool parsed = false;

    if (!MRL_PARSE(args, kwargs, "O|$OOOOOOOOOOOOOO:admit", keywords, &o[SLOT], &o[TOKEN],
                   &o[POSITION], &o[LIMIT], &o[TEMPERATURE], &o[TOP_K], &o[TOP_P], &o[MIN_P],
                   &o[PENALTY], &o[SEED], &o[DRAWS], &o[STOPS], &o[LOGPROBS], &o[BIAS], &o[SEEN]))
        return NULL;
    for (int i = TOKEN; i <= LIMIT; i++)
        if (required(o[i], keywords[i]) < 0) return NULL;
    if (mrl_py_u32(o[SLOT], "admit: slot", 0, self->slots - 1, &a.slot) < 0 ||
        mrl_py_u32(o[TOKEN], "admit: token", 0, MRL_VOCAB_MAX, &a.token) < 0 ||
        mrl_py_u32(o[POSITION], "admit: position", 0, INT32_MAX, &a.position) < 0 ||
        mrl_py_u32(o[LIMIT], "admit: limit", 0, INT32_MAX, &a.limit) < 0 ||
        mrl_py_float(o[TEMPERATURE], "admit: temperature", 0.0, (double)FLT_MAX, &temperature) <
            0 ||
        mrl_py_u32(o[TOP_K], "admit: top_k", 0, UINT32_MAX, &a.top_k) < 0 ||
        mrl_py_float(o[TOP_P], "admit: top_p", 0.0, 1.0, &top_p) < 0 ||
        mrl_py_float(o[MIN_P], "admit: min_p", 0.0, 1.0, &min_p) < 0 ||
        mrl_py_float(o[PENALTY], "admit: repetition_penalty", 0.0, (double)FLT_MAX, &penalty) < 0 ||
        mrl_py_u64(o[SEED], "admit: seed", 0, UINT64_MAX, &a.seed) < 0 ||
        mrl_py_u32(o[DRAWS], "admit: draws", 0, UINT32_MAX, &a.draws) < 0 ||
        mrl_py_u32(o[LOGPROBS], "admit: logprobs", 0, MRL_TOPS_MAX, &a.logprobs) < 0 ||
        parse_ids(o[STOPS], "admit: stop_ids", &stops, &a.nstops) < 0 ||
        parse_biases(o[BIAS], &biases, &a.nbiases) < 0 ||
        parse_ids(o[SEEN], "admit: seen", &seen, &a.nseen) < 0)
        goto done;
    parsed = true;
    a.temperature = (float)temperature;
    a.top_p = (float)top_p;
    a.min_p = (float)min_p;
    a.repetition_penalty = (float)penalty;
    a.stop_ids = stops;
    a.biases = biases;
    a.seen = seen;
    MRL_NOGIL(rc = mrl_generator_admit(self->generator, &a, &err));
    if (rc != MRL_OK) mrl_raise(self->state, &err);
done:
    free(stops);
    free(biases);
    free(seen);
    return parsed && rc == MRL_OK ? Py_NewRef(Py_None) : NULL;
}

static PyObject *Generator_release(PyObject *obj, PyObject *arg)
{
    mrl_py_generator *self = (mrl_py_generator *)obj;
    uint32_t slot = 0;
    mrl_error err;
    mrl_status rc;

    if (mrl_py_u32(arg, "release: slot", 0, self->slots - 1, &slot) < 0) return NULL;
    MRL_NOGIL(rc = mrl_generator_release(self->generator, slot, &err));
    if (rc != MRL_OK) return mrl_raise(self->state, &err);
    Py_RETURN_NONE;
}

/* (slot, token, finish, logprob, [(id, logprob)]) */
static PyObject *row_tuple(const mrl_generated *row)
{
    static const char *const finishes[] = {[MRL_FINISH_NONE] = NULL,
                                           [MRL_FINISH_STOP] = "stop",
                                           [MRL_FINISH_LENGTH] = "length",
                                           [MRL_FINISH_NAN] = "nan"};
    PyObject *tops = PyList_New((Py_ssize_t)row->tops);
    for (uint32_t i = 0; tops != NULL && i < row->tops; i++) {
        PyObject *top =
            Py_BuildValue("(Id)", (unsigned int)row->top_ids[i], (double)row->top_logprobs[i]);
        if (top == NULL || PyList_SetItem(tops, (Py_ssize_t)i, top) < 0) Py_CLEAR(tops);
    }
    if (tops == NULL) return NULL;
    return Py_BuildValue("(IizdN)", (unsigned int)row->slot, (int)row->token,
                         finishes[row->finish <= MRL_FINISH_NAN ? row->finish : MRL_FINISH_NAN],
                         (double)row->logprob, tops);
}

static PyObject *rows_list(const mrl_generated *rows, uint32_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        PyObject *row = row_tuple(&rows[i]);
        if (row == NULL || PyList_SetItem(list, (Py_ssize_t)i, row) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *Generator_pump(PyObject *obj, PyObject *unused)
{
    mrl_py_generator *self = (mrl_py_generator *)obj;
    mrl_generated *rows = malloc(self->slots * sizeof *rows);
    PyObject *list = NULL;
    mrl_error err;
    mrl_status rc;
    uint32_t count;
    bool again;

    (void)unused;
    if (rows == NULL) return PyErr_NoMemory();
    do {
        MRL_NOGIL(rc = mrl_generator_pump(self->generator, WAIT_MS, rows, &count, &again, &err));
    } while (rc == MRL_OK && again && PyErr_CheckSignals() == 0);
    if (rc != MRL_OK)
        mrl_raise(self->state, &err);
    else if (!again)
        list = rows_list(rows, count);
    free(rows);
    return list;
}

static PyObject *Generator_get_running(PyObject *obj, void *unused)
{
    uint32_t running;
    (void)unused;
    MRL_NOGIL(running = mrl_generator_running(((mrl_py_generator *)obj)->generator));
    return PyLong_FromUnsignedLong(running);
}

static PyObject *Generator_get_steps(PyObject *obj, void *unused)
{
    uint64_t steps;
    (void)unused;
    MRL_NOGIL(steps = mrl_generator_steps(((mrl_py_generator *)obj)->generator));
    return PyLong_FromUnsignedLongLong(steps);
}

static PyObject *Generator_get_depth(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(mrl_generator_depth(((mrl_py_generator *)obj)->generator));
}

static PyObject *Generator_repr(PyObject *obj)
{
    mrl_py_generator *self = (mrl_py_generator *)obj;
    uint32_t running;
    MRL_NOGIL(running = mrl_generator_running(self->generator));
    return PyUnicode_FromFormat("<Generator, %u of %u slots running>", (unsigned int)running,
                                (unsigned int)self->slots);
}

static PyMethodDef Generator_methods[] = {
    {"admit", (PyCFunction)(void (*)(void))Generator_admit, METH_VARARGS | METH_KEYWORDS,
     "admit($self, slot, *, token, position, limit, temperature=0.0, top_k=0, top_p=1.0, "
     "min_p=0.0, "
     "repetition_penalty=1.0, seed=0, draws=0, stop_ids=(), logprobs=0, bias=(), seen=())\n--\n\n"
     "Starts an idle slot: token is its next input, at position; it ends when the next would stand "
     "at limit. "
     "temperature below 1e-5 is greedy; bias: (id, value) added to logits, -inf bans; seen: what "
     "the penalty "
     "starts with."},
    {"release", Generator_release, METH_O,
     "release($self, slot, /)\n--\n\nStops a slot; its tokens in flight are dropped."},
    {"pump", Generator_pump, METH_NOARGS,
     "pump($self)\n--\n\nSubmits steps ahead, waits for the oldest and returns its rows (slot, "
     "token, finish, "
     "logprob, [(id, logprob)]), finish None, 'stop', 'length' or 'nan'; [] when no slot runs."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Generator_getset[] = {
    {"running", Generator_get_running, NULL, "slots not known to have ended", NULL},
    {"steps", Generator_get_steps, NULL, "steps submitted so far", NULL},
    {"depth", Generator_get_depth, NULL, "steps that may be in flight", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Generator_slots[] = {
    {Py_tp_new, Generator_new},
    {Py_tp_dealloc, Generator_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Generator_repr},
    {Py_tp_methods, Generator_methods},
    {Py_tp_getset, Generator_getset},
    {Py_tp_members, mrl_py_members},
    {Py_tp_doc, "Generator(state, programs, *, depth=4)\n--\n\n"
                "Replays captured decode steps ahead of the host. programs: [(bound, Program)] by "
                "growing bound; "
                "each is one step of all slots, for positions below its bound."},
    {0, NULL},
};

static PyType_Spec Generator_spec = {
    .name = "marlin._C.Generator",
    .basicsize = sizeof(mrl_py_generator),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Generator_slots,
};

static PyMethodDef functions[] = {
    {"sample", (PyCFunction)(void (*)(void))module_sample, METH_VARARGS | METH_KEYWORDS,
     "sample(logits, state)\n--\n\n"
     "Draws the next token of every running slot from logits (slots, vocab) f32 and moves the "
     "state on by a step."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_generator_add(PyObject *module, mrl_state *state)
{
    if (mrl_py_add_type(module, &StepState_spec, &state->StepState) < 0 ||
        mrl_py_add_type(module, &Generator_spec, &state->Generator) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
