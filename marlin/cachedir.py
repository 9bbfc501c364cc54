"""The cache folder: things that can be made again (compiled pipelines, plans), kept between runs.

MARLIN_CACHE names it, else $XDG_CACHE_HOME/marlin, else ~/.cache/marlin. What is inside is under a
version folder, so that a change of layout never meets old files. Without a place to write, there is
no cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Final

VERSION: Final = "v1"
MAX_BYTES: Final = 1 << 30
MAX_AGE: Final = 90 * 86400  # seconds since last use


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
    left.
    """
    root = _root()
    if root is None or not root.is_dir():
        return []
    now = time.time() if now is None else now
    files = []
    for path in root.glob("v*/**/*"):
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
        except OSError:
            continue  # another process removed it
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
