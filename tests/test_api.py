"""The package's face: import, devices, tensors, a linear layer alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import marlin as ml

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=False
    )


# ---- import ------------------------------------------------------------------------------------------------------


def test_import_is_light() -> None:
    code = (
        "import sys, time; begin = time.perf_counter(); import marlin; spent = time.perf_counter() - begin\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'typer', 'rich', 'ml_dtypes', 'marlin._C'} & set(sys.modules)\n"
        "print(spent < 0.3, sorted(heavy))"
    )
    run = python(code)
    assert run.stdout.split(maxsplit=1) == ["True", "[]\n"], run.stderr


def test_names() -> None:
    """Every public name comes, whatever was imported before it, and dir() shows it."""
    for name in ml.__all__:
        assert name in dir(ml)
        assert getattr(ml, name).__module__.startswith(("marlin.", "marlin"))
    run = python(
        "import marlin.model, marlin as ml; print(callable(ml.plan), callable(ml.tensor), callable(ml.devices))"
    )
    assert run.stdout.split() == ["True"] * 3, run.stderr
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        _ = ml.modle


def test_without_vulkan(tmp_path: Path) -> None:
    """No driver and a read-only home: importing works, the first use of a device names the remedy."""
    code = (
        "import marlin as ml\n"
        "print(ml.devices())\n"
        "try: ml.Device()\n"
        "except ml.DeviceError as error: print(error)\n"
        f"print(ml.plan({str(ROOT / 'models' / 'fix-llama')!r}).device)\n"
    )
    run = python(code, VK_ICD_FILENAMES=str(tmp_path / "none.json"), VK_DRIVER_FILES="/none", HOME="/proc/none")
    lines = run.stdout.splitlines()
    assert lines[0] == "[]", run.stderr
    assert len(lines[1]) > 20
    assert lines[-1] == "no device"


# ---- devices -----------------------------------------------------------------------------------------------------


def test_devices() -> None:
    found = ml.devices()
    assert found
    assert repr(found[0]).startswith(f"Device 0: {found[0].name}")
    assert "<table>" in found._repr_html_()
    assert "uuid" in found[0]._repr_html_()


def test_device_by_any_name() -> None:
    device = ml.Device()
    for which in (device.index, str(device.index), device.name, device.name[2:6].upper(), device.uuid, device):
        assert ml.Device(which) == device
    dashed = "-".join([device.uuid[:8], device.uuid[8:]])
    assert ml.Device(dashed).raw is device.raw
    assert hash(ml.Device(dashed)) == hash(device)
    assert device.memory()["device_budget"] > 0
    assert device.info.name == device.name in repr(device)


def test_device_features_off() -> None:
    features = ml.Device().features
    assert features
    masked = ml.Device(disable=(features[0],))
    assert features[0] not in masked.features
    assert masked != ml.Device()
    assert ml.Device(disable=[features[0]]) == masked
    with pytest.raises(ValueError, match="'warp'"):
        ml.Device(disable="warp")


@pytest.mark.parametrize(
    ("which", "error", "text"),
    [
        (99, ml.DeviceError, "no device 99; there are: Device 0"),
        (-1, ml.DeviceError, "no device -1"),
        ("Voodoo 2", ml.DeviceError, "no device 'Voodoo 2'"),
        (1.5, TypeError, "must be an index, a name, a UUID"),
        (True, TypeError, "must be an index"),
    ],
)
def test_no_such_device(which: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ml.Device(which)


def test_device_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARLIN_DEVICE", "no such device")
    with pytest.raises(ml.DeviceError, match="no such device"):
        ml.Device()
    assert ml.Device(0).index == 0


# ---- tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint32", "uint16", "uint8", "int8", "bfloat16"])
def test_numpy_and_back(dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    tensor = ml.tensor(array)
    assert (tensor.shape, tensor.size, tensor.nbytes) == ((2, 3, 4), 24, array.nbytes)
    back = np.asarray(tensor)
    assert back.dtype == kind
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(tensor[1].numpy(), array[1])
    np.testing.assert_array_equal(np.asarray(tensor, np.float32), array.astype(np.float32))
    assert len(tensor) == len(list(tensor)) == 2


def test_lists_scalars_and_wide_types() -> None:
    assert ml.tensor([[1.5, 2.5]]).dtype == "f32"
    assert ml.tensor([1, 2]).dtype == "i32"
    assert ml.tensor(2.5).item() == 2.5
    assert ml.tensor([1.0, 2.0], dtype="bf16").numpy().tolist() == [1.0, 2.0]
    assert ml.tensor([True, False]).tolist() == [1, 0]
    assert ml.tensor(np.arange(6.0)[::2]).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="do not fit int32"):
        ml.tensor([1 << 40])
    with pytest.raises(TypeError, match="complex128"):
        ml.tensor([1j])
    with pytest.raises(ValueError, match="empty"):
        ml.tensor([])
    with pytest.raises(TypeError, match=r"use marlin\.tensor"):
        ml.Tensor([1])


def test_dlpack_both_ways() -> None:
    tensor = ml.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    array = np.from_dlpack(tensor)
    np.testing.assert_array_equal(array, tensor.numpy())

    class Exporter:
        """Something with DLPack that is no array."""

        def __dlpack__(self, **options: Any) -> Any:
            return array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    np.testing.assert_array_equal(ml.tensor(Exporter()).numpy(), array)


def test_tensor_shares_memory_with_the_host() -> None:
    tensor = ml.tensor(np.zeros(4, np.float32))
    if "host_visible" in ml.Device().features:
        assert np.shares_memory(tensor.numpy(), tensor.numpy())
    assert tensor.reshape(2, -1).shape == (2, 2)
    assert tensor.astype("f16").numpy().dtype == np.float16


def test_tensor_shown() -> None:
    tensor = ml.tensor(np.ones((100, 100), np.float32))
    assert "(100, 100) f32" in repr(tensor)
    assert "100 × 100 f32" in tensor._repr_html_()
    assert len(tensor._repr_html_()) < 5000


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_opens_its_own() -> None:
    """A forked child has nothing of the parent's device, but a new one, and models on it; the parent goes on.

    Where the driver does not survive a fork, opening a device is a DeviceError that says so and names the remedy.
    """
    path, ids = ROOT / "models" / "fix-llama", [3, 1, 4, 1, 5]
    with ml.Model.load(path, slots=1, context=32) as model:
        expected, which = model.logits(ids).tobytes(), model.device.uuid
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that waits for a thread of the parent
            ended = "unclear"
            with contextlib.suppress(BaseException):
                ended = in_a_child(model, which, lambda model: model.logits(ids).tobytes() == expected)
            os._exit(CHILD.index(ended))
        ended = CHILD[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
        assert model.logits(ids).tobytes() == expected
        assert ended in ("works", "refused")


CHILD = ("unclear", "used the parent's device", "the same device", "other results", "works", "refused")


def in_a_child(model: ml.Model, which: str, right: Callable[[ml.Model], bool]) -> str:
    """What becomes of a model and its device in a forked child, as one of CHILD."""
    try:
        model.logits([1])
    except ml.DeviceError as error:
        if "open it again in the child" not in str(error):
            return "unclear"
    else:
        return "used the parent's device"
    try:
        if ml.Device(which) == model.device or ml.Device(which) != ml.Device(which):
            return "the same device"
        with ml.Model.load(ROOT / "models" / "fix-llama", slots=1, context=32, device=which) as own:
            return "works" if right(own) else "other results"
    except ml.DeviceError as error:
        return "refused" if "not every driver survives: start children with" in str(error) else "unclear"


def test_a_child_process_without_a_driver_is_told_of_spawn() -> None:
    """Where the driver is gone after a fork, opening a device names the way around; the parent goes on."""
    code = f"""
