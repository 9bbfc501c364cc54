"""Devices: what there is, and one opened object for each."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from marlin import _C, cachedir, html
from marlin.errors import DeviceError

SHADERS: Final = Path(__file__).with_name("shaders.bin")


@dataclass(frozen=True)
class DeviceInfo:
    """A device that is present; `marlin.Device(info.index)` opens it. missing: why it cannot be used, or ""."""

    index: int
    name: str
    driver: str
    kind: str
    uuid: str
    api_version: str
    memory_bytes: int
    subgroup_size: int
    features: tuple[str, ...]
    missing: str
    details: dict[str, Any]

    def __repr__(self) -> str:
        lacks = f", not usable: {self.missing}" if self.missing else ""
        return f"Device {self.index}: {self.name} ({self.kind}), {html.size(self.memory_bytes)}{lacks}"

    def _repr_html_(self) -> str:
        return html.table(self.rows(), title=f"Device {self.index}: {self.name}")

    def rows(self) -> list[tuple[str, object]]:
        """What a person wants to know, as (name, value)."""
        return [
            ("kind", self.kind),
            ("memory", html.size(self.memory_bytes)),
            ("driver", self.driver),
            ("Vulkan", self.api_version),
            ("subgroup", self.subgroup_size),
            ("features", ", ".join(self.features) or "none beyond the floor"),
            ("uuid", self.uuid),
            *([("not usable", self.missing)] if self.missing else []),
        ]


class DeviceList(list[DeviceInfo]):
    """A list of devices that notebooks draw as one table."""

    def _repr_html_(self) -> str:
        rows = [(d.index, d.name, d.kind, html.size(d.memory_bytes), d.driver, d.missing or "yes") for d in self]
        return html.table(rows, head=("", "name", "kind", "memory", "driver", "usable"), title="Devices")


def describe(row: dict[str, Any]) -> DeviceInfo:
    """A DeviceInfo of a row of _C.list_devices()."""
    return DeviceInfo(
        index=row["index"], name=row["name"], driver=row["driver"], kind=row["kind"], uuid=row["uuid"],
        api_version=row["api_version"], memory_bytes=row["memory_bytes"], subgroup_size=row["subgroup_size"],
        features=tuple(row["features"]), missing=row["missing"] or "", details=row,
    )  # fmt: skip


def devices() -> DeviceList:
    """All devices, the best first: discrete, integrated, then software. Empty without Vulkan; opens none."""
    return DeviceList(map(describe, _C.list_devices()))


def find(which: int | str | None) -> DeviceInfo:
    """The device of that index, part of a name, or UUID; None is $MARLIN_DEVICE, else the first.

    Raises DeviceError when there is none, naming those that are there, or the remedy where none is.
    """
    found = devices()
    if not found:
        raise DeviceError(_C.vulkan_error() or "no Vulkan device was found")
    if which is None:
        which = os.environ.get("MARLIN_DEVICE") or 0
    if isinstance(which, bool) or not isinstance(which, int | str):
        raise TypeError(f"device must be an index, a name, a UUID or a Device, got {type(which).__name__}")
    if isinstance(which, str) and which.strip().lstrip("-").isdecimal():
        which = int(which)
    if isinstance(which, int):
        match = [device for device in found if device.index == which]
    else:
        key = which.strip().lower()
        match = [d for d in found if d.uuid == key.replace("-", "")] or [d for d in found if key in d.name.lower()]
    if not match:
        there = "; ".join(map(repr, found))
        raise DeviceError(f"no device {which!r}; there are: {there}{_C.fork_remedy()}")
    return match[0]


_opened: dict[tuple[str, frozenset[str]], _C.Device] = {}
_lock = threading.Lock()
_warnings: list[str] = []  # of openings, perhaps ahead, for who calls Device()


def _forget() -> None:
    """In a forked child, where a device of the parent cannot be used, and another thread may have had the lock."""
    global _lock
    _lock = threading.Lock()
    _opened.clear()


os.register_at_fork(after_in_child=_forget)


def _open(info: DeviceInfo, disable: frozenset[str]) -> _C.Device:
    key = (info.uuid, disable)
    with _lock:
        raw = _opened.get(key)
        if raw is None or raw.lost:
            _check_shaders()
            cachedir.evict_once()
            cache = cachedir.cache_folder("pipelines")
            raw = _C.Device(
                info.index, disable=sorted(disable), shaders=str(SHADERS), cache=str(cache) if cache else None
            )
            _opened[key] = raw
    return raw


def open_ahead(which: str | None) -> None:
    """Open a device that will be wanted, in a thread: drivers take a third of a second, and no part of Python.

    What fails here fails again when the device is wanted, and is told then.
    """

    def opening() -> None:
        with contextlib.suppress(Exception):
            _open(find(which), frozenset())

    threading.Thread(target=opening, name="marlin-open").start()


class Device:
    """An opened device, by index, part of its name, or UUID; None is $MARLIN_DEVICE, else the best.

    disable: names of features (`marlin._C.features()`) to do without. The same device with the same mask is
    opened once a process, a forked child included, and shared; `raw` is what the functions of marlin._C take.
    Raises DeviceError, with the remedy, where it cannot be opened.
    """

    __slots__ = ("disable", "raw")

    raw: _C.Device
    disable: frozenset[str]

    def __init__(self, which: int | str | Device | None = None, *, disable: Sequence[str] = ()) -> None:
        if isinstance(which, Device):
            if disable:
                raise ValueError("disable belongs to the opening of a device; this one is open")
            self.raw, self.disable = which.raw, which.disable
            return
        if isinstance(disable, str):
            disable = (disable,)
        info = find(which)
        self.disable = frozenset(disable)
        try:
            self.raw = _open(info, self.disable)
        finally:
            while _warnings:
                warnings.warn(_warnings.pop(), stacklevel=2)

    @property
    def index(self) -> int:
        """Its place in devices()."""
        return self.raw.index

    @property
    def name(self) -> str:
        """As the driver names it."""
        return self.raw.name

    @property
    def kind(self) -> str:
        """discrete, integrated, virtual, other or software."""
        return self.raw.kind

    @property
    def uuid(self) -> str:
        """32 hex digits, the same in every process."""
        return self.raw.uuid

    @property
    def features(self) -> tuple[str, ...]:
        """Features beyond the floor that are in use."""
        return self.raw.features

    @property
    def info(self) -> DeviceInfo:
        """What it is, without the features that were disabled."""
        return describe(self.raw.info())

    def memory(self) -> dict[str, int]:
        """Bytes in use, reserved, left by the driver, and the most in use so far."""
        return self.raw.memory()

    def sync(self) -> None:
        """Wait for all work given to it."""
        self.raw.sync()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.raw is other.raw

    def __hash__(self) -> int:
        return hash(id(self.raw))

    def __repr__(self) -> str:
        return repr(self.raw)

    def _repr_html_(self) -> str:
        return self.info._repr_html_()


def _check_shaders() -> None:
    """In a checkout, have it said when shaders.bin is older than the shaders; elsewhere there is nothing to compare."""
    root = SHADERS.parent.parent
    tool = root / "tools" / "shaderc.py"
    if not (tool.is_file() and (root / "shaders").is_dir() and (root / "csrc" / "kernels.def").is_file()):
        return
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("marlin_shaderc", tool)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        stale = module.stale(root)
    except Exception as error:  # a checkout in the middle of an edit must still run
        _warnings.append(f"the shaders cannot be checked: {error}")
        return
    finally:
        del sys.modules[spec.name]
    if stale:
        names = ", ".join(stale[:3]) + (" …" if len(stale) > 3 else "")
        _warnings.append(
            f"{len(stale)} shaders changed since marlin/shaders.bin was built ({names}): run `python tools/shaderc.py`"
        )
