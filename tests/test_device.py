"""Devices and programs: choice, features, memory, capture, faults, threads, forks."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marlin import _C

KINDS = ["discrete", "integrated", "virtual", "other", "software"]


def words(tensor: _C.Tensor) -> list[int]:
    return np.frombuffer(tensor.tobytes(), np.uint32).tolist()


# ---- what there is


def test_devices_are_listed_best_first() -> None:
    rows = _C.list_devices()
    assert rows and _C.vulkan_error() is None
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [KINDS.index(row["kind"]) for row in rows] == sorted(KINDS.index(row["kind"]) for row in rows)
    for row in rows:
        assert set(row["features"]) <= {feature["name"] for feature in _C.features()}
        assert len(bytes.fromhex(row["uuid"])) == len(bytes.fromhex(row["driver_uuid"])) == 16
        assert tuple(map(int, row["api_version"].split("."))) >= (1, 2, 0) or row["missing"]


def test_tables() -> None:
    root = Path(__file__).parents[1]
    for table, macro, rows in [
        ("formats", "FORMAT", _C.formats()),
        ("kernels", "KERNEL", _C.kernels()),
        ("features", "FEATURE", _C.features()),
    ]:
        text = (root / "csrc" / f"{table}.def").read_text()
        names = [line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(macro + "(")]
        assert [row["name"] for row in rows] == names


def test_attributes_agree_with_the_list(device: _C.Device) -> None:
    row = _C.list_devices()[device.index]
    info = device.info()
    for key in ("name", "kind", "driver", "uuid"):
        assert getattr(device, key) == row[key] == info[key]
    assert set(info) == set(row)
    assert device.features == tuple(info["features"])
    assert not device.lost
    assert device.name in repr(device)
    with pytest.raises(AttributeError):
        device.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        _C.Device.name = "other"  # type: ignore[misc,assignment]


@pytest.mark.parametrize("name", [row["name"] for row in _C.features()])
def test_a_feature_can_be_disabled(device: _C.Device, name: str) -> None:
    assert name not in _C.Device(device.index, disable=[name]).features


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"index": -1}, ValueError),
        ({"index": 1 << 31}, ValueError),
        ({"index": 1000}, ValueError),
        ({"index": 1 << 70}, ValueError),
        ({"index": "0"}, TypeError),
        ({"disable": ["warp_drive"]}, ValueError),
        ({"disable": "fp16"}, TypeError),
        ({"disable": [3]}, TypeError),
        ({"disable": 3}, TypeError),
        ({"shaders": 3}, TypeError),
        ({"shaders": "/nonexistent/shaders.bin"}, OSError),
        ({"shaders": "a\0b"}, ValueError),
        ({"cache": 3}, TypeError),
    ],
)
def test_bad_arguments_of_device(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        _C.Device(**arguments)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'shaders'"):
        _C.Device(shader="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("content", [b"", b"MRLSHDR1", b"x" * 200, b"MRLSHDR1" + b"\xff" * 200])
def test_a_damaged_shader_file_is_refused(device: _C.Device, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shaders.bin"
    path.write_bytes(content)
    with pytest.raises((_C.MarlinError, OSError), match=r"shaders\.bin"):
        _C.Device(device.index, shaders=str(path))


def run_python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_without_a_driver_the_remedy_is_named() -> None:
    code = """
from marlin import _C
assert _C.list_devices() == []
assert "nstall" in _C.vulkan_error(), _C.vulkan_error()
try:
    _C.Device()
except _C.DeviceError as error:
    print(error)
