"""TrellisLinear: exact decoding of every rate and codebook, products by every kernel, epilogues, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arrays import array, tensor
from exl3_golden import LAYERS, Layer, sha256
from ref import exl3
from ref.matmul import GATED, PLAIN
from ref.norm import rms_norm
from tolerance import check, nmse

import marlin as ml
from marlin import _C
from marlin.tensors import to_numpy

KERNELS = ("trellis_gemv", "trellis_gemm", "trellis_gemm_coopmat", "trellis_gemv_coopmat")
NAN_WORD = 0x7FFF7FFF
# A layer of each kind of unit and codebook, for what does not depend on the rate.
FEW = [layer for layer in LAYERS if layer.name.split("_")[0] in ("K1p5", "K3", "K4", "K8")]


def make(device: _C.Device, layer: Layer, n: int = 0, k: int = 0) -> _C.TrellisLinear:
    """The layer on the device, with n and k of a model that was padded, or all of it."""
    lin = _C.TrellisLinear(
        device,
        n or 16 * layer.trellis.shape[1],
        k or 16 * layer.trellis.shape[0],
        exl3.rate_of(layer.trellis),
        layer.codebook,
    )
    lin.set_trellis(layer.trellis)
    lin.set_scales(layer.suh, layer.svh)
    return lin


def decoded(layer: Layer) -> np.ndarray[Any, Any]:
    return exl3.inner(layer.trellis, layer.codebook)


def exact(layer: Layer, x: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    return exl3.forward(x, decoded(layer), layer.suh, layer.svh, bias)


def precision(device: _C.Device, dtype: str = "f16") -> str:
    """What bounds a product of activations of this type with f32 results."""
    return "f16" if dtype == "f16" and "fp16" in device.features else "f32"


def skip_without(device: _C.Device, kernel: str) -> None:
    if "coopmat" in kernel and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    if "coopmat" in kernel and not {"int_dot", "subnormals"} <= set(device.features):
        pytest.skip("needs int_dot and subnormals")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_decoding_is_exact(device: _C.Device, layer: Layer) -> None:
    lin = make(device, layer)
    assert lin.read_trellis() == layer.trellis.tobytes()
    assert sha256(to_numpy(lin.inner())) == layer.inner_sha256.tobytes()
    check(to_numpy(lin.dequantize()), exl3.weight(decoded(layer), layer.suh, layer.svh), "f32")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_product(device: _C.Device, layer: Layer) -> None:
    """One row, by the kernel of decoding; and ExLlamaV3's own results."""
    y = to_numpy(make(device, layer)(_C.tensor(device, layer.x[:1]), dtype="f32"))
    check(y, exact(layer, layer.x[:1]), precision(device))
    if layer.stored_bias is None:
        assert nmse(y, layer.y[:1]) < 1e-6  # it rounds the rotated x to f16


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("layer", [layer for layer in FEW if "x256" not in layer.name], ids=str)
def test_gemv_rows(device: _C.Device, layer: Layer, rows: int) -> None:
    if rows > 2 and "fp16" not in device.features and layer.codebook != "mul1":
        pytest.skip("the plain kernel has no code of its own for these rows")
    x = np.random.default_rng(rows).standard_normal((rows, 16 * layer.trellis.shape[0])).astype(np.float16)
    y = to_numpy(make(device, layer)(_C.tensor(device, x), dtype="f32", kernel="trellis_gemv"))
    check(y, exact(layer, x), precision(device))


@pytest.mark.parametrize(
    "kernel",
    [
        "trellis_gemv@2",
        "trellis_gemv@1,2",
        "trellis_gemv@1,4",
        "trellis_gemv@1,1,1",
        "trellis_gemm@2",
    ],
)
def test_gemv_shares(device: _C.Device, kernel: str) -> None:
    """Sums over several workgroups and groups, without words in flight, and again: the counters are back at 0."""
    layer = next(layer for layer in LAYERS if layer.name == "K3_mcg_256x128")
    lin, x = make(device, layer), _C.tensor(device, layer.x[:1])
    first = to_numpy(lin(x, dtype="f32", kernel=kernel)).copy()
    check(first, exact(layer, layer.x[:1]), precision(device))
    assert all(np.array_equal(to_numpy(lin(x, dtype="f32", kernel=kernel)), first) for _ in range(3))


