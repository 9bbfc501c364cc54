"""The cache folder: things that can be made again (compiled pipelines), kept between runs.

MARLIN_CACHE names it, else $XDG_CACHE_HOME/marlin, else ~/.cache/marlin. What is inside is under a
version folder, so that a change of layout never meets old files. Without a place to write, there is
no cache.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

VERSION: Final = "v1"
MAX_BYTES: Final = 1 << 30
MAX_AGE: Final = 90 * 86400  # seconds since last use
OURS: Final = "v[0-9]*/pipelines/*"  # below the root, which may be a folder with other things in it


def cache_folder(part: str = "", *, create: bool = True) -> Path | None:
    """The folder for a kind of cached files ("pipelines"), made and known to be writable, or None.

    An empty MARLIN_CACHE switches the cache off.
    """
    root = _root()
    if root is None:
        return None
    folder = root / VERSION / part
    if not create:
        return folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def evict(*, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE, now: float | None = None) -> list[Path]:
    """Remove files unused for max_age seconds and other versions' files, then the least recently
    used ones until max_bytes are left. Returns what was removed; files that cannot be removed are
    left, and nothing is raised.
    """
    root = _root()
    if root is None:
        return []
    now = time.time() if now is None else now
    files = []
    for path in _files(root):
        try:
            status = path.lstat()
        except OSError:
            continue  # another process removed it
        if stat.S_ISREG(status.st_mode):
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    files.sort(key=lambda file: file[:2])
    total = sum(size for _, size, _ in files)
    removed = []
    for used, size, path in files:
        stale = now - used > max_age or path.relative_to(root).parts[0] != VERSION
        if stale or total > max_bytes:
            try:
                path.unlink()
            except OSError:
                continue
            removed.append(path)
            total -= size
    return removed


@functools.cache
def evict_once() -> None:
    """`evict`, at the first call in a process."""
    evict()


def _files(root: Path) -> list[Path]:
    try:
        return list(root.glob(OURS))
    except OSError:  # a folder that went away, or may not be read
        return []


def _root() -> Path | None:
    named = os.environ.get("MARLIN_CACHE")
    if named is not None:
        return Path(named).expanduser().absolute() if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "marlin"
    try:
        return Path.home() / ".cache" / "marlin"
    except RuntimeError:  # no home at all
        return None
