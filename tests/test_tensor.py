"""Tensors: host data in and out, views, conversion, protocols, life, threads."""

from __future__ import annotations

import array
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from marlin import _C

DTYPES: dict[str, Any] = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "u8": np.uint8,
    "i8": np.int8,
    "u16": np.uint16,
}
INFERRED = {name: kind for name, kind in DTYPES.items() if name != "bf16"}
STAGING = 8 << 20  # bytes of one segment of the staging ring; there are four


def random_bits(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> NDArray[Any]:
    """Every pattern may come, NaNs too: compare bytes."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.fixture(scope="module", params=[(), ("host_visible",)], ids=["plain", "unmapped"])
def device(open_device: Callable[..., _C.Device], request: pytest.FixtureRequest) -> _C.Device:
    """Also as on a discrete GPU, whose memory the host does not see."""
    return open_device(disable=request.param)


# ---- from the host and back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 5)])
def test_roundtrip(device: _C.Device, dtype: str, shape: tuple[int, ...]) -> None:
    values = random_bits(shape, DTYPES[dtype])
    tensor = _C.tensor(device, values, dtype)
    assert (tensor.shape, tensor.dtype, tensor.ndim) == (shape, dtype, len(shape))
    assert tensor.nbytes == values.nbytes and len(tensor) == shape[0]
    assert tensor.device is device
    assert tensor.tobytes() == values.tobytes()
    for back in (tensor.numpy(), np.asarray(tensor)):
        assert back.dtype == DTYPES[dtype] and back.shape == shape
        assert back.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", INFERRED)
def test_dtype_is_inferred(device: _C.Device, dtype: str) -> None:
    assert _C.tensor(device, np.zeros((2, 2), DTYPES[dtype])).dtype == dtype


@pytest.mark.parametrize("nbytes", [STAGING - 4, STAGING, STAGING + 4, 4 * STAGING + 12])
def test_beyond_the_staging_ring(device: _C.Device, nbytes: int) -> None:
    values = random_bits((nbytes // 4,), np.uint32)
    tensor = _C.tensor(device, values)
    assert tensor.tobytes() == values.tobytes()
    tensor.write(values[::-1].copy())
    assert (tensor.numpy() == values[::-1]).all()


def test_other_sources(device: _C.Device) -> None:
    assert _C.tensor(device, b"abc").dtype == "u8"
    assert _C.tensor(device, bytearray(b"abc")).tobytes() == b"abc"
    assert _C.tensor(device, array.array("f", [1, 2])).dtype == "f32"
    assert _C.tensor(device, (ctypes.c_int32 * 3)(1, 2, 3)).dtype == "i32"
    assert _C.tensor(device, np.float32(4)).shape == (1,)
    values = np.arange(12, dtype=np.float32)
    raw = values.tobytes()
    assert _C.tensor(device, raw, "f32").shape == (12,)
    assert _C.tensor(device, raw, "f32", (3, 4)).shape == (3, 4)
    assert _C.tensor(device, raw, shape=[4, 12]).dtype == "u8"
    assert _C.tensor(device, values, shape=(2, 6)).tobytes() == raw
    assert _C.tensor(device, values.view(np.uint32), "f32").tobytes() == raw
    readonly = values.copy()
    readonly.flags.writeable = False
    assert _C.tensor(device, readonly).tobytes() == raw
    if "host_visible" in device.features:
        assert _C.tensor(device, _C.tensor(device, values)).tobytes() == raw


def test_data_is_copied(device: _C.Device) -> None:
    values = np.ones(5, np.float32)
    tensor = _C.tensor(device, values)
    values[:] = 2
    assert (tensor.numpy() == 1).all()


@pytest.mark.parametrize(
    ("data", "more", "error", "match"),
    [
        (np.zeros(3), {}, TypeError, "astype"),
        (np.zeros(3, np.int64), {}, TypeError, "astype"),
        (np.zeros(3, np.int16), {}, TypeError, "format 'h'"),
        (np.zeros(3, np.bool_), {}, TypeError, "format"),
        (np.zeros(3, np.complex64), {}, TypeError, "format"),
        (np.zeros(3, ">f4"), {}, TypeError, "format '>f'"),
        (np.zeros(3, np.float32), {"dtype": "i32"}, TypeError, "name"),
        (np.zeros(3, np.float32), {"dtype": "f16"}, TypeError, "name"),
        (np.zeros((3, 4), np.uint8), {"dtype": "f32"}, TypeError, "name"),
        (np.zeros(3, [("a", "f4"), ("b", "f4")]), {}, TypeError, "format"),
        (np.zeros((3, 4), np.float32)[:, ::2], {}, ValueError, "C-contiguous"),
        (np.zeros((3, 4), np.float32).T, {}, ValueError, "C-contiguous"),
        (np.zeros(0, np.float32), {}, ValueError, "empty"),
        (np.zeros((3, 0, 4), np.float32), {}, ValueError, "empty"),
        (np.zeros((1,) * 5, np.float32), {}, ValueError, "dimensions"),
        (b"12345", {"dtype": "f32"}, ValueError, "bytes"),
        (b"1234", {"dtype": "f32", "shape": (2,)}, ValueError, r"\(2\) f32 needs 8 bytes"),
        (b"1234", {"dtype": "f64"}, ValueError, "f32 f16 bf16"),
        (b"1234", {"dtype": 4}, TypeError, "dtype"),
        (b"1234", {"shape": 4}, TypeError, "sequence"),
        (b"1234", {"shape": "4"}, TypeError, "sequence"),
        (b"1234", {"shape": ()}, ValueError, "dimensions"),
        (b"1234", {"shape": (1, 1, 1, 1, 4)}, ValueError, "dimensions"),
        (b"1234", {"shape": (4.0,)}, TypeError, r"shape\[0\]"),
        (b"1234", {"shape": (1 << 40, 1 << 40)}, ValueError, "too many"),
        ([1.0, 2.0], {}, TypeError, "buffer"),
        ("text", {}, TypeError, "buffer"),
        (None, {}, TypeError, "buffer"),
    ],
)
def test_bad_data(device: _C.Device, data: Any, more: dict[str, Any], error: type[Exception], match: str) -> None:
    before = device.memory()["device_used"]
    with pytest.raises(error, match=match):
        _C.tensor(device, data, **more)
    assert device.memory()["device_used"] == before


def test_the_device_must_be_one() -> None:
    for make in (
        lambda thing: _C.tensor(thing, b"1234"),
        lambda thing: _C.empty(thing, (1,)),
        lambda thing: _C.full(thing, (1,)),
    ):
        for thing in (None, 0, "llvmpipe", object()):
            with pytest.raises(TypeError, match="must be a Device"):
                make(thing)  # type: ignore[no-untyped-call]


# ---- filling and writing


@pytest.mark.parametrize("word", [0, 1, 0x3F800000, 0xFFFFFFFF])
def test_full(device: _C.Device, word: int) -> None:
    assert (_C.full(device, (3, 70), word, "u32").numpy() == word).all()
    odd = _C.full(device, (5,), word, "u8").tobytes()
    assert odd == (word.to_bytes(4, "little") * 2)[:5]


def test_write(device: _C.Device) -> None:
    tensor = _C.full(device, (4, 3), 0, "i32")
    tensor.write(np.arange(12, dtype=np.int32))
    tensor[1:3].write(np.full((2, 3), 7, np.int32))
    tensor[3].write(b"\0" * 12)
    assert tensor.numpy().tolist() == [[0, 1, 2], [7, 7, 7], [7, 7, 7], [0, 0, 0]]
    for data in (b"", bytes(44), bytes(52)):
        with pytest.raises(ValueError, match="48 bytes"):
            tensor.write(data)
    with pytest.raises(ValueError, match="C-contiguous"):
        tensor.write(np.zeros(24, np.int32)[::2])
    with pytest.raises(TypeError):
        tensor.write([0] * 12)  # type: ignore[arg-type]


def test_order_of_writes_and_reads(device: _C.Device) -> None:
    """What was recorded first happens first, however many writes wait."""
    tensor = _C.full(device, (64,), 0, "u32")
    for i in range(700):
        tensor.write(np.full(64, i, np.uint32))
        if i % 97 == 0:
            assert (tensor.numpy() == i).all()
    assert (tensor.numpy() == 699).all()


def test_a_dropped_tensor_may_still_be_written(device: _C.Device) -> None:
    """Recorded work outlives the Python objects that it was recorded for."""
    kept = [_C.full(device, (1000,), i, "u32") for i in range(8)]
    for i in range(100):
        _C.tensor(device, random_bits((5000,), np.uint32, i))
        _C.full(device, (5000,), i)
    assert [int(tensor.numpy()[500]) for tensor in kept] == list(range(8))


# ---- views


def test_indexing(device: _C.Device) -> None:
    values = np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    tensor = _C.tensor(device, values)
    for key in (0, 3, -1, -4, np.int64(2), True):
        assert (tensor[key].numpy() == values[int(key)]).all()
    for rows in (slice(None), slice(1, 3), slice(-2, None), slice(0, 99), slice(3, 4)):
        assert (tensor[rows].numpy() == values[rows]).all()
    assert tensor[2][1].numpy().tolist() == [14, 15]
    assert tensor[2][1][0].shape == (1,) and tensor[2][1][0].numpy().tolist() == [14]
    assert [part.numpy().tolist() for part in tensor] == values.tolist()
    tensor[2][1].write(np.array([-1, -2], np.int32))
    values[2, 1] = -1, -2
    assert (tensor.numpy() == values).all()


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (4, IndexError),
        (-5, IndexError),
        (1 << 70, IndexError),
        (slice(None, None, 2), ValueError),
        (slice(None, None, -1), ValueError),
        (slice(2, 2), ValueError),
        (slice("a", None), TypeError),
        ((0, 0), TypeError),
        (1.0, TypeError),
        (None, TypeError),
        (..., TypeError),
    ],
)
def test_bad_index(device: _C.Device, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        _C.empty(device, (4, 3))[key]


def test_reshape(device: _C.Device) -> None:
    values = np.arange(24, dtype=np.int32)
    tensor = _C.tensor(device, values)
    for shape in [(24,), (4, 6), (2, -1), (-1,), (2, 3, 2, -1), (-1, 24)]:
        assert (tensor.reshape(*shape).numpy() == values.reshape(shape)).all()
        assert tensor.reshape(shape).shape == values.reshape(shape).shape  # type: ignore[arg-type]
    assert (tensor[4:12].reshape(2, 4)[1].numpy() == values[8:12]).all()


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((5,), ValueError),
        ((5, -1), ValueError),
        ((-1, -1), ValueError),
        ((0,), ValueError),
        ((0, -1), ValueError),
        ((-2, -12), ValueError),
        ((1 << 62, 1 << 62), ValueError),
        ((1 << 64,), ValueError),
        ((24, 1, 1, 1, 1), ValueError),
        ((), ValueError),
        (("24",), TypeError),
        ((24.0,), TypeError),
        ((None,), TypeError),
    ],
)
def test_bad_reshape(device: _C.Device, shape: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="reshape"):
        _C.empty(device, (24,)).reshape(*shape)


# ---- conversion


def as_f32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        return (values.view(ml_dtypes.bfloat16) if dtype == "bf16" else values).astype(np.float32)


def converted(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bf16":
            return values.astype(ml_dtypes.bfloat16).view(np.uint16)
        return values.astype(DTYPES[dtype])


def is_nan(values: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    return np.isnan(as_f32(values, dtype))


@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
def test_astype(device: _C.Device, source: str, target: str) -> None:
    """Round to nearest even, with infinities, NaNs and subnormals of f16: exactly as NumPy does.
    (Subnormals of f32 and bf16 may be flushed: Vulkan leaves that to the device.)"""
    if source == "f32":
        special = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan]
        special += [65504, 65519.9, 65520, 1e38, 6e-8, 2.9e-8]
        rng = np.random.default_rng(1)
        spread = rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 9, 4000)
        ties = 1 + np.arange(64) * 2.0**-12
        values = np.concatenate([special, spread, ties, ties * 2.0**-20]).astype(np.float32)
    else:
        values = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[source])
    wide = as_f32(values, source)
    tiny = (np.abs(wide) < np.finfo(np.float32).tiny) & (wide != 0)
    values, wide = values[~tiny], wide[~tiny]
    result = _C.tensor(device, values, source).astype(target)
    assert (result.dtype, result.shape) == (target, values.shape)
    got, want = result.numpy(), converted(wide, target)
    nan = np.isnan(wide)
    assert is_nan(got[nan], target).all()
    assert got[~nan].tobytes() == want[~nan].tobytes()


def test_astype_of_views(device: _C.Device) -> None:
    values = np.arange(63, dtype=np.float16).reshape(9, 7)
    tensor = _C.tensor(device, values)
    for first in range(9):
        for last in range(first + 1, 10):
            got = tensor[first:last].astype("f32").numpy()
            assert (got == values[first:last]).all()


def test_astype_to_the_same_is_the_same(device: _C.Device) -> None:
    for dtype in DTYPES:
        tensor = _C.empty(device, (2,), dtype)
        assert tensor.astype(dtype) is tensor


@pytest.mark.parametrize("dtype", ["i32", "u32", "u8", "i8", "u16"])
def test_astype_has_no_integers(device: _C.Device, dtype: str) -> None:
    with pytest.raises(TypeError, match="astype"):
        _C.empty(device, (2,)).astype(dtype)
    with pytest.raises(TypeError, match="astype"):
        _C.empty(device, (2,), dtype).astype("f32")
    with pytest.raises(ValueError, match="f64"):
        _C.empty(device, (2,)).astype("f64")


# ---- text


def test_repr(device: _C.Device) -> None:
    where = f"on device {device.index}"
    half = _C.tensor(device, np.array([[1, -2, 0.5, 65504, np.inf, 6e-8]], np.float16))
    assert repr(half) == f"<Tensor (1, 6) f16 {where}: 1 -2 0.5 65504 inf 5.9605e-08>"
    assert repr(_C.full(device, (9,), 5, "i32")) == f"<Tensor (9) i32 {where}: 5 5 5 5 5 5 ...>"
    bf16 = _C.tensor(device, np.array([0x3F80, 0xC000, 0x7FC0], np.uint16), "bf16")
    assert repr(bf16) == f"<Tensor (3) bf16 {where}: 1 -2 nan>"
    signed = _C.tensor(device, np.array([-128, 127], np.int8))
    assert repr(signed) == f"<Tensor (2) i8 {where}: -128 127>"
    for dtype in DTYPES:
        assert dtype in repr(_C.full(device, (2, 1, 1, 1), 0xFFFFFFFF, dtype))


# ---- protocols


def test_buffer_protocol(device: _C.Device) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = _C.tensor(device, values)
    if "host_visible" not in device.features:
        with pytest.raises(BufferError, match="numpy"):
            memoryview(tensor)
        return
    view = memoryview(tensor)
    assert (view.format, view.shape, view.strides) == ("f", (2, 3), (12, 4))
    assert not view.readonly and view.c_contiguous and view.obj is tensor
    assert bytes(view) == values.tobytes()
    shared = np.asarray(tensor)
    shared[1, 2] = 99
    assert tensor[1].numpy().tolist() == [3, 4, 99]
    assert np.shares_memory(shared, tensor.numpy())
    assert b"".join([tensor]) == tensor.tobytes()  # type: ignore[list-item]
    assert np.asarray(tensor[1]).tolist() == [3, 4, 99]


def test_an_export_holds_the_memory(device: _C.Device) -> None:
    tensor = _C.full(device, (1000,), 3, "u32")
    array_of = tensor.numpy()
    taken = np.from_dlpack(tensor)
    reference = weakref.ref(tensor)
    del tensor
    gc.collect()
    others = [_C.full(device, (1000,), i, "u32") for i in range(50)]
    device.sync()
    assert (array_of == 3).all() and (taken == 3).all()
    del array_of
    gc.collect()
    assert reference() is None and (taken == 3).all() and len(others) == 50


def test_numpy_array_arguments(device: _C.Device) -> None:
    tensor = _C.tensor(device, np.arange(4, dtype=np.float32))
    assert np.array(tensor, dtype=np.float64).dtype == np.float64
    assert tensor.__array__(np.int8).tolist() == [0, 1, 2, 3]
    assert not np.shares_memory(tensor.__array__(copy=True), tensor.numpy())
    if "host_visible" not in device.features:
        with pytest.raises(ValueError, match="copy"):
            tensor.__array__(copy=False)


@pytest.mark.parametrize("dtype", INFERRED)
def test_dlpack_to_numpy(device: _C.Device, dtype: str) -> None:
    values = random_bits((3, 4), INFERRED[dtype])
    tensor = _C.tensor(device, values)
    for source in (tensor, tensor[1:], tensor[2]):
        back = np.from_dlpack(source)
        assert back.dtype == INFERRED[dtype] and back.shape == source.shape
        assert back.tobytes() == source.tobytes()
    copied = np.from_dlpack(tensor, copy=True)
    tensor.write(bytes(tensor.nbytes))
    device.sync()
    assert copied.tobytes() == values.tobytes()


def capsule_name(capsule: object) -> bytes:
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    name = get(capsule)
    assert isinstance(name, bytes)
    return name


def test_dlpack_versions(device: _C.Device) -> None:
    tensor = _C.empty(device, (2,), "bf16")
    assert tensor.__dlpack_device__() == (1, 0)
    assert capsule_name(tensor.__dlpack__()) == b"dltensor"
    assert capsule_name(tensor.__dlpack__(max_version=(0, 8))) == b"dltensor"
    for version in ((1, 0), (1, 1), (2, 0)):
        assert capsule_name(tensor.__dlpack__(max_version=version)) == b"dltensor_versioned"
    assert tensor.__dlpack__(stream=None, dl_device=(1, 0), copy=None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"stream": 1}, ValueError),
        ({"dl_device": (2, 0)}, BufferError),
        ({"dl_device": (1, 1)}, BufferError),
        ({"dl_device": 1}, TypeError),
        ({"dl_device": (1,)}, TypeError),
        ({"max_version": 1}, TypeError),
        ({"max_version": ("1", "0")}, TypeError),
        ({"max_version": (1 << 40, 0)}, OverflowError),
        ({"versoin": 1}, TypeError),
    ],
)
def test_bad_dlpack_arguments(device: _C.Device, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        _C.empty(device, (2,)).__dlpack__(**arguments)


def test_unconsumed_capsules_free_their_memory(device: _C.Device) -> None:
    tensor = _C.empty(device, (1 << 16,))
    device.sync()
    before = device.memory()
    for _ in range(100):
        tensor.__dlpack__()
        tensor.__dlpack__(max_version=(1, 0), copy=True)
        np.from_dlpack(tensor, copy=True)
    gc.collect()
    after = device.memory()
    assert after["device_used"] == before["device_used"]
    assert after["host_used"] == before["host_used"]


# ---- threads


def test_threads_share_a_tensor(device: _C.Device) -> None:
    """Each thread owns a row; all share the memory, the device and the views."""
    tensor = _C.full(device, (8, 257), 0, "u32")
    failures: list[BaseException] = []

    def work(row: int) -> None:
        try:
            for i in range(60):
                values = np.full(257, row << 16 | i, np.uint32)
                tensor[row].write(values)
                assert tensor[row].tobytes() == values.tobytes()
                assert tensor.reshape(-1)[row * 257 :].numpy()[0] == row << 16 | i
                assert repr(tensor) and tensor.shape == (8, 257)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert (tensor.numpy()[:, 0] == [row << 16 | 59 for row in range(8)]).all()
