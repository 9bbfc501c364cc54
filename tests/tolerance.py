"""How near a kernel must come to its reference: the policy, stated once.

Exact (`narrowest="exact"`): decoding, routing ids, page tables, argmax, seeded sampling, copies.
Otherwise the normalised mean square error, sum((actual - expected)^2) / sum(expected^2), is
bounded by the narrowest type on the way: of the operands as multiplied, the accumulator and the
output. References dequantize the same bytes, so the bound measures the kernel and not the weight
format. The bound is that of one matrix product: where several meet in a result (a mixture: gate, up, down), their
errors, which have nothing to do with each other, add up as squares do, and the bound is so many times as large.
Infinities (with their signs) and NaNs must be in the same places; a zero reference must be
met by zeros.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NMSE: Final = {
    "f32": 1e-10,
    # A chain of 16 f16 products errs by 3.7e-7: a rounding is 0.18 * 2^-22 of the square of the partial sum (steps of
    # 2^-10 from a power of two to the next), and the squares of 16 partial sums are 8.5 times that of the last one.
    "f16": 1e-6,
    "bf16": 1e-5,
    "i8": 5e-4,  # activations in 8 bits
}


def nmse(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Sum of squared errors over the sum of squares of `expected`; both finite. 0 / 0 is 0."""
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error, power = float(np.square(a - e).sum()), float(np.square(e).sum())
    return error / power if power else (0.0 if error == 0 else np.inf)


def check(actual: Any, expected: Any, narrowest: str = "f16", *, products: int = 1, what: str = "") -> None:
    """Raise AssertionError with the worst element unless `actual` meets `expected` under the
    policy.

    narrowest is a key of NMSE or "exact"; products: how many matrix products meet in `actual`; `what` is put before the
    message.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    prefix = f"{what}: " if what else ""
    assert a.shape == e.shape, f"{prefix}shape {a.shape}, expected {e.shape}"
    if narrowest == "exact":
        same = a == e
        if a.dtype.kind == "f":
            same |= np.isnan(a) & np.isnan(e)
        assert same.all(), f"{prefix}{_first(~same, a, e)} (must be exact)"
        return
    if narrowest not in NMSE:
        raise ValueError(f"narrowest must be exact or one of {', '.join(NMSE)}, got {narrowest!r}")
    a, e = a.astype(np.float64), e.astype(np.float64)
    for name, test in (("nan", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
        wrong = test(a) != test(e)
        assert not wrong.any(), f"{prefix}{name} in other places: {_first(wrong, a, e)}"
    finite = np.isfinite(e)
    error = nmse(a[finite], e[finite])
    bound = products * NMSE[narrowest]
    if error > bound:
        distance = np.full(e.shape, -1.0)
        distance[finite] = np.abs(a[finite] - e[finite])
        worst = np.unravel_index(int(distance.argmax()), distance.shape)
        place = ", ".join(map(str, worst))
        raise AssertionError(
            f"{prefix}NMSE {error:.3g} is over {bound:.0e} ({narrowest}); "
            f"worst at [{place}]: {a[worst]:.8g}, expected {e[worst]:.8g}; shape {a.shape}"
        )


def _first(wrong: NDArray[np.bool_], a: NDArray[Any], e: NDArray[Any]) -> str:
    index = tuple(np.argwhere(wrong)[0])
    place = ", ".join(map(str, index))
    count = f"{int(wrong.sum())} of {wrong.size} differ"
    return f"{count}, first at [{place}]: {a[index]!s}, expected {e[index]!s}"
