"""marlin/formats.py against references and ml_dtypes; the shaders' arithmetic in NumPy."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin import formats
from tests.cases import FORMAT_CASES, FormatCase
from tests.ref import formats as ref
from tests.ref import quantize

ROOT = Path(__file__).parent.parent
SMALL = {
    "e4m3": (formats.E4M3, ref.e4m3, ml_dtypes.float8_e4m3fn),
    "e5m2": (formats.E5M2, ref.e5m2, ml_dtypes.float8_e5m2),
    "e2m1": (formats.E2M1, ref.e2m1, ml_dtypes.float4_e2m1fn),
}


def rows_of_def() -> dict[str, list[str]]:
    text = (ROOT / "csrc/formats.def").read_text()
    rows = re.findall(r'^FORMAT\((.*), "[^"]*"\)$', text, re.MULTILINE)
    return {row.split(", ")[0]: row.split(", ")[1:] for row in rows}


def unpacked(packed: formats.Packed) -> np.ndarray:
    """The reference's answer for the same bytes."""
    planes = (
        {}
        if packed.scale is None
        else {
            "scale": ref.scales(packed.scale, packed.scale_type or "", packed.global_scale),
            "group": packed.group,
        }
    )
    if packed.zero is not None:
        planes["zero"] = packed.zero
    return ref.UNPACK[packed.format](packed.quant, packed.k, **planes)


def test_tables_agree() -> None:
    rows = rows_of_def()
    assert list(rows) and set(rows) == set(formats.FORMATS) == set(ref.UNPACK)
    assert {p.stem for p in (ROOT / "shaders/formats").glob("*.glsl")} == set(rows)
    for name, (bits, _, scales, zero, group) in rows.items():
        row = formats.FORMATS[name]
        assert (row.bits, row.zero, row.default_group) == (int(bits), zero == "1", int(group)), name
        assert "|".join(row.scales).upper() == scales.replace("NONE", ""), name


@pytest.mark.parametrize("name", SMALL)
def test_small_floats_match_ml_dtypes(name: str) -> None:
    number, scalar, dtype = SMALL[name]
    codes = np.arange(2 * number.sign, dtype=np.uint8)
    golden = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(np.array([scalar(int(c)) for c in codes], np.float32), golden)
    valid = (codes & (number.sign - 1)) <= number.largest
    np.testing.assert_array_equal(number.values()[valid], golden[valid])
    finite = np.sort(golden[valid])
    x = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, np.random.default_rng(1).standard_normal(20000)])
    x = x.astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9)), x * np.float32(2.0**-12)])
    x = x[np.abs(x) <= finite[-1]]
    np.testing.assert_array_equal(number.encode(x, x), x.astype(dtype).view(np.uint8))
    assert number.encode(np.float32([1e30, -1e30]), np.float32([1, -1])).tolist() == [
        number.largest,
        number.largest | number.sign,
    ]


def test_e8m0_matches_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    golden = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(ref.scales(codes[None], "e8m0")[0], golden)
    packed = formats.Packed("fp4_e2m1", 256 * 32, np.full((1, 4096), 0x22, np.uint8), codes[None], None, 32, "e8m0")
    np.testing.assert_array_equal(formats.unpack(packed)[0, ::32], golden)


@pytest.mark.parametrize("case", FORMAT_CASES, ids=str)
def test_pack_and_unpack(case: FormatCase) -> None:
    w = case.weights()
    packed = formats.pack(w, case.format, group=case.group, zero=case.zero, scale=case.scale or "f16")
    assert packed.quant.shape == (
        case.n,
        formats.row_bytes(case.format, case.k),
    ) and packed.shape == (case.n, case.k)
    if packed.scale is not None:
        assert packed.scale.shape == (case.n, formats.group_count(case.k, packed.group))
    out = formats.unpack(packed)
    np.testing.assert_array_equal(out, unpacked(packed))

    # Rounding errs by half a step of the code at most, and by what rounding the scale itself adds.
    group = packed.group or case.k
    peak = np.stack([np.abs(w[:, i : i + group]).max(1) for i in range(0, case.k, group)], 1)
    peak = np.repeat(peak, group, 1)[:, : case.k]
    step = {
        "f32": 0,
        "f16": 2**-11,
        "bf16": 2**-8,
        "int8": 0.51 / 127,
        "int4": 0.51 / 7,
        "fp8_e4m3": 2**-4,
        "fp8_e5m2": 2**-3,
        "fp4_e2m1": 0.26,
    }[case.format]
    if case.zero:
        step *= 1.6  # 2 * largest + 1 steps span the range, and the zero point is rounded too
    assert (np.abs(out - w) <= step * peak + 1e-7).all()


