"""How csrc/ is compiled; setup.py and lint_c.py share it."""

INCLUDES = ["csrc", "shaders/include"]
# The limited API of Python 3.11, and from libc what POSIX 2008 and Linux have (pread, O_CLOEXEC).
MACROS = [("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", "1")]
LANGUAGE = ["-std=c11", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla"]