def rate_reference(bits: float, codebook: str, way: str, lanes: int) -> np.ndarray[Any, Any]:
    """What shaders/trellis/rate.comp gives for one round, in f64."""
    words = int(bits * 2 + 1) // 2 + 1
    w = (np.arange(lanes * words, dtype=np.uint64) * 2654435761).astype(np.uint32).reshape(lanes, words)
    stream = np.unpackbits(w.astype(">u4").view(np.uint8), axis=1)
    ends = [32 + int((c + 1) * bits * 2) // 2 for c in range(32)]
    states = np.stack([stream[:, end - 16 : end] @ (1 << np.arange(15, -1, -1)) for end in ends], axis=1)
    if way == "states":
        return np.bitwise_xor.reduce(states, axis=1).astype(np.float64)
    rows = np.array([c // 8 * 2 + c // 2 % 2 * 8 + c % 2 for c in range(32)])
    values = exl3.codebook(codebook)[states].astype(np.float64)
    if way == "int8":
        values = (states.astype(np.uint32) * np.uint32(0x83DCD12D)).view(np.uint8).reshape(lanes, 32, 4).sum(2)
    return (values * (rows + 1)).sum(axis=1)


@pytest.mark.parametrize("way", ["states", "f32", "pairs", "apart", "int8"])
@pytest.mark.parametrize(("bits", "codebook"), [(4, "mul1"), (3, "mcg"), (2.5, "mul1"), (6, "3inst")])
def test_rate(device: _C.Device, bits: float, codebook: str, way: str) -> None:
    """The benchmark of decoding decodes."""
    out = _C.full(device, (256,), 0x7FC00000, "f32")
    if not {"fp16", "int_dot", "subnormals"} <= set(device.features):
        with pytest.raises(ml.DeviceError if way != {"mul1": "apart"}.get(codebook, "int8") else ValueError):
            _C.trellis_rate(out, bits, codebook, way)
        return
    if way == {"mul1": "apart"}.get(codebook, "int8"):
        with pytest.raises(ValueError, match="has no such way"):
            _C.trellis_rate(out, bits, codebook, way)
        return
    _C.trellis_rate(out, bits, codebook, way)
    check(to_numpy(out), rate_reference(bits, codebook, way, 256), "f16" if way in ("pairs", "apart") else "f32")


@pytest.mark.parametrize("rows", [4, 17, 70])
@pytest.mark.parametrize(
    "kernel, without", [("trellis_gemm", ()), ("trellis_gemm_coopmat", ()), ("trellis_gemm_coopmat", ("fragments",))]
)
@pytest.mark.parametrize("layer", FEW, ids=str)
def test_gemm(
    open_device: Callable[..., _C.Device], layer: Layer, kernel: str, without: tuple[str, ...], rows: int
) -> None:
    device = open_device(without)
    skip_without(device, kernel)
    if "fp16" not in device.features and (rows != 70) != (layer.codebook == "mul1" and rows == 17):
        pytest.skip("on this device the rows make no other code")
    x = np.random.default_rng(rows).standard_normal((rows, 16 * layer.trellis.shape[0])).astype(np.float16)
    y = to_numpy(make(device, layer)(_C.tensor(device, x), dtype="f32", kernel=kernel))
    check(y, exact(layer, x), "f16" if "coopmat" in kernel else "f32")


@pytest.mark.parametrize("without", [(), ("fragments",)], ids=["fragments", "staged"])
@pytest.mark.parametrize("kernel", [f"trellis_gemv_coopmat{tuning}" for tuning in ("", "@2,1", "@1,2", "@1,8")])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 32, 64])
@pytest.mark.parametrize("layer", FEW, ids=str)
def test_gemv_on_matrices(
    open_device: Callable[..., _C.Device], layer: Layer, rows: int, kernel: str, without: tuple[str, ...]
) -> None:
    """Rows of several scales in the same matrix."""
    device = open_device(without)
    skip_without(device, kernel)
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 16 * layer.trellis.shape[0])) * 2.0 ** -(np.arange(rows)[:, None] % 4)
    x = x.astype(np.float16)
    lin = make(device, layer)
    if kernel.endswith("@1,8") and ("fragments" not in device.features or lin.bits < 2 or rows > 32):
        with pytest.raises(ValueError, match="8 groups"):  # values by way of shared memory: two groups at most
            lin(_C.tensor(device, x), dtype="f32", kernel=kernel)
        return
    y = to_numpy(lin(_C.tensor(device, x), dtype="f32", kernel=kernel))
    for row in range(rows):
        check(y[row], exact(layer, x)[row], "f16")