def test_requantizing_changes_nothing() -> None:
    """What a format can hold comes back bit for bit: checkpoints may be repacked."""
    rng = np.random.default_rng(2)
    for name in ("int8", "int4", "fp8_e4m3", "fp8_e5m2"):
        once = formats.unpack(formats.pack(rng.standard_normal((7, 96)), name, group=32, scale="f32"))
        np.testing.assert_allclose(formats.unpack(formats.pack(once, name, group=32, scale="f32")), once, rtol=3e-7)


@pytest.mark.parametrize("case", [c for c in FORMAT_CASES if c.scale and c.n], ids=str)
def test_pack_matches_reference(case: FormatCase) -> None:
    """The same bytes as trying every code for every weight."""
    group, zero = case.group or 0, case.zero
    for weights in (case.weights(), case.weights() * np.float32(2.0**-20)):
        packed = formats.pack(weights, case.format, group=group, zero=zero, scale=case.scale or "")
        quant, scale, points = quantize.quantize(
            weights,
            case.format,
            group=group,
            scale=case.scale or "",
            zero=zero,
            global_scale=packed.global_scale,
        )
        np.testing.assert_array_equal(packed.scale, scale)
        np.testing.assert_array_equal(packed.quant, quant)
        if zero:
            np.testing.assert_array_equal(packed.zero, points)


def test_exact_bytes() -> None:
    """The layout, spelled out."""
    w = np.float32([[-7, -6, -1, 0, 1, 2, 6, 7]]) / 8
    packed = formats.pack(w, "int4", group=16)
    assert packed.scale is not None and packed.scale.tolist() == [[0.125]]
    assert packed.quant[0, :4].tolist() == [0x21, 0x87, 0xA9, 0xFE] and (packed.quant[0, 4:] == 0x88).all()
    assert packed.quant.shape == (1, 64) and packed.nbytes == 66
    packed = formats.pack(np.float32([[-6, 5, -1, 0, 1, 1.7, 4.9, 3]]), "fp4_e2m1", group=0)
    assert packed.quant[0, :4].tolist() == [0x6F, 0x0A, 0x32, 0x56]
    packed = formats.pack(np.float32([[-1, 1, 0.5, 0]]), "int8")
    assert packed.quant[0, :5].tolist() == [1, 255, 192, 128, 128]
    packed = formats.pack(np.float32([[0, 15, 3, 7]]), "int4", group=16, zero=True)
    assert packed.zero is not None and packed.zero.tolist() == [[0]] and packed.quant[0, :2].tolist() == [0xF0, 0x73]
    packed = formats.pack(np.float32([[6, -3, 0.5, 0]]), "fp4_e2m1", scale="e8m0")
    assert (
        packed.scale is not None and packed.scale.tolist() == [[127]] and packed.quant[0, :2].tolist() == [0xD7, 0x01]
    )
    packed = formats.pack(np.float32([[448 * 6, 6] + [0] * 14 + [6, 3]]), "fp4_e2m1", scale="e4m3")
    assert packed.scale is not None and packed.scale.tolist() == [[0x7E, 0x38]] and packed.global_scale == 1
    assert packed.quant[0, :10].tolist() == [0x07] + [0] * 7 + [0x57, 0]


def test_all_zero_groups() -> None:
    for case in FORMAT_CASES:
        w = np.zeros((case.n, case.k), np.float32)
        packed = formats.pack(w, case.format, group=case.group, zero=case.zero, scale=case.scale or "f16")
        assert (formats.unpack(packed) == 0).all(), case
        if packed.scale is not None and packed.scale_type != "e8m0":
            assert (packed.scale == 0).all(), case


