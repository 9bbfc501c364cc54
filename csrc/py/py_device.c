/* Device: an opened GPU; list_devices. */
#include "py/pymrl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/trellis.h"
#include "vk/loader.h"
#include "vk/pipeline.h"
#include "vk/profile.h"

typedef struct {
    MRL_PY_HEAD /* device is NULL: this is one */
    mrl_device *dev;
    int index;
} mrl_py_device_object;

static const char *const kinds[] = {
    [MRL_DEVICE_DISCRETE] = "discrete", [MRL_DEVICE_INTEGRATED] = "integrated",
    [MRL_DEVICE_VIRTUAL] = "virtual",   [MRL_DEVICE_OTHER] = "other",
    [MRL_DEVICE_SOFTWARE] = "software",
};

static mrl_device *device_of(PyObject *self) { return ((mrl_py_device_object *)self)->dev; }
static mrl_state *state_of(PyObject *self) { return ((mrl_py_object *)self)->state; }

mrl_device *mrl_py_device(const mrl_state *state, PyObject *obj, const char *name)
{
    mrl_error err;
    if (!Py_IS_TYPE(obj, state->Device)) {
        mrl_py_wrong_type(name, "a Device", obj);
        return NULL;
    }
    if (mrl_device_check(device_of(obj), &err) != MRL_OK) {
        mrl_raise(state, &err);
        return NULL;
    }
    return device_of(obj);
}

/* ---- what a device is ------------------------------------------------------------------------ */

static PyObject *text_of(const char *text)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

static PyObject *uuid_text(const uint8_t uuid[16])
{
    char text[33];
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", uuid[i]);
    return PyUnicode_FromString(text);
}

static PyObject *version_text(uint32_t version)
{
    return PyUnicode_FromFormat("%u.%u.%u", version >> 22 & 0x7f, version >> 12 & 0x3ff,
                                version & 0xfff);
}