import os, warnings
import marlin as ml
from marlin import _C
warnings.simplefilter("ignore")
path = {str(ROOT / "models" / "fix-llama")!r}
model = ml.Model.load(path, slots=1, context=32)
expected, which = model.logits([1, 2]).tobytes(), model.device.uuid
child = os.fork()
if child == 0:
    told = _C.fork_remedy() == ""  # Vulkan is not open here yet
    os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = os.devnull
    for call in (ml.Device, lambda: ml.Device(which), lambda: ml.Model.load(path)):
        try:
            call()
        except ml.DeviceError as error:
            told += "not every driver survives: start children with multiprocessing's spawn" in str(error)
    os._exit(told + ("spawn" in _C.fork_remedy()))
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(ended, model.logits([1, 2]).tobytes() == expected, _C.fork_remedy() == "")
"""
    run = python(code)
    assert (run.stdout, run.stderr) == ("5 True True\n", "")


# ---- a linear layer alone ----------------------------------------------------------------------------------------


def test_linear() -> None:
    rng = np.random.default_rng(1)
    w, x, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((48, 128), (2, 3, 128), (48,)))
    layer = ml.Linear.from_array(w, format="int4", group=64, bias=b)
    assert (layer.shape, layer.format) == ((48, 128), "int4")
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, 48), "f32")
    np.testing.assert_allclose(y.numpy(), x @ layer.dequantize().numpy().T + b, atol=1e-3)
    assert np.abs(layer.dequantize().numpy() - w).max() < np.abs(w).max() / 7
    half = layer(ml.tensor(x[0, 0].astype(np.float16)), activation="silu")
    assert (half.shape, half.dtype) == ((48,), "f16")
    assert "group 64" in repr(layer)
    assert "quant" in layer._repr_html_()
    with pytest.raises(ValueError, match=r"x must be \(..., 128\), got shape \(127,\)"):
        layer(np.zeros(127, np.float32))


@pytest.mark.parametrize(
    ("format", "scale", "zero"),
    [("f16", None, False), ("int8", "f16", False), ("fp8", "f16", False), ("mxfp4", "e8m0", False),
     ("nvfp4", "e4m3", False), ("int4:32", "f16", False)],
)  # fmt: skip
def test_linear_formats(format: str, scale: str | None, zero: bool) -> None:
    w = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    layer = ml.Linear.from_array(w.astype(ml_dtypes.bfloat16), format=format)
    assert (layer.raw.scale, layer.raw.zero) == (scale, zero)
    assert layer.nbytes == ml.WeightFormat.parse(format).nbytes(16, 64)
    error = np.linalg.norm(layer.dequantize().numpy() - w) / np.linalg.norm(w)
    assert error < {"f16": 0.01, "int8": 0.02, "fp8": 0.05}.get(format, 0.25)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"format": "int44"}, ValueError, "unknown weight format 'int44'; did you mean 'int4'"),
        ({"format": "int4", "group": 48}, ValueError, "group must be"),
        ({"format": "int8", "scale": "e8m0"}, ValueError, "takes scales of f16, f32"),
        ({"format": "fp8", "zero": True}, ValueError, "no zero points"),
        ({"format": 4}, TypeError, "format must be a name"),
        ({"bias": np.zeros(3)}, ValueError, r"bias must be \(16,\)"),
        ({"fromat": "int4"}, TypeError, "did you mean 'format'"),
    ],
)
def test_linear_refuses(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ml.Linear.from_array(np.ones((16, 64), np.float32), **options)


def test_linear_refuses_weights() -> None:
    with pytest.raises(ValueError, match=r"must be \(n, k\)"):
        ml.Linear.from_array(np.ones(4, np.float32))
    with pytest.raises(TypeError, match="must be f32, f16 or bf16"):
        ml.Linear.from_array(np.ones((4, 4), np.int32))
    bad = np.ones((4, 32), np.float32)
    bad[2, 5] = np.nan
    with pytest.raises(ValueError, match="nan"):
        ml.Linear.from_array(bad, format="int8")
