#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

mrl_status mrl_fail(mrl_error *err, mrl_status status, const char *format, ...)
{
    if (err != NULL) {
        va_list args;
        err->status = status;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return status;
}