static PyObject *feature_list(uint32_t features)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < MRL_FEATURE_COUNT; i++) {
        PyObject *name;
        if (!(features >> i & 1))
            continue;
        name = PyUnicode_FromString(mrl_feature_name(i));
        if (name == NULL || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *info_dict(const mrl_device_info *info, int index)
{
    return Py_BuildValue(
        "{s:i,s:N,s:N,s:s,s:N,s:N,s:I,s:I,s:I,s:N,s:N,s:N,s:I,s:I,s:I,s:I,s:I,s:(III),s:K,s:K,s:d}",
        "index", index, "name", text_of(info->name), "driver", text_of(info->driver), "kind",
        kinds[info->kind], "uuid", uuid_text(info->uuid), "driver_uuid",
        uuid_text(info->driver_uuid), "vendor", (unsigned int)info->vendor, "device_id",
        (unsigned int)info->device_id, "driver_version", (unsigned int)info->driver_version,
        "api_version", version_text(info->api_version), "features", feature_list(info->features),
        "missing", text_of(info->missing), "subgroup_size", (unsigned int)info->subgroup_size,
        "subgroup_min", (unsigned int)info->subgroup_min, "subgroup_max",
        (unsigned int)info->subgroup_max, "shared_bytes", (unsigned int)info->shared_bytes,
        "max_workgroup", (unsigned int)info->max_workgroup, "max_groups",
        (unsigned int)info->max_groups[0], (unsigned int)info->max_groups[1],
        (unsigned int)info->max_groups[2], "memory_bytes", (unsigned long long)info->memory_bytes,
        "max_allocation", (unsigned long long)info->max_allocation, "timestamp_ns",
        info->timestamp_ns);
}

/* All devices, malloc'd. No device is not an error: *count = 0, err->text says why. */
static mrl_status list_all(mrl_device_info **rows, int *count, mrl_error *err)
{
    int capacity = 16;
    mrl_status rc;

    for (;; capacity = *count) {
        if ((*rows = calloc((size_t)capacity, sizeof **rows)) == NULL)
            return mrl_fail(err, MRL_ERR_MEMORY, "out of host memory");
        err->text[0] = 0;
        rc = mrl_device_list(*rows, capacity, count, err);
        if (rc == MRL_OK && *count <= capacity)
            return MRL_OK;
        free(*rows);
        *rows = NULL;
        if (rc != MRL_OK)
            return rc;
    }
}

static PyObject *module_list_devices(PyObject *module, PyObject *unused)
{
    mrl_device_info *rows;
    mrl_error err;
    mrl_status rc;
    int count = 0;
    PyObject *list;

    (void)unused;
    MRL_NOGIL(rc = list_all(&rows, &count, &err));
    if (rc != MRL_OK)
        return mrl_raise(mrl_py_state(module), &err);
    list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *row = info_dict(&rows[i], i);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    free(rows);
    return list;
}

static PyObject *module_vulkan_error(PyObject *module, PyObject *unused)
{
    mrl_device_info *rows;
    mrl_error err;
    mrl_status rc;
    int count = 0;

    (void)unused;
    MRL_NOGIL(rc = list_all(&rows, &count, &err));
    if (rc != MRL_OK)
        return mrl_raise(mrl_py_state(module), &err);
    free(rows);
    if (count > 0)
        Py_RETURN_NONE;
    return text_of(err.text);
}

static PyObject *module_fork_remedy(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return text_of(mrl_vk_fork_remedy());
}

/* ---- opening --------------------------------------------------------------------------------- */

static int parse_features(PyObject *names, uint32_t *mask)
{
    PyObject *items;

    *mask = 0;
    if (names == NULL)
        return 0;
    if (!PySequence_Check(names) || PyUnicode_Check(names))
        return mrl_py_wrong_type("Device: disable", "a sequence of feature names", names);
    if ((items = PySequence_Tuple(names)) == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < PyTuple_Size(items); i++) {
        PyObject *item = PyTuple_GetItem(items, i);
        int feature = 0;
        if (!PyUnicode_Check(item)) {
            mrl_py_wrong_type("Device: disable", "a sequence of feature names", item);
            Py_DECREF(items);
            return -1;
        }
        while (feature < MRL_FEATURE_COUNT &&
               PyUnicode_CompareWithASCIIString(item, mrl_feature_name(feature)) != 0)
            feature++;
        if (feature == MRL_FEATURE_COUNT) {
#define FEATURE(name, text) " " #name
            PyErr_Format(PyExc_ValueError, "Device: disable has %R, features are"
#include "features.def"
                         ,
                         item);
#undef FEATURE
            Py_DECREF(items);
            return -1;
        }
        *mask |= 1u << feature;
    }
    Py_DECREF(items);
    return 0;
}

/* shaders.bin lies beside this module. Bytes, a new reference. */
static PyObject *default_shaders(PyTypeObject *type)
{
    PyObject *file = PyObject_GetAttrString(PyType_GetModule(type), "__file__"), *path = NULL,
             *bytes = NULL;
    const char *text, *slash;

    if (file == NULL || !PyUnicode_FSConverter(file, &bytes))
        goto done;
    text = PyBytes_AsString(bytes);
    slash = strrchr(text, '/');
    path = PyBytes_FromStringAndSize(text, slash != NULL ? slash - text + 1 : 0);
    PyBytes_ConcatAndDel(&path, PyBytes_FromString("shaders.bin"));
done:
    Py_XDECREF(file);
    Py_XDECREF(bytes);
    return path;
}

static PyObject *Device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"index", "disable", "shaders", "cache", NULL};
    mrl_state *state = PyType_GetModuleState(type);
    PyObject *index_obj = NULL, *disable_obj = NULL, *shaders_obj = NULL, *cache_obj = NULL;
    PyObject *shaders = NULL, *cache = NULL;
    mrl_py_device_object *self = NULL;
    mrl_device *dev = NULL;
    mrl_error err;
    mrl_status rc;
    int64_t index = 0;
    uint32_t disable;

    if (!MRL_PARSE(args, kwargs, "|O$OOO:Device", keywords, &index_obj, &disable_obj, &shaders_obj,
                   &cache_obj) ||
        mrl_py_int(index_obj, "Device: index", 0, INT32_MAX, &index) < 0 ||
        parse_features(disable_obj, &disable) < 0)
        return NULL;
    if (shaders_obj != NULL ? !PyUnicode_FSConverter(shaders_obj, &shaders)
                            : (shaders = default_shaders(type)) == NULL)
        goto done;
    if (cache_obj != NULL && cache_obj != Py_None && !PyUnicode_FSConverter(cache_obj, &cache))
        goto done;
    const char *shaders_path = PyBytes_AsString(shaders);
    const char *cache_path = cache != NULL ? PyBytes_AsString(cache) : NULL;
    MRL_NOGIL({
        rc = mrl_device_open((int)index, disable, shaders_path, cache_path, &dev, &err);
        if (rc == MRL_OK)
            rc = mrl_op_probe_fragments(dev, disable, &err);
    });
    if (rc != MRL_OK) {
        mrl_device_release(dev);
        mrl_raise(state, &err);
        goto done;
    }
    if ((self = mrl_py_alloc(type, state, NULL)) == NULL) {
        mrl_device_release(dev);
        goto done;
    }
    self->dev = dev;
    self->index = (int)index;
done:
    Py_XDECREF(shaders);
    Py_XDECREF(cache);
    return (PyObject *)self;
}