@pytest.mark.parametrize("without", [(), ("fragments",)], ids=["fragments", "staged"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_rate_on_matrices(open_device: Callable[..., _C.Device], layer: Layer, without: tuple[str, ...]) -> None:
    device = open_device(without)
    skip_without(device, "coopmat")
    lin = make(device, layer)
    for rows in (7, 40):
        x = np.random.default_rng(rows).standard_normal((rows, 16 * layer.trellis.shape[0])).astype(np.float16)
        expected = exact(layer, x)
        for kernel in KERNELS[2:]:
            check(to_numpy(lin(_C.tensor(device, x), dtype="f32", kernel=kernel)), expected, "f16")


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_that_were_padded(device: _C.Device, kernel: str) -> None:
    """x is extended by zeros, columns beyond n are dropped, and no neighbour is written."""
    skip_without(device, kernel)
    layer = next(layer for layer in LAYERS if layer.name == "K4_mul1_128x256")
    n, k = 201, 99
    lin = make(device, layer, n, k)
    x = np.random.default_rng(0).standard_normal((3, k)).astype(np.float16)
    out = _C.full(device, (3, n + 7), NAN_WORD, "f32")
    lin(_C.tensor(device, x), out=out, column=5, kernel=kernel)
    y = to_numpy(out)
    check(y[:, 5 : n + 5], exact(layer, x)[:, :n], "f16" if "coopmat" in kernel else precision(device))
    assert np.isnan(y[:, :5]).all() and np.isnan(y[:, n + 5 :]).all()
    check(to_numpy(lin.dequantize()), exl3.weight(decoded(layer), layer.suh, layer.svh)[:k, :n], "f32")


@pytest.mark.parametrize("kernel", KERNELS)
def test_epilogue(device: _C.Device, kernel: str) -> None:
    skip_without(device, kernel)
    layer = next(layer for layer in LAYERS if layer.name == "K3_3inst_128x128")
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((2, 128)).astype(np.float32), rng.standard_normal(128).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, 128).astype(np.float32)
    residual = rng.standard_normal((2, 128)).astype(np.float32)
    lin = make(device, layer)
    lin.set_bias(_C.tensor(device, bias))
    y = lin(
        _C.tensor(device, x),
        norm=_C.tensor(device, norm),
        activation="gelu",
        residual=_C.tensor(device, residual),
        kernel=kernel,
    )
    z = exact(layer, rms_norm(x.astype(np.float64), norm, 1e-6)[0], bias)
    check(to_numpy(y), PLAIN["gelu"](z) + residual, precision(device))


GATES = [
    *(("K3_3inst_128x128", 128, rows, dtype, "swiglu") for rows in (1, 2, 21, 70) for dtype in ("f32", "f16", "bf16")),
    *(("K3_3inst_128x128", k, rows, "f16", "swiglu") for k in (99, 120) for rows in (1, 21)),
    ("K4_mul1_128x256", 128, 1, "f16", "geglu"),
    ("K4_mul1_128x256", 128, 3, "f16", "geglu_tanh"),
    ("K4_mul1_128x256", 128, 5, "bf16", "swiglu"),
    ("K4_mul1_128x256", 97, 1, "f16", "swiglu"),
]


def takes(kernel: str | None, rows: int, dtype: str) -> bool:
    most = {"trellis_gemv": 16, "trellis_gemv_coopmat": 64}.get(kernel or "", rows)
    return rows <= most and (dtype == "f16" or "coopmat" not in (kernel or ""))


@pytest.mark.parametrize(
    ("name", "k", "rows", "dtype", "activation", "kernel"),
    [(*case, kernel) for case in GATES for kernel in (None, *KERNELS) if takes(kernel, case[2], case[3])],
)
def test_gate(device: _C.Device, name: str, k: int, rows: int, dtype: str, activation: str, kernel: str | None) -> None:
    """activation(gate) * x is what is multiplied, with a bias and a residual after it."""
    skip_without(device, kernel or "")
    matrices = kernel is not None and "coopmat" in kernel
    layer = next(layer for layer in LAYERS if layer.name == name)
    n = 16 * layer.trellis.shape[1]
    rng = np.random.default_rng(rows)
    x, gate = (tensor(device, rng.standard_normal((rows, k)), dtype) for _ in range(2))
    bias = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, n)).astype(np.float32)
    lin = make(device, layer, n, k)
    lin.set_bias(_C.tensor(device, bias))
    options: dict[str, Any] = {"activation": activation, "gate": gate, "residual": _C.tensor(device, residual)}
    y = lin(x, kernel=kernel, **options)
    wide = np.zeros((rows, 128))
    wide[:, :k] = GATED[activation](array(gate).astype(np.float64)) * array(x)
    expected = exact(layer, wide, bias) + residual
    check(to_numpy(y), expected, "f16" if matrices else precision(device, "f32" if dtype == "f32" else "f16"))
    if kernel is None and layer.codebook == "mul1" and rows <= 2:
        check(to_numpy(lin(x, activations="int8", **options)), expected, "i8")


