"""Loading weights: files and memory, dense rows and finished planes, and all that may be wrong."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from marlin import _C, formats

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
NVFP4: dict[str, Any] = {"format": "fp4_e2m1", "scale": "e4m3"}
RNG = np.random.default_rng(7)


def dense(n: int, k: int, dtype: str = "f32") -> np.ndarray[Any, Any]:
    return RNG.standard_normal((n, k)).astype(np.float32).astype(DTYPES[dtype])


def values(lin: _C.Linear) -> np.ndarray[Any, Any]:
    return np.array(lin.dequantize())


def write(path: Path, *parts: Any, before: int = 0) -> str:
    with path.open("wb") as file:
        file.write(b"\xff" * before)
        for part in parts:
            file.write(np.ascontiguousarray(part).tobytes())
    return str(path)


# ---- dense rows ----


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("k", [1, 127, 128, 130])
def test_load_rows(device: _C.Device, tmp_path: Path, dtype: str, k: int) -> None:
    w = dense(5, k, dtype)
    path = write(tmp_path / "w", w, b"behind", before=13)  # an odd offset: files promise nothing
    lin = _C.Linear(device, 5, k, "f32")
    lin.load_rows(path, 13, w.nbytes, dtype, 5)
    assert (values(lin) == w.astype(np.float32)).all()
    lin.load_rows(os.fsencode(path), 13, w.nbytes, dtype, 5)  # type: ignore[arg-type]
    lin.load_rows(Path(path), 13, w.nbytes, dtype, 5)  # type: ignore[arg-type]


def test_stacked_and_interleaved(device: _C.Device, tmp_path: Path) -> None:
    """q, k and v one after the other; gate and up row by row."""
    q, k, v = dense(4, 96), dense(2, 96), dense(2, 96)
    path = write(tmp_path / "qkv", q, k, v)
    lin = _C.Linear(device, 8, 96, "f32")
    at = 0
    for part, start in ((q, 0), (k, 4), (v, 6)):
        lin.load_rows(path, at, part.nbytes, "f32", len(part), row_start=start)
        at += part.nbytes
    assert (values(lin) == np.concatenate([q, k, v])).all()

    lin = _C.Linear(device, 8, 96, "f16")
    lin.load_rows(path, 0, q.nbytes, "f32", 4, row_stride=2)
    both = values(lin)
    assert (both[::2] == q.astype(np.float16)).all() and not both[1::2].any()
    lin.set_rows(-q, "f32", 4, row_start=1, row_stride=2)
    assert (values(lin)[1::2] == -q.astype(np.float16)).all()


@pytest.mark.slow
def test_chunks(device: _C.Device, tmp_path: Path) -> None:
    """A matrix of more than one chunk of 32 MiB."""
    w = np.resize(dense(70, 1000), (9000, 1000))
    lin = _C.Linear(device, 9000, 1000, "int8")
    lin.load_rows(write(tmp_path / "w", w), 0, w.nbytes, "f32", 9000)
    packed = formats.pack(w, "int8")
    assert packed.scale is not None
    assert lin.read_plane("quant") == packed.quant.tobytes()
    assert lin.read_plane("scale") == packed.scale.tobytes()
    again = _C.Linear(device, 9000, 1000, "int8")
    again.set_plane("quant", np.ascontiguousarray(packed.quant[:, :1000]), "u8", 9000)
    assert again.read_plane("quant") == packed.quant.tobytes()


# ---- planes ----


def test_planes_table(device: _C.Device) -> None:
    lin = _C.Linear(device, 3, 130, "int4", group=32, scale="f32", zero=True)
    assert lin.planes == {
        "quant": ((3, 128), "u8"),
        "scale": ((3, 5), "f32"),
        "zero": ((3, 5), "u8"),
    }
    assert lin.nbytes == 3 * (128 + 5 * 4 + 5)
    assert (lin.n, lin.k, lin.format, lin.group) == (3, 130, "int4", 32)
    assert (lin.scale, lin.zero) == ("f32", True)
    assert lin.device is device and lin.global_scale == 1.0
    assert _C.Linear(device, 3, 130).planes == {"quant": ((3, 512), "u8")}
    assert _C.Linear(device, 3, 130).scale is None
    fp4 = _C.Linear(device, 1, 64, "fp4_e2m1", scale="e4m3", global_scale=0.25)
    assert (fp4.group, fp4.global_scale, fp4.planes["scale"]) == (16, 0.25, ((1, 4), "e4m3"))


@pytest.mark.parametrize("k", [128, 136, 100, 33])
def test_packed_int4_words(device: _C.Device, tmp_path: Path, k: int) -> None:
    """compressed-tensors packs eight nibbles to an int32: rows are whole words."""
    packed = formats.pack(dense(3, k), "int4", group=32)
    words = np.ascontiguousarray(packed.quant[:, : -(-k // 8) * 4])
    path = write(tmp_path / "w", words, before=3)
    lin = _C.Linear(device, 3, k, "int4", group=32)
    lin.load_plane("quant", path, 3, words.nbytes, "i32", 3)
    lin.set_plane("scale", packed.scale, "f16", 3)  # type: ignore[arg-type]
    assert lin.read_plane("quant") == packed.quant.tobytes()
    assert (values(lin) == formats.unpack(packed)).all()


@pytest.mark.parametrize("k", [128, 100, 33, 1])
def test_signed_bytes(device: _C.Device, k: int) -> None:
    packed = formats.pack(dense(4, k), "int8")
    signed = np.ascontiguousarray((packed.quant[:, :k] ^ 0x80).view(np.int8))
    lin = _C.Linear(device, 4, k, "int8")
    lin.set_plane("quant", signed, "i8", 4)
    assert lin.read_plane("quant") == packed.quant.tobytes()


@pytest.mark.parametrize("target", ["f16", "f32"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_scale_types(device: _C.Device, tmp_path: Path, dtype: str, target: str) -> None:
    scale = np.abs(dense(6, 3)).astype(DTYPES[dtype])
    lin = _C.Linear(device, 6, 96, "int4", group=32, scale=target)
    lin.load_plane("scale", write(tmp_path / "s", scale), 0, scale.nbytes, dtype, 6)
    expected = scale.astype(np.float32).astype(DTYPES[target])
    assert lin.read_plane("scale") == expected.tobytes()
    # One row for all, as a scale of the whole tensor is.
    lin.set_plane("scale", scale[1].view(np.uint8), dtype, 6)
    assert lin.read_plane("scale") == np.resize(expected[1], (6, 3)).tobytes()
    # Interleaved.
    lin.set_plane("scale", scale[:3].copy().view(np.uint8), dtype, 3, row_start=1, row_stride=2)
    plane = np.frombuffer(lin.read_plane("scale"), expected.dtype).reshape(6, 3)
    assert (plane[1::2] == expected[:3]).all()


def test_zero_points(device: _C.Device) -> None:
    lin = _C.Linear(device, 2, 64, "int4", group=32, zero=True)
    zero = np.array([[0, 15], [8, 3]], np.uint8)
    lin.set_plane("zero", zero, "u8", 2)
    assert lin.read_plane("zero") == zero.tobytes()
    lin.set_plane("zero", (zero.astype(np.int8) - 8).astype(np.int8), "i8", 2)
    assert lin.read_plane("zero") == zero.tobytes()
    too_large, too_small = np.array([[0, 0], [0, 16]], np.uint8), np.full((2, 2), -9, np.int8)
    for bad, dtype in ((too_large, "u8"), (too_small, "i8")):
        with pytest.raises(ValueError, match=r"zero of source row \d, group \d is not a number"):
            lin.set_plane("zero", bad, dtype, 2)
    assert lin.read_plane("zero") == zero.tobytes()
    wide = _C.Linear(device, 1, 2, "int8", zero=True)
    wide.set_plane("zero", np.array([[-128]], np.int8), "i8", 1)
    assert wide.read_plane("zero") == b"\0"


def test_bad_scales(device: _C.Device) -> None:
    half = _C.Linear(device, 2, 32, "int8")
    single = _C.Linear(device, 2, 32, "int8", scale="f32")
    bad = [(np.nan, "f16"), (np.inf, "f32"), (-np.inf, "bf16"), (65520, "f32"), (7e4, "bf16")]
    for value, dtype in bad:
        scale = np.array([[1], [value]], np.float32).astype(DTYPES[dtype]).view(np.uint8)
        with pytest.raises(ValueError, match="scale of source row 1, group 0 is not a number"):
            half.set_plane("scale", scale, dtype, 2)
        if np.isfinite(value):
            single.set_plane("scale", scale, dtype, 2)
    half.set_plane("scale", np.array([[1], [65519.99]], np.float32), "f32", 2)
    for kind, nan in (("e8m0", 0xFF), ("e4m3", 0x7F), ("e4m3", 0xFF)):
        lin = _C.Linear(device, 1, 32, "fp4_e2m1", group=32, scale=kind)
        with pytest.raises(ValueError, match="is not a number"):
            lin.set_plane("scale", bytes([nan]), kind, 1)
        lin.set_plane("scale", bytes([nan - 1]), "u8", 1)


# ---- what is refused ----


def test_short_files(device: _C.Device, tmp_path: Path) -> None:
    lin = _C.Linear(device, 4, 32, "int8")
    path = write(tmp_path / "w", np.ones((4, 32), np.float32))  # whose bytes are no NaN as scales either
    for call in (
        lambda at: lin.load_rows(path, at, 512, "f32", 4),
        lambda at: lin.load_plane("quant", path, at + 384, 128, "u8", 4),
        lambda at: lin.load_plane("scale", path, at + 504, 8, "f16", 4),
    ):
        call(0)
        with pytest.raises(_C.ModelFormatError, match=r"w is cut short: .* wanted, it has 512"):
            call(1)
    with pytest.raises(_C.ModelFormatError, match="is cut short"):
        lin.load_rows(path, 2**63 - 1, 512, "f32", 4)
    with pytest.raises(OSError, match="No such file"):
        lin.load_rows(str(tmp_path / "none"), 0, 512, "f32", 4)
    with pytest.raises(_C.ModelFormatError, match="is not a regular file"):
        lin.load_rows(str(tmp_path), 0, 512, "f32", 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(_C.ModelFormatError, match="is not a regular file"):
        lin.load_rows(str(tmp_path / "pipe"), 0, 512, "f32", 4)
    with pytest.raises(ValueError, match="embedded null"):
        lin.load_rows("a\0b", 0, 512, "f32", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("f32", 3), r"3 rows of 32 f32 are 384 bytes, got 512"),
        (("f16", 4), r"4 rows of 32 f16 are 256 bytes, got 512"),
        (("f32", 0), r"rows must be in 1\.\.\d+, got 0"),
        (("f32", 5), r"5 rows from row 0, every 1, are not within 0\.\.3"),
        (("f32", 2**40), r"rows must be in 1\.\.\d+, got 1099511627776"),
        (("f32", -1), r"rows must be in 1\.\.\d+, got -1"),
    ],
)
def test_bad_rows(device: _C.Device, arguments: tuple[str, int], message: str) -> None:
    lin = _C.Linear(device, 4, 32, "int8")
    with pytest.raises(ValueError, match=message):
        lin.set_rows(np.zeros((4, 32), np.float32), *arguments)


def test_bad_places(device: _C.Device) -> None:
    lin = _C.Linear(device, 4, 32, "int8")
    data = np.zeros((2, 32), np.float32)
    for start, stride in ((3, 1), (2, 2), (0, 4), (4, 1), (1, 2**24)):
        with pytest.raises(ValueError, match=f"2 rows from row {start}, every {stride}, are"):
            lin.set_rows(data, "f32", 2, row_start=start, row_stride=stride)
    with pytest.raises(ValueError, match="row_stride must be in"):
        lin.set_rows(data, "f32", 2, row_stride=0)
    with pytest.raises(ValueError, match="row_start must be in"):
        lin.set_rows(data, "f32", 2, row_start=-1)
    lin.set_rows(data, "f32", 2, row_start=0, row_stride=3)


def test_bad_types(device: _C.Device) -> None:
    lin = _C.Linear(device, 4, 32, "int4")
    for dtype in ("i32", "u8", "float32", ""):
        with pytest.raises(TypeError, match="rows must be f32, f16 or bf16"):
            lin.set_rows(bytes(512), dtype, 4)
    for plane, dtype in (("quant", "i8"), ("quant", "f16"), ("scale", "i8"), ("scale", "e4m3")):
        with pytest.raises(TypeError, match=f"{plane} takes"):
            lin.set_plane(plane, bytes(64), dtype, 4)
    for plane in ("zero", "bias", ""):
        with pytest.raises(ValueError, match=f"no plane '{plane}'; it has quant, scale"):
            lin.set_plane(plane, bytes(64), "u8", 4)
        with pytest.raises(ValueError, match="no plane"):
            lin.read_plane(plane)
    for size in (63, 65, 0, 256):
        with pytest.raises(ValueError, match=f"4 rows of quant are 64 bytes, got {size}"):
            lin.set_plane("quant", bytes(size), "u8", 4)
    with pytest.raises(ValueError, match="4 rows of scale are 8 bytes, got 6"):
        lin.set_plane("scale", bytes(6), "f16", 4)
    with pytest.raises(TypeError, match="buffer"):
        lin.set_rows([1.0], "f32", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="C-contiguous"):
        lin.set_rows(np.zeros((4, 64), np.float32)[:, ::2], "f32", 4)
    with pytest.raises(TypeError, match="rowstart"):
        lin.set_rows(bytes(512), "f32", 4, rowstart=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"n": 0}, r"n must be in 1\.\.16777216, got 0"),
        ({"n": 2**24 + 1}, r"n must be in 1\.\.16777216"),
        ({"k": 0}, r"k must be in 1\.\.1048576"),
        ({"k": -5}, r"k must be in 1\.\.1048576, got -5"),
        ({"k": 2**20 + 1}, r"k must be in 1\.\.1048576"),
        ({"n": 2**24, "k": 2**20}, r"\(16777216, 1048576\) in int4 is too large for one matrix"),
        ({"format": "int5"}, r"unknown format 'int5'; known are f32, f16, bf16, int8"),
        ({"group": 8}, r"group must be 0, 16, 32, 64, 128 or 256, got 8"),
        ({"group": 48}, r"group must be 0, 16, 32, 64, 128 or 256, got 48"),
        ({"group": 512}, r"group must be in 0\.\.256, got 512"),
        ({"group": -1}, r"group must be in 0\.\.256, got -1"),
        ({"format": "f16", "group": 32}, r"f16 has no groups, got group 32"),
        ({"format": "bf16", "zero": True}, r"bf16 has no zero points"),
        ({"format": "fp8_e4m3", "zero": True}, r"fp8_e4m3 has no zero points"),
        ({"format": "f32", "scale": "f16"}, r"f32 has no scales, got scale 'f16'"),
        ({"scale": "e8m0"}, r"int4 takes scales of f32, f16, got 'e8m0'"),
        ({"scale": "f64"}, r"int4 takes scales of f32, f16, got 'f64'"),
        ({"global_scale": 2.0}, r"global_scale belongs to e4m3 scales, got 2"),
        (NVFP4 | {"global_scale": 0.0}, r"global_scale must be in"),
        (NVFP4 | {"global_scale": -1.0}, r"global_scale must be in"),
        (NVFP4 | {"global_scale": float("nan")}, r"global_scale must be in"),
        (NVFP4 | {"global_scale": 1e31}, r"global_scale must be in 2\^-100\.\.2\^100, got 1e\+31"),
    ],
)
def test_bad_shapes(device: _C.Device, keywords: dict[str, Any], message: str) -> None:
    arguments = {"n": 4, "k": 64, "format": "int4"} | keywords
    with pytest.raises(ValueError, match=message):
        _C.Linear(device, **arguments)


def test_not_while_capturing(device: _C.Device) -> None:
    lin = _C.Linear(device, 2, 32, "int8")
    with device.capture():
        for call in (
            lambda: lin.set_rows(np.zeros((2, 32), np.float32), "f32", 2),
            lambda: lin.set_plane("quant", bytes(64), "u8", 2),
            lambda: lin.read_plane("quant"),
            lambda: _C.Linear(device, 2, 32),
        ):
            with pytest.raises(_C.MarlinError, match="while capturing"):
                call()
    lin.set_rows(np.ones((2, 32), np.float32), "f32", 2)


# ---- the object ----


def test_bias(device: _C.Device) -> None:
    lin = _C.Linear(device, 3, 32, "f32")
    lin.set_rows(np.ones((3, 32), np.float32), "f32", 3)
    lin.set_bias(_C.tensor(device, np.zeros(3, np.float32)))
    lin.set_bias(None)
    with pytest.raises(ValueError, match=r"bias must be \(3\) f32, got \(4\) f32"):
        lin.set_bias(_C.tensor(device, np.zeros(4, np.float32)))
    with pytest.raises(TypeError, match=r"bias must be \(3\) f32, got \(3\) f16"):
        lin.set_bias(_C.tensor(device, np.zeros(3, np.float16)))
    with pytest.raises(TypeError, match="bias must be a Tensor or None"):
        lin.set_bias([0, 0, 0])  # type: ignore[arg-type]


def test_object(device: _C.Device) -> None:
    lin = _C.Linear(device, 3, 40, "int4", group=0, zero=True)
    assert repr(lin) == "<Linear (3, 40) int4, f16 scales of a row, zero points>"
    assert repr(_C.Linear(device, 3, 40)) == "<Linear (3, 40) f16>"
    with pytest.raises(TypeError):
        pickle.dumps(lin)
    with pytest.raises(AttributeError):
        lin.n = 4
    ref = weakref.ref(lin)
    del lin
    assert ref() is None


def test_memory_is_given_back(device: _C.Device) -> None:
    device.sync()
    before = device.memory()["device_used"]
    lin = _C.Linear(device, 300, 1024, "int8")
    assert device.memory()["device_used"] >= before + 300 * 1024
    lin.set_rows(dense(300, 1024), "f32", 300)
    with pytest.raises(ValueError, match="inf or nan"):
        lin.set_rows(np.full((300, 1024), np.nan, np.float32), "f32", 300)
    del lin
    device.sync()
    assert device.memory()["device_used"] == before


def test_threads(device: _C.Device) -> None:
    """Calls on one object from many threads take turns."""
    lin = _C.Linear(device, 8, 64, "f32")
    parts = [dense(1, 64) for _ in range(8)]
    errors: list[BaseException] = []

    def work(row: int) -> None:
        try:
            for _ in range(5):
                lin.set_rows(parts[row], "f32", 1, row_start=row)
                lin.set_bias(_C.tensor(device, np.zeros(8, np.float32)))
                assert (np.array(lin.dequantize())[row] == parts[row][0]).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (values(lin) == np.concatenate(parts)).all()