static void Device_dealloc(PyObject *self)
{
    mrl_py_dealloc_begin(self);
    MRL_NOGIL(mrl_device_release(device_of(self))); /* waits for the GPU */
    mrl_py_dealloc_end(self);
}

static PyObject *Device_repr(PyObject *self)
{
    const mrl_device_info *info = mrl_device_info_of(device_of(self));
    char size[32];
    PyObject *name = text_of(info->name), *driver = text_of(info->driver), *repr = NULL;

    snprintf(size, sizeof size, "%.1f GiB", (double)info->memory_bytes / (1u << 30));
    if (name != NULL && driver != NULL)
        repr = PyUnicode_FromFormat("<Device %d: %U (%U), %s, %s>",
                                    ((mrl_py_device_object *)self)->index, name, driver,
                                    kinds[info->kind], size);
    Py_XDECREF(name);
    Py_XDECREF(driver);
    return repr;
}

/* ---- attributes ------------------------------------------------------------------------------ */

static PyObject *Device_get_index(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((mrl_py_device_object *)self)->index);
}

static PyObject *Device_get_name(PyObject *self, void *unused)
{
    (void)unused;
    return text_of(mrl_device_info_of(device_of(self))->name);
}

static PyObject *Device_get_driver(PyObject *self, void *unused)
{
    (void)unused;
    return text_of(mrl_device_info_of(device_of(self))->driver);
}

static PyObject *Device_get_kind(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(kinds[mrl_device_info_of(device_of(self))->kind]);
}

static PyObject *Device_get_uuid(PyObject *self, void *unused)
{
    (void)unused;
    return uuid_text(mrl_device_info_of(device_of(self))->uuid);
}

static PyObject *Device_get_features(PyObject *self, void *unused)
{
    PyObject *list = feature_list(mrl_device_info_of(device_of(self))->features), *tuple = NULL;
    (void)unused;
    if (list != NULL)
        tuple = PyList_AsTuple(list);
    Py_XDECREF(list);
    return tuple;
}

static PyObject *Device_get_lost(PyObject *self, void *unused)
{
    mrl_error err;
    (void)unused;
    return PyBool_FromLong(mrl_device_check(device_of(self), &err) == MRL_ERR_DEVICE_LOST);
}

static PyGetSetDef Device_getset[] = {
    {"index", Device_get_index, NULL, "place in list_devices()", NULL},
    {"name", Device_get_name, NULL, "as the driver names it", NULL},
    {"kind", Device_get_kind, NULL, "discrete, integrated, virtual, other or software", NULL},
    {"driver", Device_get_driver, NULL, "driver name and version", NULL},
    {"uuid", Device_get_uuid, NULL, "32 hex digits, the same in every process", NULL},
    {"features", Device_get_features, NULL,
     "names of features() that it has and that are not disabled", NULL},
    {"lost", Device_get_lost, NULL, "True after the driver gave the device up", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* ---- methods --------------------------------------------------------------------------------- */

static PyObject *Device_info(PyObject *self, PyObject *unused)
{
    (void)unused;
    return info_dict(mrl_device_info_of(device_of(self)), ((mrl_py_device_object *)self)->index);
}

static PyObject *Device_memory(PyObject *self, PyObject *unused)
{
    mrl_device *dev = mrl_py_device(state_of(self), self, "memory");
    mrl_memory_stats stats;
    (void)unused;
    if (dev == NULL)
        return NULL;
    MRL_NOGIL(mrl_device_memory(dev, &stats));
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K}", "device_used",
                         (unsigned long long)stats.device_used, "device_reserved",
                         (unsigned long long)stats.device_reserved, "host_used",
                         (unsigned long long)stats.host_used, "host_reserved",
                         (unsigned long long)stats.host_reserved, "device_budget",
                         (unsigned long long)stats.device_budget, "device_peak",
                         (unsigned long long)stats.device_peak);
}