@pytest.mark.parametrize("rows", [1, 3, 12, 21, 70])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_parts_of_vectors(device: _C.Device, dtype: str, rows: int) -> None:
    """Operands that do not begin where four elements can be loaded at once."""
    layer = next(layer for layer in LAYERS if layer.name == "K4_mul1_128x256")
    n = 16 * layer.trellis.shape[1]
    rng = np.random.default_rng(rows)
    x, residual, bias = (rng.standard_normal(count) for count in (1 + rows * 128, 1 + rows * n, 1 + n))
    lin = make(device, layer)
    lin.set_bias(tensor(device, bias)[1:])
    given = tensor(device, x, dtype)[1:].reshape(rows, 128)
    y = to_numpy(lin(given, residual=tensor(device, residual)[1:].reshape(rows, n), dtype="f32"))
    expected = exact(layer, array(given), bias[1:].astype(np.float32)) + residual[1:].astype(np.float32).reshape(
        rows, n
    )
    check(y, expected, "f16" if rows > 2 and "coopmat" in device.features else precision(device, dtype))
    scales = tensor(device, 1 + rng.random(129), "f16")[1:]
    transformed = exl3.hadamard(array(given).astype(np.float64) * array(scales))
    check(to_numpy(_C.hadamard(given, scales)), transformed, "f32")


@pytest.mark.parametrize("kernel", KERNELS)
def test_gated_products_beyond_f16(device: _C.Device, kernel: str) -> None:
    """A product of x and its gate may be larger than any f16; what comes is the largest that can be, not inf or nan."""
    skip_without(device, kernel)
    layer = next(layer for layer in LAYERS if layer.name == "K4_3inst_128x128")
    x = np.full((2, 128), 6e4, np.float16)
    y = to_numpy(
        make(device, layer)(
            _C.tensor(device, x), gate=_C.tensor(device, x), activation="swiglu", dtype="f32", kernel=kernel
        )
    )
    assert np.isfinite(y).all()
    if "coopmat" not in kernel:
        check(y, exact(layer, x.astype(np.float64) ** 2), precision(device))


def kernels_of(device: _C.Device, call: Callable[[], Any]) -> set[str]:
    """The kernel families that a call dispatches."""
    device.profile_start()
    call()
    return {str(entry["name"]).partition("[")[0].partition(".")[0] for entry in device.profile_stop()}


