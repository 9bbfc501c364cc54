/* Error record: the core has no GIL and no errno habit; every function that can fail returns
 * mrl_status and writes one sentence into the caller's mrl_error. */
#ifndef MRL_BASE_STATUS_H
#define MRL_BASE_STATUS_H

typedef enum mrl_status {
    MRL_OK = 0,
    MRL_ERR_VALUE,         /* ValueError: a number, shape or range is wrong */
    MRL_ERR_TYPE,          /* TypeError: a dtype or object kind is wrong */
    MRL_ERR_DEVICE,        /* DeviceError: no loader, no driver, a missing feature */
    MRL_ERR_DEVICE_LOST,   /* DeviceLostError */
    MRL_ERR_DEVICE_MEMORY, /* DeviceOutOfMemory */
    MRL_ERR_MEMORY,        /* MemoryError: the host ran out */
    MRL_ERR_IO,            /* OSError */
    MRL_ERR_FORMAT,        /* ModelFormatError */
    MRL_ERR_UNSUPPORTED,   /* UnsupportedModelError */
    MRL_ERR_STATE,         /* MarlinError: right call at the wrong time */
    MRL_ERR_CANCELLED,     /* CancelledError */
} mrl_status;

typedef struct mrl_error {
    mrl_status status;
    char text[1024];
} mrl_error;

/* Fills err (NULL allowed) and returns status, so that `return mrl_fail(...)` reads well. */
mrl_status mrl_fail(mrl_error *err, mrl_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* For functions with one exit label: rc = call; on failure go to done. */
#define MRL_TRY(call)                 \
    do {                              \
        if ((rc = (call)) != MRL_OK)  \
            goto done;                \
    } while (0)

#endif
