"""Check csrc/ with gcc and clang: every .c file and every header by itself, warnings as errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cflags import INCLUDES, LANGUAGE, MACROS, WARNINGS

ROOT = Path(__file__).resolve().parent.parent


def check(compiler: str, path: Path) -> str:
    """The compiler's messages for one file; empty when there are none."""
    # Optimized, because gcc finds variables that may be used uninitialized only then.
    command = [compiler, "-O2", "-c", "-o", os.devnull, *LANGUAGE, *WARNINGS, "-Werror"]
    command += [f"-D{name}={value}" for name, value in MACROS]
    command += [f"-I{folder}" for folder in INCLUDES]
    command += ["-isystem", sysconfig.get_path("include")]
    # A header is included, not compiled: `#pragma once` in a main file is a warning.
    text = f'#include "{path}"\n' if path.suffix == ".h" else None
    command += ["-x", "c", "-"] if text else [str(path)]
    run = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr if run.returncode else ""


def main() -> int:
    """Run every compiler that is installed; 1 on the first file with messages."""
    paths = sorted([*(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "shaders").rglob("*.h")])
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    for name in {"gcc", "clang"} - set(compilers):
        print(f"{name} is not installed: its check is left out")
    jobs = [(name, path.relative_to(ROOT)) for name in compilers for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = [text for text in pool.map(lambda job: check(*job), jobs) if text]
    print("".join(messages), end="")
    print(f"C: {len(paths)} files by {' and '.join(compilers)}, {len(messages)} with messages")
    return int(bool(messages) or not compilers)


if __name__ == "__main__":
    sys.exit(main())