@pytest.mark.parametrize("name", ["K4_mul1_128x256", "K4_mcg_256x128"])
def test_fences_change_nothing(open_device: Callable[..., _C.Device], name: str) -> None:
    """Sixteen workgroups a column, read with and without an acquire (feature told): the same bits, many times."""
    if "told" not in open_device(()).features:
        pytest.skip("the device has one way only")
    layer = next(layer for layer in LAYERS if layer.name == name)
    k, n = 16 * layer.trellis.shape[0], 16 * layer.trellis.shape[1]
    down, across = 2048 // k, 1024 // n
    x = np.random.default_rng(5).standard_normal((1, 2048)).astype(np.float16)
    found = set()
    for without in ((), ("told",)):
        device = open_device(without)
        lin = _C.TrellisLinear(device, 1024, 2048, exl3.rate_of(layer.trellis), layer.codebook)
        lin.set_trellis(np.tile(layer.trellis, (down, across, 1)))
        lin.set_scales(np.tile(layer.suh, down), np.tile(layer.svh, across))
        rows = _C.tensor(device, x)
        found |= {lin(rows, dtype="f32", kernel="trellis_gemv@16").numpy().tobytes() for _ in range(50)}
    assert len(found) == 1


@pytest.mark.parametrize(
    "without", [(), ("int_dot",), ("fp16",), ("subnormals",)], ids=["all", "int_dot", "fp16", "subnormals"]
)
@pytest.mark.parametrize("name", ["K4_mul1_128x256", "K4_mcg_256x128"])
def test_kernels_that_are_taken(open_device: Callable[..., _C.Device], name: str, without: tuple[str, ...]) -> None:
    """A row goes to the kernel of decode steps: with packed dots for what they can decode, where they are fast."""
    device = open_device(without)
    layer = next(layer for layer in LAYERS if layer.name == name)
    lin = make(device, layer)
    x = _C.tensor(device, layer.x[:1])
    norm = _C.full(device, (x.shape[1],), 1)
    can = layer.codebook == "mul1" and {"fp16", "int_dot", "subnormals"} <= set(device.features)
    can = can and device.info()["subgroup_min"] >= 8
    half, single = {"trellis_gemv_dot" if can else "trellis_gemv"}, {"trellis_gemv"}
    assert kernels_of(device, lambda: lin(x, dtype="f32")) == half
    wide = x.astype("f32")
    assert kernels_of(device, lambda: lin(wide, norm=norm)) == half  # rounded behind the norm
    assert kernels_of(device, lambda: lin(wide)) == single
    if layer.codebook == "mul1":
        assert kernels_of(device, lambda: lin(x, activations="int8")) == half
    assert "trellis_dequantize" in kernels_of(device, lin.inner)
    assert "trellis_pack" in kernels_of(device, lin.read_trellis)


def test_int8_activations(device: _C.Device) -> None:
    layer = next(layer for layer in LAYERS if layer.name == "K4_mul1_128x256")
    lin = make(device, layer)
    y = to_numpy(lin(_C.tensor(device, layer.x[:1]), dtype="f32", activations="int8"))
    expected = exact(layer, layer.x[:1])
    check(y, expected, "i8")
    assert nmse(y, expected) > 1e-7  # they are in 8 bits indeed
    other = make(device, next(layer for layer in LAYERS if layer.name == "K4_mcg_256x128"))
    with pytest.raises(ValueError, match="mul1"):
        other(_C.full(device, (1, 256)), activations="int8")


@pytest.mark.parametrize("scale", [6e4, 1e-6])
@pytest.mark.parametrize("kernel", KERNELS)
def test_activations_of_any_size(device: _C.Device, kernel: str, scale: float) -> None:
    """Large finite f16 activations stay finite and small ones keep their precision."""
    skip_without(device, kernel)
    layer = next(layer for layer in LAYERS if layer.name == "K4_3inst_128x128")
    x = (np.sign(layer.x[:1]) * scale).astype(np.float16)
    y = to_numpy(make(device, layer)(_C.tensor(device, x), dtype="f32", kernel=kernel))
    if scale < 1 and "coopmat" in kernel:
        assert np.isfinite(y).all()  # f16 operands have no exponents for these
    else:
        check(y, exact(layer, x), "f16" if "coopmat" in kernel else precision(device))


