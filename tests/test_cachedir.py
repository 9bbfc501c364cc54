"""The cache folder: where it is, when there is none, and what eviction removes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marlin.cachedir import VERSION, cache_folder, evict

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARLIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_named_by_the_variable(root: Path) -> None:
    folder = cache_folder("pipelines")
    assert folder == root / VERSION / "pipelines" and folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_xdg_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARLIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("x") == tmp_path / "xdg" / "marlin" / VERSION / "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "marlin" / VERSION


@pytest.mark.parametrize("value", ["", "/proc/nowhere", "/dev/null/x"])
def test_no_place_to_write_is_no_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARLIN_CACHE", value)
    assert cache_folder("pipelines") is None
    assert evict() == []


def make(path: Path, size: int, used: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_eviction_by_age_version_and_size(root: Path) -> None:
    now = 1e9
    old = make(root / VERSION / "pipelines" / "old", 10, now - 1000)
    other = make(root / "v0" / "pipelines" / "x", 10, now)
    least = make(root / VERSION / "pipelines" / "least", 60, now - 50)
    last = make(root / VERSION / "pipelines" / "last", 60, now - 10)
    outside = make(root.parent / "outside", 10, 0)
    (root / VERSION / "pipelines" / "link").symlink_to(outside)
    assert evict(max_bytes=200, max_age=1e6, now=now) == [other]
    assert evict(max_bytes=200, max_age=500, now=now) == [old]
    assert evict(max_bytes=100, max_age=500, now=now) == [least]
    assert evict(max_bytes=100, max_age=500, now=now) == []
    assert last.exists() and outside.exists()


def test_eviction_leaves_what_is_not_ours(root: Path) -> None:
    """MARLIN_CACHE may name a folder with other things in it."""
    others = [
        make(root / name, 10, 0) for name in ("video/pipelines/a", "v1/notes", "v1/other/a", "v1/pipelines/b/c", "vx")
    ]
    assert evict(max_bytes=0) == []
    assert all(path.exists() for path in others)


def test_eviction_never_raises(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make(root / VERSION / "pipelines" / "old", 10, 0)

    def fails(*args: object, **options: object) -> None:
        raise PermissionError

    for name in ("unlink", "lstat", "glob"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fails)
            assert evict() == [], name
    assert evict() == [kept]


def test_the_first_device_of_a_process_evicts(root: Path) -> None:
    """Once: what grows old while a process runs stays until the next one."""
    files = [root / VERSION / "pipelines" / name for name in ("a", "b")]
    code = (
        "import os, sys, marlin as ml\n"
        "def make(path):\n"
        "    os.makedirs(os.path.dirname(path), exist_ok=True)\n"
        "    open(path, 'w').close()\n"
        "    os.utime(path, (0, 0))\n"
        "make(sys.argv[1])\n"
        "raw = ml.Device().raw\n"
        "make(sys.argv[2])\n"
        "assert ml.Device(disable=ml.Device().features[:1]).raw is not raw\n"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True, timeout=60, cwd=ROOT)
    assert [path.exists() for path in files] == [False, True]