@pytest.mark.parametrize("name", formats.FORMATS)
def test_bad_weights_are_named(name: str) -> None:
    w = np.ones((4, 40), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        w[2, 33] = value
        with pytest.raises(ValueError, match=r"weights\[2, 33\]"):
            formats.pack(w, name)
    with pytest.raises(TypeError, match="int64"):
        formats.pack(np.ones((2, 2), np.int64), name)
    for shape in ((3,), (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="k at least 1"):
            formats.pack(np.zeros(shape, np.float32), name)


def test_bad_arguments() -> None:
    w = np.ones((2, 32), np.float32)
    for match, format, options in [
        ("unknown weight format 'int5'; known are f32", "int5", {}),
        ("group must be", "int4", {"group": 48}),
        ("takes scales of f16, f32, got 'e8m0'", "int4", {"scale": "e8m0"}),
        ("no zero points", "fp4_e2m1", {"zero": True}),
        ("no groups", "bf16", {"group": 32}),
        ("global_scale", "int4", {"global_scale": 2.0}),
        ("global_scale", "fp4_e2m1", {"scale": "e4m3", "global_scale": 0.0}),
    ]:
        with pytest.raises(ValueError, match=match):
            formats.pack(w, format, **options)
    with pytest.raises(ValueError, match=r"weights\[1, 2\] = 70000.0 is too large for f16"):
        formats.pack(np.float32([[1, 1, 1], [1, 1, 70000]]), "f16")
    with pytest.raises(ValueError, match="row 1, group 0 is too large for f16"):
        formats.pack(np.float32([[1], [1e6]]), "int4")


def test_reciprocal() -> None:
    x = np.exp2(np.random.default_rng(3).uniform(-120, 100, 100000)).astype(np.float32)
    error = np.abs(formats.reciprocal(x).astype(np.float64) * x - 1)
    assert error.max() < 2.0**-23
    powers = np.ldexp(np.float32(1), np.arange(-126, 100))
    np.testing.assert_array_equal(formats.reciprocal(powers) * powers, 1)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_weights(data: st.DataObject) -> None:
    """Any finite weights give finite numbers of the same signs, for every format."""
    case = data.draw(st.sampled_from(FORMAT_CASES))
    exponent = data.draw(st.integers(-140, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    w = (rng.standard_normal((3, case.k)) * 2.0**exponent * (rng.random((3, case.k)) < 0.7)).astype(np.float32)
    out = formats.unpack(formats.pack(w, case.format, group=case.group, zero=case.zero, scale=case.scale or "f16"))
    assert np.isfinite(out).all() and (out * w >= 0).all()


# ---- the shaders' arithmetic ----
# The expressions of shaders/formats/*.glsl, operation by operation, with the flush of subnormals
# that devices are free to do. Every code must come out exact.


def flush(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def halves(bits: np.ndarray) -> np.ndarray:
    return flush(np.stack([bits & 0xFFFF, bits >> 16], -1).astype(np.uint16).view(np.float16))


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 32, bits)
    return (codes.reshape(-1, 32 // bits).astype(np.uint64) << shifts.astype(np.uint64)).sum(1).astype(np.uint32)


def test_int4_f16() -> None:
    q = np.random.default_rng(4).permutation(np.arange(4096) % 16)
    word = words(q, 4)
    for z in (8, 0, 15, 3):
        half = np.float16
        low, sixteenth = half(1024) + half(z), half(64) + half(z)
        for i, pair in enumerate(
            [
                halves(word & 0x000F000F | 0x64006400) - low,
                halves(word & 0x00F000F0 | 0x64006400) * half(0.0625) - sixteenth,
                halves(word >> 8 & 0x000F000F | 0x64006400) - low,
                halves(word >> 8 & 0x00F000F0 | 0x64006400) * half(0.0625) - sixteenth,
            ]
        ):
            np.testing.assert_array_equal(pair, q.reshape(-1, 8)[:, [i, i + 4]] - z)


def test_int8_f16() -> None:
    q = np.random.default_rng(5).permutation(np.arange(4096) % 256)
    word = words(q, 8)
    for z in (128, 0, 255, 7):
        bias = np.float16(1024) + np.float16(z)
        for i in range(2):
            pair = halves(word >> 8 * i & 0x00FF00FF | 0x64006400) - bias
            np.testing.assert_array_equal(pair, q.reshape(-1, 4)[:, [i, i + 2]] - z)


def mini(x: np.ndarray, dtype: type, shift: int, mask: int, bias: int, edge: float, sign: int) -> np.ndarray:
    """fmt_e4m3x2 and fmt_e2m1x2: min(a, 2a - edge), signed. x holds the code at the top."""
    unsigned = np.uint16 if dtype is np.float16 else np.uint32
    a = flush((((x >> shift) & mask) + bias).astype(unsigned).view(dtype))
    a = flush(np.minimum(a, flush(a * dtype(2) - dtype(edge))))
    return (a.view(unsigned) | (x & sign).astype(unsigned)).view(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_small_floats_without_subnormals(dtype: type) -> None:
    e4m3, e2m1 = np.arange(256, dtype=np.uint32), np.arange(16, dtype=np.uint32)
    if dtype is np.float16:
        eight = mini(e4m3 << 8, dtype, 1, 0x3F80, 0x2000, 2.0**-6, 0x8000)
        four = mini(e2m1 << 12, dtype, 3, 0x0E00, 0x3800, 1.0, 0x8000)
    else:
        eight = mini(e4m3 << 24, dtype, 4, 0x07F00000, 0x3C000000, 2.0**-6, 0x80000000)
        four = mini(e2m1 << 28, dtype, 6, 0x01C00000, 0x3F000000, 1.0, 0x80000000)
    numbers = (e4m3 & 127) != 127
    np.testing.assert_array_equal(eight[numbers], [ref.e4m3(int(c)) for c in e4m3[numbers]])
    np.testing.assert_array_equal(np.abs(eight[~numbers]), 480)
    np.testing.assert_array_equal(four, [ref.e2m1(int(c)) for c in e2m1])


def test_e5m2_is_half_of_f16() -> None:
    codes = np.arange(256, dtype=np.uint16)
    np.testing.assert_array_equal((codes << 8).view(np.float16), [ref.e5m2(int(c)) for c in codes])
