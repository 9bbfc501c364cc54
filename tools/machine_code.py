"""The machine code that NVIDIA's driver made of the kernels, out of Marlin's pipeline cache: a kernel's size, calls and
local memory say more about a slow one than its source.

    MARLIN_CACHE=/tmp/cache python my_step.py                       # fills a cache with the pipelines of a step
    python tools/machine_code.py /tmp/cache/v1/pipelines/*.bin      # a line a pipeline
    python tools/machine_code.py /tmp/cache/v1/pipelines/*.bin --out /tmp/sass --arch SM90

Needs `pip install zstandard` and, for --out, NVIDIA's nvdisasm on the PATH (`pip install nvidia-cuda-nvdisasm`).
The file is not documented: an entry is a zstd frame, in it a table of sections behind "NVuc", of which type 1 is code.
Read from files of driver 580.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ZSTD, TABLE = b"\x28\xb5\x2f\xfd", b"NVuc"
HEADER, ROW, CODE = 32, 32, 1  # bytes of the table's header and of a row; the type of a section that is code
COUNTED = ("LDG", "STG", "LDS", "STS", "SHFL", "BAR", "MEMBAR", "HMMA", "IDP", "LDL", "STL", "CALL")


def frames(data: bytes) -> Iterator[bytes]:
    """What the zstd frames of a pipeline cache hold."""
    try:
        import zstandard
    except ImportError:
        sys.exit("machine_code: needs zstandard: pip install zstandard")

    at = data.find(ZSTD)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):  # four bytes that happen to look like a frame
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
        at = data.find(ZSTD, at + 1)


def codes(data: bytes) -> Iterator[bytes]:
    """The machine code of each pipeline, in the order of the file."""
    for frame in frames(data):
        start = frame.find(TABLE)
        if start < 0 or start + HEADER > len(frame):
            continue
        for row in range(struct.unpack_from("<H", frame, start + 8)[0]):
            at = start + HEADER + ROW * row
            if at + 12 > len(frame):
                break
            kind, size, offset = struct.unpack_from("<3I", frame, at)
            if kind == CODE and start + offset + size <= len(frame):
                yield frame[start + offset : start + offset + size]


def disassemble(code: bytes, path: Path, arch: str) -> str:
    if shutil.which("nvdisasm") is None:
        sys.exit("machine_code: --out needs nvdisasm on the PATH: pip install nvidia-cuda-nvdisasm")
    path.write_bytes(code)
    return subprocess.run(["nvdisasm", "-b", arch, path], check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="a file of Marlin's pipeline cache")
    parser.add_argument("--out", type=Path, help="a folder for the code and its disassembly")
    parser.add_argument("--arch", default="SM90", help="what nvdisasm shall take it for (SM90: H100, H200)")
    args = parser.parse_args()
    found = 0
    for found, code in enumerate(codes(args.cache.read_bytes()), 1):
        line = f"{found:4d} {len(code):7d} bytes"
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            text = disassemble(code, args.out / f"{found}.bin", args.arch)
            (args.out / f"{found}.sass").write_text(text)
            line += "  " + " ".join(f"{name} {text.count(' ' + name)}" for name in COUNTED if " " + name in text)
        print(line)
    if not found:
        print(f"machine_code: no pipeline of NVIDIA's driver in {args.cache}", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