"""
    nowhere = "/nonexistent/driver.json"
    assert "nstall" in run_python(code, VK_DRIVER_FILES=nowhere, VK_ICD_FILENAMES=nowhere)


def test_validation_is_chosen_before_the_first_use(device: _C.Device) -> None:
    with pytest.raises(_C.MarlinError, match="before"):
        _C.set_vulkan_debug(True)
    count, text = _C.vulkan_messages()
    assert isinstance(count, int) and isinstance(text, str)


# ---- life


def test_no_pickle_and_no_copy(device: _C.Device) -> None:
    for thing in (device, _C.empty(device, (1,)), device.capture()):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(thing, protocol)
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                duplicate(thing)


def test_no_subclass_and_no_instance_by_hand() -> None:
    for kind in (_C.Device, _C.Tensor, _C.Program):
        with pytest.raises(TypeError):
            type("Mine", (kind,), {})
    for kind in (_C.Tensor, _C.Program):
        with pytest.raises(TypeError):
            kind()
        with pytest.raises(TypeError):
            object.__new__(kind)


def test_weak_references_and_garbage(own_device: _C.Device) -> None:
    references = [weakref.ref(thing) for thing in (own_device, _C.empty(own_device, (1,)), own_device.capture())]
    assert references[0]() is own_device and references[1]() is references[2]() is None
    box: dict[str, Any] = {"tensor": _C.empty(own_device, (1,))}
    box["self"] = box
    references.append(weakref.ref(box["tensor"]))
    del box
    gc.collect()
    assert references[3]() is None


def test_objects_keep_their_device() -> None:
    from conftest import device_row

    tensor = _C.full(_C.Device(device_row()["index"]), (3,), 5)  # type: ignore[arg-type]
    gc.collect()
    assert tensor.device.name and words(tensor) == [5, 5, 5]


def test_devices_open_and_close(device: _C.Device) -> None:
    for _ in range(5):
        other = _C.Device(device.index)
        assert words(_C.full(other, (2,), 7)) == [7, 7]


def test_memory_comes_back(own_device: _C.Device) -> None:
    assert words(_C.full(own_device, (4,), 1)) == [1] * 4  # staging and slabs are there now
    own_device.sync()
    before = own_device.memory()
    tensors = [_C.full(own_device, (1 << 20,), i) for i in range(8)]
    during = own_device.memory()
    assert during["device_used"] >= before["device_used"] + 8 * (4 << 20)
    assert during["device_peak"] >= during["device_used"]
    assert during["device_reserved"] >= during["device_used"]
    del tensors
    own_device.sync()
    assert own_device.memory()["device_used"] == before["device_used"]


MIB = 1 << 20


def test_a_large_slab_stays_for_temporaries(own_device: _C.Device) -> None:
    """One that runs empty is kept and counts as free, a second one goes, and the last one when memory runs out."""

    def take(mib: int) -> _C.Tensor:
        return _C.empty(own_device, (mib * MIB // 4,), "f32")

    def memory(*keys: str) -> list[int]:
        own_device.sync()
        found = own_device.memory()
        return [found[key] for key in keys]

    large = take(520)  # from here on slabs are of 512 MiB; this one is not
    first = take(80)
    reserved, budget = memory("device_reserved", "device_budget")
    del first
    assert memory("device_reserved") == [reserved]
    if "memory_budget" not in own_device.features:  # else other processes take part
        assert memory("device_budget") == [budget + 512 * MIB]
    first, second = take(80), take(450)
    assert memory("device_reserved") == [reserved + 512 * MIB]
    del first, second
    assert memory("device_reserved") == [reserved]
    own_device.inject("memory", 1)
    other = take(600)
    assert memory("device_reserved") == [reserved + 88 * MIB]
    del large, other
    assert memory("device_reserved") == [reserved - 1032 * MIB]


def test_nothing_leaks_in_a_thousand_calls(device: _C.Device) -> None:
    data = np.arange(16, dtype=np.float32)

    def use() -> None:
        tensor = _C.tensor(device, data)
        tensor[1:3].reshape(2, 1).tobytes()
        memoryview(_C.full(device, (2,))).release() if "host_visible" in device.features else None
        np.from_dlpack(tensor)
        repr(tensor)
        device.info(), device.memory()
        for wrong in (lambda: tensor[99], lambda: tensor.reshape(5), lambda: tensor.write(b"")):
            with pytest.raises((ValueError, IndexError)):
                wrong()

    for _ in range(10):
        use()
    gc.collect()
    counts = sys.getrefcount(device), sys.getrefcount(data), sys.getrefcount(_C.Tensor)
    before = device.memory()
    for _ in range(1000):
        use()
    gc.collect()
    assert (sys.getrefcount(device), sys.getrefcount(data), sys.getrefcount(_C.Tensor)) == counts
    after = device.memory()
    for key in ("device_used", "host_used", "device_reserved", "host_reserved"):
        assert after[key] == before[key], key


# ---- programs


def test_a_program_is_replayed(device: _C.Device) -> None:
    outside = _C.full(device, (5,), 1)
    with device.capture() as program:
        inside = _C.full(device, (3,), 9)
    for tensor in (outside, inside):
        tensor.write(bytes(tensor.nbytes))
    program.replay()
    assert words(inside) == [9] * 3 and words(outside) == [0] * 5
    inside.write(bytes(inside.nbytes))
    program.replay(wait=True)
    assert words(inside) == [9] * 3
    stats = program.stats
    names = "dispatches barriers submissions arena_bytes read_bytes write_bytes flops"
    assert sorted(stats) == sorted(names.split())
    assert stats["write_bytes"] >= 12 and stats["arena_bytes"] >= 12
    assert "0 dispatches" in repr(program)


def test_an_empty_program(device: _C.Device) -> None:
    with device.capture() as program:
        pass
    program.replay(wait=True)
    assert program.stats["dispatches"] == 0


def test_results_outlive_the_program(own_device: _C.Device) -> None:
    with own_device.capture() as program:
        result = _C.full(own_device, (1024,), 3)
    program.replay()
    del program
    others = [_C.full(own_device, (1024,), i) for i in range(32)]
    assert words(result) == [3] * 1024
    del others


def test_temporaries_share_memory(device: _C.Device) -> None:
    with device.capture() as program:
        for i in range(100):
            last = _C.full(device, (1 << 18,), i)  # 1 MiB; the one before goes now
    program.replay(wait=True)
    assert words(last[:4]) == [99] * 4
    assert program.stats["arena_bytes"] < 20 << 20


def test_reading_and_writing_are_refused_while_capturing(device: _C.Device) -> None:
    tensor = _C.full(device, (2,), 1)
    with device.capture():
        for call in (
            tensor.tobytes,
            tensor.numpy,
            tensor.__dlpack__,
            lambda: tensor.write(bytes(8)),
            lambda: _C.tensor(device, b"1234"),
        ):
            with pytest.raises(_C.MarlinError, match="captur"):
                call()
        assert "device" in repr(tensor)
    assert words(tensor) == [1, 1]


def test_an_exception_ends_the_capture(device: _C.Device) -> None:
    program = device.capture()
    with pytest.raises(ZeroDivisionError), program:
        _C.full(device, (2,), 1)
        raise ZeroDivisionError
    with pytest.raises(_C.MarlinError, match="failed"):
        program.replay()
    with device.capture() as another:
        _C.full(device, (2,), 1)
    another.replay(wait=True)


@pytest.mark.parametrize("fails", [False, True])
def test_captures_compile_beside(own_device: _C.Device, fails: bool) -> None:
    """Kernels of a capture are compiled by other threads; none is left half-way, however the capture ends."""
    x = _C.tensor(own_device, np.ones((2, 64), np.float32))
    weight = _C.full(own_device, (64,), 0x3F800000, "f32")
    with contextlib.suppress(ZeroDivisionError), own_device.capture() as program:
        y = [_C.rms_norm(x, weight, 1e-5, dtype=dtype) for dtype in ("f32", "f16", "bf16")]
        if fails:
            raise ZeroDivisionError
    if not fails:
        program.replay(wait=True)
        np.testing.assert_allclose(y[0].numpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(_C.rms_norm(x, weight, 1e-5, dtype="f16").numpy(), 1, rtol=1e-3)


def test_misuse_of_programs(device: _C.Device) -> None:
    program = device.capture()
    for call in (program.replay, lambda: program.stats, lambda: program.__exit__(None, None, None)):
        with pytest.raises(_C.MarlinError, match="not captured"):
            call()
    assert "not captured" in repr(program)
    with program:
        for call in (program.__enter__, program.replay, lambda: program.stats):
            with pytest.raises(_C.MarlinError, match="being captured"):
                call()
        with pytest.raises(_C.MarlinError, match="already"), device.capture():
            pass
        errors: list[Exception] = []

        def leave() -> None:
            try:
                program.__exit__(None, None, None)
            except _C.MarlinError as error:
                errors.append(error)

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert len(errors) == 1 and "thread" in str(errors[0])
    for call in (program.__enter__, lambda: program.__exit__(None, None, None)):
        with pytest.raises(_C.MarlinError, match="already"):
            call()
    with pytest.raises(TypeError):
        program.replay(True, False)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        program.replay(wat=True)  # type: ignore[call-arg]


def test_another_thread_works_on_while_one_captures(device: _C.Device) -> None:
    seen: list[list[int]] = []
    with device.capture() as program:
        inside = _C.full(device, (2,), 4)
        thread = threading.Thread(target=lambda: seen.append(words(_C.full(device, (2,), 6))))
        thread.start()
        thread.join()
    assert seen == [[6, 6]]
    program.replay(wait=True)
    assert words(inside) == [4, 4]


# ---- faults


def test_a_lost_device_says_so_and_others_live(own_device: _C.Device, device: _C.Device) -> None:
    tensor = _C.full(own_device, (2,), 1)
    with own_device.capture() as program:
        _C.full(own_device, (2,), 1)
    own_device.inject("lost", 1)
    with pytest.raises(_C.DeviceLostError):
        own_device.sync()
    assert own_device.lost and not device.lost
    for call in (
        own_device.sync,
        own_device.memory,
        own_device.capture,
        own_device.profile_start,
        tensor.tobytes,
        tensor.__dlpack__,
        program.replay,
        lambda: tensor.write(bytes(8)),
        lambda: _C.empty(own_device, (1,)),
    ):
        with pytest.raises(_C.DeviceLostError):
            call()
    assert own_device.name and tensor.shape == (2,) and repr(tensor) and own_device.info()
    again = _C.Device(own_device.index)
    assert words(_C.full(again, (2,), 8)) == [8, 8]


def test_no_memory_left(own_device: _C.Device) -> None:
    own_device.inject("memory", 1)
    with pytest.raises(_C.DeviceOutOfMemory) as caught:
        _C.empty(own_device, (20 << 20,))  # larger than a common slab: one allocation, no retry
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, _C.DeviceError)
    own_device.inject("host", 1)
    with pytest.raises(MemoryError):
        _C.empty(own_device, (4,))
    assert words(_C.full(own_device, (2,), 2)) == [2, 2]
    with pytest.raises(_C.DeviceOutOfMemory):
        _C.empty(own_device, (1 << 44,))
    with pytest.raises(ValueError):
        own_device.inject("meteor", 1)
    for nth in (-1, 1 << 63):
        with pytest.raises(ValueError):
            own_device.inject("lost", nth)
    own_device.inject("lost", 0)
    own_device.sync()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_is_told_and_the_parent_lives(device: _C.Device) -> None:
    tensor = _C.full(device, (2,), 5)
    device.sync()
    child = os.fork()
    if child == 0:
        told = 0
        for call in (device.sync, tensor.tobytes, lambda: _C.empty(device, (1,)), device.capture):
            try:
                call()
            except _C.DeviceLostError:
                pass
            except _C.DeviceError:
                told += 1
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert words(tensor) == [5, 5]


# ---- debugging


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_meets_no_lock_of_the_parent(own_device: _C.Device) -> None:
    """Forked while another thread is inside of the device, a child is told so and drops what it has."""
    tensor = _C.full(own_device, (2,), 5)
    large = _C.full(own_device, (20 << 20,), 5)  # beyond a common slab: freeing it ends a whole slab
    with own_device.capture() as program:
        _C.full(own_device, (2,), 1)
    linear = _C.Linear(own_device, 256, 1024, "f32")
    x = _C.full(own_device, (256, 1024))
    linear(x, kernel="gemm")
    own_device.sync()
    # A dispatch keeps locks until the device has done it: all of them, or that of the stream.
    checked = "host_visible" in own_device.features
    if checked:
        own_device.set_debug(check=True)
    else:
        own_device.profile_start()
    stop = threading.Event()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        while not stop.is_set():
            linear(x, kernel="gemm")
            own_device.sync()
            rounds += 1

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for a lock
        told = 0
        for call in (own_device.sync, tensor.__dlpack__, lambda: linear(x), lambda: _C.empty(own_device, (1,))):
            try:
                call()
            except _C.DeviceError:
                told += 1
        del large, program, tensor
        os._exit(told)
    done = rounds
    while thread.is_alive() and rounds == done:  # the parent's thread goes on
        time.sleep(0.001)
    alive = thread.is_alive()
    stop.set()
    thread.join()
    assert alive
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    if checked:
        own_device.set_debug()
    else:
        assert any(row["name"].startswith("gemm") for row in own_device.profile_stop())
    assert words(tensor) == [5, 5] and words(large[:2]) == [5, 5]
    program.replay(wait=True)


def test_staging_memory_waits_for_every_part_of_a_flush(device: _C.Device) -> None:
    """Uploads behind work of more than one submission: none may overwrite what is still to be copied."""
    rows, bound, megabytes = 64, 32768, 8
    targets = [_C.empty(device, (megabytes << 20,), "u8") for _ in range(6)]
    cache = _C.KVCache(device, layers=1, slots=1, context=bound, kv_heads=1, dim=8)
    idle = _C.full(device, (rows,), 0xFFFFFFFF, "i32")
    qkv, freq = _C.full(device, (rows, 66 * 8), 0, "f16"), _C.full(device, (4,))
    device.sync()
    # Idle rows cost nothing, but by their bound they fill a submission, so that the slow fill and
    # the copies behind it make the next one.
    _C.attention(qkv, cache, 0, idle, idle, freq, heads=64, bound=bound)
    slow = _C.full(device, (200 << 18,), 1)
    for i, target in enumerate(targets):
        target.write(bytes([i + 1]) * (megabytes << 20))
    for i, target in enumerate(targets):
        assert (np.frombuffer(target.tobytes(), np.uint8) == i + 1).all(), i
    assert words(slow[-2:]) == [1, 1]


def test_check_mode_beside_threads_that_allocate(own_device: _C.Device) -> None:
    if "host_visible" not in own_device.features:
        pytest.skip("check mode needs host-visible memory")
    own_device.set_debug(check=True)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _C.empty(own_device, (17 << 20,))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for value in range(8):
            tensor = _C.full(own_device, (4,), value)
            assert words(tensor) == [value] * 4
    finally:
        stop.set()
        thread.join()


def test_profile_rows(own_device: _C.Device) -> None:
    own_device.profile_start()
    tensor = _C.full(own_device, (64,), 1).astype("f16")
    rows = own_device.profile_stop()
    assert [row["name"].split()[0] for row in rows if "copy" in row["name"]]
    for row in rows:
        assert set(row) == {"name", "ns", "bytes", "flops", "barrier"}
        assert row["ns"] >= 0 and row["bytes"] > 0
    del tensor
    own_device.sync()


@pytest.mark.parametrize("mode", ["shuffle", "serial", "check"])
def test_debug_modes_change_no_result(own_device: _C.Device, mode: str) -> None:
    if mode == "check" and "host_visible" not in own_device.features:
        pytest.skip("check mode compares mapped memory, which this device lacks")
    own_device.set_debug(**{mode: True}, seed=7)  # type: ignore[arg-type]
    values = np.linspace(-3, 3, 100, dtype=np.float32)
    count = 1 if mode == "check" else 5  # it compares all memory around each dispatch
    tensors = [_C.tensor(own_device, values + i).astype("f16").astype("f32") for i in range(count)]
    for i, tensor in enumerate(tensors):
        assert (tensor.numpy() == (values + i).astype(np.float16)).all()


def test_check_mode_is_refused_without_host_visible_memory(open_device: Callable[..., _C.Device]) -> None:
    device = open_device(("host_visible",))
    with pytest.raises(ValueError, match="memory that the host sees"):
        device.set_debug(check=True)
    assert words(_C.full(device, (2,), 8)) == [8, 8]


@pytest.mark.parametrize("seed", [-1, 1 << 64, "1", 1.0])
def test_bad_debug_seed(own_device: _C.Device, seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seed"):
        own_device.set_debug(seed=seed)


def test_pipeline_cache_is_written(tmp_path: Path, device: _C.Device) -> None:
    other = _C.Device(device.index, cache=str(tmp_path))
    _C.full(other, (64,), 1).astype("f16").tobytes()
    other.save_cache()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:  # a damaged cache is no error
        path.write_bytes(path.read_bytes()[:100] + b"garbage")
    again = _C.Device(device.index, cache=str(tmp_path))
    assert _C.full(again, (64,), 0).astype("f16").tobytes() == bytes(128)


# ---- threads


def test_threads_share_a_device(device: _C.Device) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def work(number: int) -> None:
        try:
            start.wait()
            for i in range(60):
                value = number << 16 | i
                if i % 10 == 0:
                    with device.capture() as program:
                        tensor = _C.full(device, (33,), value)
                    program.replay()
                else:
                    tensor = _C.full(device, (33,), value)
                assert words(tensor) == [value] * 33
                tensor.write(bytes(33 * 4))
                device.memory()
                assert words(tensor[5:9]) == [0] * 4
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_threads_replay_one_program(device: _C.Device) -> None:
    with device.capture() as program:
        tensor = _C.full(device, (100,), 11)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                program.replay(wait=True)
                assert words(tensor) == [11] * 100
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
