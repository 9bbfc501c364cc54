"""The cache folder: where it is, when there is none, and what eviction removes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from marlin.cachedir import VERSION, cache_folder, evict


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
    old = make(root / VERSION / "a" / "old", 10, now - 1000)
    other = make(root / "v0" / "x", 10, now)
    least = make(root / VERSION / "a" / "least", 60, now - 50)
    last = make(root / VERSION / "b" / "last", 60, now - 10)
    outside = make(root.parent / "outside", 10, 0)
    (root / VERSION / "link").symlink_to(outside)
    assert evict(max_bytes=200, max_age=1e6, now=now) == [other]
    assert evict(max_bytes=200, max_age=500, now=now) == [old]
    assert evict(max_bytes=100, max_age=500, now=now) == [least]
    assert evict(max_bytes=100, max_age=500, now=now) == []
    assert last.exists() and outside.exists()