def test_hadamard_is_that_of_the_original(device: _C.Device) -> None:
    for layer in LAYERS[:3]:
        x, suh = _C.tensor(device, layer.x), _C.tensor(device, layer.suh)
        check(to_numpy(_C.hadamard(x, suh, "f16")), layer.x_had, "exact")
        check(to_numpy(_C.hadamard(x)), exl3.hadamard(layer.x.astype(np.float64)), "f32")
    with pytest.raises(ValueError, match="128"):
        _C.hadamard(_C.full(device, (2, 100)))


def test_captured(device: _C.Device) -> None:
    """A captured product, split over workgroups, replayed."""
    layer = next(layer for layer in LAYERS if layer.name == "K2_mcg_256x128")
    lin, x = make(device, layer), _C.tensor(device, layer.x[:1])
    out = _C.empty(device, (1, 128), "f32")
    with device.capture() as program:
        lin(x, out=out, kernel="trellis_gemv@2")
    for _ in range(3):
        out.write(np.zeros((1, 128), np.float32))
        program.replay()
        check(to_numpy(out), exact(layer, layer.x[:1]), precision(device))


def test_from_arrays(device: _C.Device) -> None:
    layer = next(layer for layer in LAYERS if layer.name == "K2p5_mul1_256x128")
    bias = np.linspace(-1, 1, 128, dtype=np.float32)
    lin = ml.TrellisLinear.from_arrays(layer.trellis, layer.suh, layer.svh, bias=bias, device=device.index)
    assert (lin.shape, lin.bits, lin.codebook) == ((256, 128), 2.5, "mul1")
    assert "2.5 bits" in repr(lin) and "2.5 bits" in lin._repr_html_()
    x = layer.x.reshape(2, 2, 256).astype(np.float32)
    y = lin(x)
    assert (y.shape, y.dtype) == ((2, 2, 128), "f32")
    check(y.numpy().reshape(4, 128), exact(layer, layer.x, bias), "f32")
    assert np.array_equal(lin.inner().numpy(), decoded(layer))
    assert lin.dequantize("f16").shape == (256, 128)


def test_packed_signs(device: _C.Device) -> None:
    layer = LAYERS[0]
    rng = np.random.default_rng(2)
    su, sv = (rng.integers(-(1 << 15), 1 << 15, size, np.int16) for size in (8, 8))
    lin = ml.TrellisLinear.from_arrays(layer.trellis, su, sv, layer.codebook, device=device.index)
    expected = exl3.forward(layer.x, decoded(layer), exl3.signs(su), exl3.signs(sv))
    check(lin(layer.x.astype(np.float32)).numpy(), expected, "f32")