static PyObject *Device_sync(PyObject *self, PyObject *unused)
{
    mrl_device *dev = mrl_py_device(state_of(self), self, "sync");
    mrl_error err;
    mrl_status rc;
    (void)unused;
    if (dev == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_stream_sync(dev, &err));
    if (rc != MRL_OK)
        return mrl_raise(state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *Device_profile_start(PyObject *self, PyObject *unused)
{
    mrl_device *dev = mrl_py_device(state_of(self), self, "profile_start");
    mrl_error err;
    mrl_status rc;
    (void)unused;
    if (dev == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_profile_start(dev, &err));
    if (rc != MRL_OK)
        return mrl_raise(state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *Device_profile_stop(PyObject *self, PyObject *unused)
{
    mrl_device *dev = mrl_py_device(state_of(self), self, "profile_stop");
    mrl_profile_row *rows = NULL;
    size_t count = 0;
    mrl_error err;
    mrl_status rc;
    PyObject *list;

    (void)unused;
    if (dev == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_profile_stop(dev, &rows, &count, &err));
    if (rc != MRL_OK)
        return mrl_raise(state_of(self), &err);
    list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *row =
            Py_BuildValue("{s:s,s:d,s:K,s:d,s:N}", "name", rows[i].name, "ns", rows[i].ns, "bytes",
                          (unsigned long long)rows[i].bytes, "flops", rows[i].flops, "barrier",
                          PyBool_FromLong((long)rows[i].barrier));
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    free(rows);
    return list;
}

static PyObject *Device_set_debug(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"shuffle", "serial", "check", "seed", NULL};
    mrl_device *dev = mrl_py_device(state_of(self), self, "set_debug");
    int shuffle = 0, serial = 0, check = 0;
    PyObject *seed_obj = NULL;
    uint64_t seed = 0;
    mrl_status rc;
    mrl_error err;

    if (dev == NULL ||
        !MRL_PARSE(args, kwargs, "|$pppO:set_debug", keywords, &shuffle, &serial, &check,
                   &seed_obj) ||
        mrl_py_u64(seed_obj, "set_debug: seed", 0, UINT64_MAX, &seed) < 0)
        return NULL;
    mrl_stream_debug debug = {shuffle != 0, serial != 0, check != 0, seed};
    MRL_NOGIL(rc = mrl_stream_set_debug(dev, &debug, &err));
    if (rc != MRL_OK)
        return mrl_raise(state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *Device_inject(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static const char *const keywords[] = {"kind", "nth", NULL};
    mrl_device *dev = mrl_py_device(state_of(self), self, "inject");
    const char *kind;
    PyObject *nth_obj;
    uint64_t nth;
    mrl_error err;

    if (dev == NULL || !MRL_PARSE(args, kwargs, "sO:inject", keywords, &kind, &nth_obj) ||
        mrl_py_u64(nth_obj, "inject: nth", 0, INT64_MAX, &nth) < 0)
        return NULL;
    if (mrl_device_inject(dev, kind, nth, &err) != MRL_OK)
        return mrl_raise(state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *Device_save_cache(PyObject *self, PyObject *unused)
{
    mrl_device *dev = mrl_py_device(state_of(self), self, "save_cache");
    mrl_error err;
    mrl_status rc;
    (void)unused;
    if (dev == NULL)
        return NULL;
    MRL_NOGIL(rc = mrl_pipeline_save_cache(dev, &err));
    if (rc != MRL_OK)
        return mrl_raise(state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *Device_capture(PyObject *self, PyObject *unused)
{
    mrl_state *state = state_of(self);
    (void)unused;
    if (mrl_py_device(state, self, "capture") == NULL)
        return NULL;
    return mrl_py_alloc(state->Program, state, self);
}

static PyMethodDef Device_methods[] = {
    {"info", Device_info, METH_NOARGS,
     "info($self)\n--\n\nThe device's row of list_devices(), without the features that were "
     "disabled."},
    {"memory", Device_memory, METH_NOARGS,
     "memory($self)\n--\n\nBytes in use and reserved, of the device and of the host; what the "
     "driver has left for this process (device_budget); the most in use so far (device_peak)."},
    {"sync", Device_sync, METH_NOARGS, "sync($self)\n--\n\nWaits for all work recorded so far."},
    {"capture", Device_capture, METH_NOARGS,
     "capture($self)\n--\n\nA Program: `with device.capture() as program:` records what this "
     "thread calls."},
    {"profile_start", Device_profile_start, METH_NOARGS,
     "profile_start($self)\n--\n\nPuts timestamps around every dispatch from now on."},
    {"profile_stop", Device_profile_stop, METH_NOARGS,
     "profile_stop($self)\n--\n\nWaits; one row a dispatch: name, ns, bytes (declared), flops, "
     "barrier."},
    {"set_debug", (PyCFunction)(void (*)(void))Device_set_debug, METH_VARARGS | METH_KEYWORDS,
     "set_debug($self, *, shuffle=False, serial=False, check=False, seed=0)\n--\n\n"
     "shuffle: random order between barriers; serial: a barrier after each dispatch; check: "
     "dispatches may write only what they declared (ValueError where the device is not host-visible)."},
    {"inject", (PyCFunction)(void (*)(void))Device_inject, METH_VARARGS | METH_KEYWORDS,
     "inject($self, kind, nth)\n--\n\nMakes the nth submission ('lost'), device allocation "
     "('memory') or host allocation ('host') from now fail; 0 clears. For tests."},
    {"save_cache", Device_save_cache, METH_NOARGS,
     "save_cache($self)\n--\n\nWrites the pipeline cache file if pipelines were made since the "
     "last time."},
    MRL_PY_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Device_slots[] = {
    {Py_tp_new, Device_new},
    {Py_tp_dealloc, Device_dealloc},
    {Py_tp_traverse, mrl_py_traverse},
    {Py_tp_clear, mrl_py_clear},
    {Py_tp_repr, Device_repr},
    {Py_tp_methods, Device_methods},
    {Py_tp_getset, Device_getset},
    {Py_tp_members, mrl_py_members + 1}, /* no .device */
    {Py_tp_doc,
     "Device(index=0, *, disable=(), shaders=..., cache=None)\n--\n\n"
     "The device at an index of list_devices(). disable: names of features() to hide; shaders: "
     "path of shaders.bin; cache: folder of the pipeline cache. DeviceError when it cannot be "
     "used."},
    {0, NULL},
};

static PyType_Spec Device_spec = {
    .name = "marlin._C.Device",
    .basicsize = sizeof(mrl_py_device_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Device_slots,
};

static PyMethodDef functions[] = {
    {"list_devices", module_list_devices, METH_NOARGS,
     "list_devices()\n--\n\nA dict a device, best first; [] without Vulkan. `missing` names what "
     "an unusable one lacks."},
    {"vulkan_error", module_vulkan_error, METH_NOARGS,
     "vulkan_error()\n--\n\nWhy list_devices() is empty, with the remedy; None when it is not."},
    {"fork_remedy", module_fork_remedy, METH_NOARGS,
     "fork_remedy()\n--\n\nWhat an error about a device should end with, in a process forked from one that had Vulkan "
     "open; else ''."},
    {NULL, NULL, 0, NULL},
};

int mrl_py_device_add(PyObject *module, mrl_state *state)
{
    return mrl_py_add_type(module, &Device_spec, &state->Device) < 0
               ? -1
               : PyModule_AddFunctions(module, functions);
}
