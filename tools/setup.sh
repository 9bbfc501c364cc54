#!/usr/bin/env bash
# Prepare this checkout: tools/setup.sh [EXTRAS]
#
# Installs what the system lacks (C compiler, Python headers, Vulkan loader, a Vulkan driver), makes
# .venv, and installs Marlin into it, editable, with the named extras (such as: dev). Run again at will:
# what is there already is left alone. PYTHON=... chooses another interpreter, VENV=... another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# ---- what the system lacks ------------------------------------------------------------------------

packages=() # Debian's names
reasons=()  # the same for a person
lacks() {
    packages+=("$1")
    reasons+=("$2")
}

has_library() {
    local dir
    for dir in /usr/lib /usr/lib64 /lib /lib64 /usr/local/lib "/usr/lib/$(uname -m)-linux-gnu"; do
        [ -e "$dir/$1" ] && return 0
    done
    (PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true) | grep -qF "$1 "
}

has_vulkan_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
    local dir data=${XDG_DATA_DIRS:-/usr/local/share:/usr/share}
    for dir in /etc ${data//:/ } "${XDG_DATA_HOME:-${HOME:-}/.local/share}" "${XDG_CONFIG_HOME:-${HOME:-}/.config}"; do
        compgen -G "$dir/vulkan/icd.d/*.json" >/dev/null && return 0
    done
    return 1
}

if ! command -v "$python" >/dev/null; then
    lacks python3 "Python 3.11 or newer ($python is not on the PATH)"
    lacks python3-dev "the headers of Python"
    lacks python3-venv "the venv module of Python"
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Marlin needs Python 3.11 or newer, $python is $("$python" -V 2>&1)" \
            "name another one with PYTHON=/path/to/python3"
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    # Distributions name their packages by minor version; pyenv and conda bring both along.
    name=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ -e "$header" ] || lacks "$name-dev" "the headers of Python ($header)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        lacks "$name-venv" "the modules venv and ensurepip of $python"
fi
if ! command -v "${CC:-gcc}" >/dev/null; then
    lacks gcc "a C compiler (gcc)"
    lacks libc6-dev "the headers of the C library"
elif ! printf '#include <stdio.h>\n' | "${CC:-gcc}" -fsyntax-only -x c - 2>/dev/null; then
    lacks libc6-dev "the headers of the C library"
fi
has_library libvulkan.so.1 || lacks libvulkan1 "the Vulkan loader (libvulkan.so.1)"
has_vulkan_driver || lacks mesa-vulkan-drivers "a Vulkan driver (Mesa's lavapipe runs on the CPU)"

apt_install() {
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "run this as root, or: apt-get install $*"
        root=(sudo)
    fi
    say "installing $*"
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
    local log
    log=$(mktemp)
    # A fresh container has no package lists, and old lists name packages that are gone.
    if ! "${apt[@]}" install -y -q --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
        if ! { "${apt[@]}" update -q && "${apt[@]}" install -y -q --no-install-recommends "$@"; } \
            >"$log" 2>&1 </dev/null; then
            tail -n 20 "$log" >&2
            rm -f "$log"
            fail "apt-get could not install $*"
        fi
    fi
    rm -f "$log"
}

if [ ${#packages[@]} -gt 0 ]; then
    if command -v apt-get >/dev/null; then
        apt_install "${packages[@]}"
    else
        fail "this system lacks the following, and only Debian and Ubuntu are set up by this script:" \
            "${reasons[@]/#/  - }" "install them with the system's package manager, then run this again"
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Marlin needs Python 3.11 or newer, $python is $("$python" -V 2>&1)"
fi

# ---- the virtual environment ----------------------------------------------------------------------

if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    say "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip install -q)

# Not isolated, so that a later build finds the compilers here instead of fetching them again. Of the
# shader compiler's wheel only one library is used, so what the wheel asks for is not needed.
say "installing the build tools"
requirements=$("$venv/bin/python" tools/build_requires.py)
mapfile -t build_tools <<<"$requirements"
"${pip[@]}" --no-deps "${build_tools[@]}"
case "${build_tools[*]}" in
*slangpy*) ;;
*) command -v glslangValidator >/dev/null || apt_install glslang-tools ;;
esac

say "building Marlin"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! "${pip[@]}" --no-build-isolation -e ".${extras:+[$extras]}" >"$log" 2>&1; then
    cat "$log" >&2
    fail "the build failed"
fi

# A driver's file may be there without its device (a GPU driver in a container).
if ! "$venv/bin/python" -c 'import marlin, sys; sys.exit(not marlin.devices())' >"$log" 2>&1; then
    if command -v apt-get >/dev/null && [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ]; then
        say "no Vulkan device answers: adding Mesa's software driver"
        apt_install mesa-vulkan-drivers
    else
        cat "$log" >&2
        fail "no Vulkan device answers; install a Vulkan driver (Mesa's lavapipe runs on the CPU)"
    fi
fi
say "ready"