def bad(**changes: Any) -> dict[str, Any]:
    good = {
        "trellis": np.zeros((8, 8, 64), np.int16),
        "suh": np.ones(128, np.float16),
        "svh": np.ones(128, np.float16),
    }
    return good | changes


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (bad(trellis=np.zeros((8, 8, 64), np.float32)), TypeError, "trellis must be int16"),
        (bad(trellis=np.zeros((8, 64), np.int16)), ValueError, "trellis must be"),
        (bad(trellis=np.zeros((7, 8, 64), np.int16)), ValueError, "multiples of 128"),
        (bad(trellis=np.zeros((0, 8, 64), np.int16)), ValueError, "trellis must be"),
        (bad(trellis=np.zeros((8, 8, 144), np.int16)), ValueError, "144 words"),
        (bad(trellis=np.zeros((8, 8, 8), np.int16)), ValueError, "8 words"),
        (bad(trellis=np.zeros((8, 8, 24), np.int16), codebook="mcg"), ValueError, "1.5 with mcg"),
        (bad(codebook="mul2"), ValueError, "codebook must be"),
        (bad(suh=np.ones(127, np.float16)), ValueError, "suh must be"),
        (bad(svh=np.ones(256, np.float16)), ValueError, "svh must be"),
        (bad(suh=np.ones(128, np.float32)), TypeError, "suh must be"),
        (bad(suh=np.full(128, np.nan, np.float16)), ValueError, "suh of channel 0 is inf or nan"),
        (bad(svh=np.full(128, np.inf, np.float16)), ValueError, "svh of channel 0 is inf or nan"),
        (bad(bias=np.ones(3, np.float32)), ValueError, "bias must be"),
        (bad(codebok="mcg"), TypeError, "codebook"),
    ],
)
def test_bad_arrays(device: _C.Device, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ml.TrellisLinear.from_arrays(device=device.index, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": (2, 127)}, ValueError, "x must be"),
        ({"norm": (127,)}, ValueError, "norm must be"),
        ({"residual": (2, 9)}, ValueError, "residual must be"),
        ({"out": (2, 100)}, ValueError, "out must have 128 columns"),
        ({"out": (2, 130), "column": 3}, ValueError, "from column 3"),
        ({"gate": (2, 128)}, ValueError, "gate"),
        ({"activation": "swiglu"}, ValueError, "gate"),
        ({"activation": "swiglu", "gate": (2, 64)}, ValueError, "gate must be"),
        ({"activation": "swiglu", "gate": (3, 128)}, ValueError, "gate must be"),
        ({"activation": "swiglu", "gate": (2, 128), "norm": (128,)}, ValueError, "takes no norm"),
        ({"activation": "tanh"}, ValueError, "tanh"),
        ({"activations": "int4"}, ValueError, "int4"),
        ({"kernel": "gemv"}, ValueError, "gemv"),
        ({"kernel": "trellis_gemv@1,3"}, ValueError, "cannot be tuned"),
        ({"kernel": "trellis_gemv", "x": (17, 128)}, ValueError, "at most 16"),
    ],
)
def test_bad_calls(device: _C.Device, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    lin = _C.TrellisLinear(device, 128, 128, 4, "mul1")
    given = {name: _C.full(device, value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    x = given.pop("x", _C.full(device, (2, 128)))
    with pytest.raises(error, match=text):
        lin(x, **given)


@pytest.mark.parametrize("kernel", ["trellis_gemv", "trellis_gemm"])
def test_out_over_inputs(device: _C.Device, kernel: str) -> None:
    """The residual may be the very memory of out; nothing else may share it."""
    layer = next(layer for layer in LAYERS if layer.name == "K2_mcg_256x128")
    lin, x = make(device, layer), _C.tensor(device, layer.x[:2].astype(np.float32))
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)
    out = _C.tensor(device, values)
    expected = lin(x, residual=_C.tensor(device, values), kernel=kernel).tobytes()
    assert lin(x, residual=out, out=out, kernel=kernel).tobytes() == expected
    memory = _C.full(device, (8, 128))
    over: dict[str, dict[str, Any]] = {
        "x": {"x": memory[:4].reshape(2, 256)},
        "norm": {"norm": memory[3:5].reshape(256)},
        "residual": {"residual": memory[2:4]},
        "gate": {"gate": memory[4:8].reshape(2, 256), "activation": "swiglu"},
    }
    for name, options in over.items():
        with pytest.raises(ValueError, match=f"share memory with {name}"):
            lin(options.pop("x", x), **options, out=memory[3:5], kernel=kernel)


@pytest.mark.parametrize("bits", [0.5, 4.5, 9, 1.25, float("nan")])
def test_bad_bits(device: _C.Device, bits: float) -> None:
    with pytest.raises(ValueError, match="bits"):
        _C.TrellisLinear(device, 128, 128, bits)


def test_wrong_bytes(device: _C.Device) -> None:
    lin = _C.TrellisLinear(device, 100, 128, 4)
    with pytest.raises(ValueError, match="8192 bytes, got 8000"):
        lin.set_trellis(bytes(8000))
    with pytest.raises(ValueError, match="svh must be"):
        lin.set_scales(bytes(256), bytes(200))
