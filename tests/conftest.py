"""The device that tests run on, and the lanes: --validation, --shuffle SEED, --check-writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from marlin import _C


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("marlin", "marlin: lanes")
    group.addoption(
        "--validation",
        action="store_true",
        help="Vulkan validation layers; a message fails its test",
    )
    group.addoption(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="dispatches between barriers run in random order",
    )
    group.addoption(
        "--check-writes",
        action="store_true",
        help="dispatches may write only their declared ranges (slow; host-visible devices)",
    )


def device_row() -> dict[str, object]:
    """The row of list_devices() that the tests use: MARLIN_DEVICE (index or part of the name), or
    the first usable one. Without any, tests fail: a machine always has a software device."""
    from marlin import _C

    rows = [row for row in _C.list_devices() if not row["missing"]]
    wanted = os.environ.get("MARLIN_DEVICE", "")
    if wanted.isdigit():
        rows = [row for row in rows if row["index"] == int(wanted)]
    elif wanted:
        rows = [row for row in rows if wanted.lower() in row["name"].lower()]
    if not rows:
        pytest.fail(f"no usable device for MARLIN_DEVICE={wanted!r}: {_C.vulkan_error()}")
    return rows[0]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--validation"):
        from marlin import _C

        _C.set_vulkan_debug(True)


def pytest_report_header(config: pytest.Config) -> str:
    try:
        from marlin import _C
    except ImportError as error:
        return f"device: none, marlin._C does not load: {error}"
    rows = _C.list_devices()
    names = ", ".join(f"{row['index']}: {row['name']} ({row['driver']})" for row in rows)
    return f"devices: {names or _C.vulkan_error()}"


@pytest.fixture(scope="session")
def open_device(
    pytestconfig: pytest.Config,
) -> Callable[..., _C.Device]:
    """open_device(disable=()): the tests' device with features hidden, opened once for each set."""
    from marlin import _C

    opened: dict[frozenset[str], _C.Device] = {}
    index = device_row()["index"]

    def get(disable: tuple[str, ...] = ()) -> _C.Device:
        key = frozenset(disable)
        if key not in opened:
            opened[key] = _C.Device(index, disable=disable)
            opened[key].set_debug(
                shuffle=pytestconfig.getoption("--shuffle") is not None,
                seed=pytestconfig.getoption("--shuffle") or 0,
                check=pytestconfig.getoption("--check-writes") and "host_visible" in opened[key].features,
            )
        return opened[key]

    return get


@pytest.fixture(scope="session")
def device(open_device: Callable[..., _C.Device]) -> _C.Device:
    """The device of the session, with all its features."""
    return open_device()


@pytest.fixture
def own_device() -> _C.Device:
    """A device of this test alone, which it may lose, starve or slow down."""
    from marlin import _C

    return _C.Device(device_row()["index"])


@pytest.fixture(autouse=True)
def no_validation_message(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --validation, a test that causes a message fails with its text."""
    if not request.config.getoption("--validation"):
        yield
        return
    from marlin import _C

    before = _C.vulkan_messages()[0]
    yield
    count, text = _C.vulkan_messages()
    assert count == before, text
