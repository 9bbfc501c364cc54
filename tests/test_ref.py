"""The references themselves: against published vectors and formulas written another way."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cases import ATTENTION_CASES, FORMAT_CASES, MATMUL_CASES, ROWS_CASES, SAMPLE_CASES
from tests.ref import attention, embedding, matmul, mla, norm, rope, sample
from tests.tolerance import check

RNG = np.random.default_rng(0)


def test_philox_vectors() -> None:
    """Random123's kat_vectors for philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones, ones, ones, ones), (ones, ones), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, expected in vectors:
        words = sample.philox4x32(counter, key)
        assert " ".join(f"{word:08x}" for word in words) == expected


def test_uniform() -> None:
    draws = np.array([sample.uniform(2**40 + 7, i) for i in range(4000)])
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.02
    assert len(np.unique(draws)) > 3990
    assert sample.uniform(1, 0) != sample.uniform(2**32 + 1, 0) != sample.uniform(1, 1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_complex_product(interleaved: bool) -> None:
    x, positions = RNG.standard_normal((3, 2, 12)), np.array([0, 5, 1000])
    freq = (10000.0 ** -np.linspace(0, 1, 4)).astype(np.float32)
    y = rope.rope(x, positions, freq, scale=1.5, interleaved=interleaved)
    first, second = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    turn = 1.5 * np.exp(1j * (positions[:, None].astype(np.float32) * freq).astype(np.float64))[:, None]
    z = (x[..., first] + 1j * x[..., second]) * turn
    np.testing.assert_allclose(y[..., first] + 1j * y[..., second], z, atol=1e-12)
    np.testing.assert_array_equal(y[..., 8:], x[..., 8:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_mla_absorbed_is_mla_expanded(interleaved: bool) -> None:
    heads, nope, v_dim, rank, rope_dim, rows = 3, 8, 12, 16, 4, 4
    positions, slots = np.array([0, 5, -1, 9]), np.array([1, 0, 0, 1])
    freq = (10000.0 ** -np.linspace(0, 1, rope_dim // 2)).astype(np.float32)
    q, kv = RNG.standard_normal((rows, heads * (nope + rope_dim))), RNG.standard_normal((20, rank + rope_dim))
    kv_b, norms = RNG.standard_normal((heads * (nope + v_dim), rank)), RNG.uniform(0.5, 1.5, rank)
    turn = {"scale": 1.1, "interleaved": interleaved}
    cache = mla.mla_latent(kv, norms, np.tile(np.arange(10), 2), freq, **turn).reshape(2, 10, -1)
    np.testing.assert_allclose((cache[..., :rank] ** 2 / norms**2).mean(-1), 1, rtol=1e-4)
    absorbed = mla.mla_query(q, kv_b, positions, freq, heads=heads, **turn)
    latent = mla.mla_decode(absorbed, cache, positions, slots, rank=rank, softmax_scale=0.3)
    y = mla.mla_value(latent, kv_b, nope)
    wanted = mla.mla_expanded(q, kv_b, cache, positions, slots, freq, heads=heads, softmax_scale=0.3, **turn)
    assert wanted.shape == (rows, heads * v_dim) and not wanted[2].any() and wanted[3].all()
    np.testing.assert_allclose(y, wanted, rtol=1e-11, atol=1e-12)


def test_rope_block_writes_the_cache() -> None:
    qkv, freq = RNG.standard_normal((3, (4 + 2 * 2) * 8)), np.ones(4, np.float32)
    k, v = np.zeros((2, 10, 2, 8)), np.zeros((2, 10, 2, 8))
    ones = np.ones(8)
    q = rope.rope_block(qkv, k, v, np.array([3, -1, 9]), np.array([1, 0, 0]), freq, heads=4, k_norm=ones)
    np.testing.assert_array_equal(v[1, 3].ravel(), qkv[0, 48:])
    np.testing.assert_allclose((k[0, 9] ** 2).mean(-1), 1, rtol=1e-5)  # rotation keeps the norm
    assert not q[1].any() and np.count_nonzero(v.any((2, 3))) == 2


def test_attention_is_softmax() -> None:
    k, v = RNG.standard_normal((2, 2, 20, 2, 16))
    q, positions, slots = (
        RNG.standard_normal((3, 6, 16)),
        np.array([19, 0, -1]),
        np.array([1, 0, 1]),
    )
    y = attention.attention(q, k, v, positions, slots)
    scores = np.einsum("hd,thd->ht", q[0], np.repeat(k[1], 3, axis=1)) / 4
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(y[0], np.einsum("ht,thd->hd", p, np.repeat(v[1], 3, axis=1)))
    np.testing.assert_allclose(y[1], np.repeat(v[0, 0], 3, axis=0))  # one position: its value
    assert not y[2].any()


def test_linear() -> None:
    x, w, bias = RNG.standard_normal((3, 8)), RNG.standard_normal((6, 8)), RNG.standard_normal(6)
    y = matmul.linear(x, w, bias=bias)
    np.testing.assert_allclose(y, x @ w.T + bias)
    gated = matmul.linear(x, w, bias=bias, activation="swiglu", residual=np.ones((3, 3)))
    np.testing.assert_allclose(gated, y[:, ::2] / (1 + np.exp(-y[:, ::2])) * y[:, 1::2] + 1)
    np.testing.assert_allclose(matmul.silu(np.array([-1000.0, 0, 1000])), [0, 0, 1000])
    # torch.nn.functional.gelu(1.0), exact and tanh
    np.testing.assert_allclose(matmul.gelu(np.ones(1)), 0.8413447460685429)
    np.testing.assert_allclose(matmul.gelu_tanh(np.ones(1)), 0.8411919906082768)
    normed, total = norm.rms_norm(x, np.full(8, 2.0), 0.0, residual=x)
    np.testing.assert_allclose((normed**2).mean(1), 4)
    np.testing.assert_array_equal(total, 2 * x)
    with pytest.raises(ValueError, match="relu"):
        matmul.linear(x, w, activation="relu")


def test_embedding() -> None:
    table = np.arange(6).reshape(3, 2)
    assert embedding.embedding(table, np.array([2, 0, 5, -1])).tolist() == [
        [4, 5],
        [0, 1],
        [4, 5],
        [0, 1],
    ]
    assert embedding.embedding(table, np.zeros(0, int)).shape == (0, 2)


def test_filters() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    kept = lambda **options: sample.sample(logits, **options).kept.tolist()  # noqa: E731
    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3] and kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.5) == [1, 3] and kept(top_p=0.71) == [1, 2, 3] and kept(top_p=0.0) == [1]
    assert kept(min_p=0.6) == [1, 3] and kept(min_p=1.0) == [1]
    assert kept(top_k=2, top_p=0.5) == [1]  # 0.4 of the 0.7 left is more than half
    assert kept(bias={0: 100.0}, min_p=0.5) == [0]
    assert sample.sample(np.zeros(5), temperature=0).token == 0
    assert sample.sample(np.zeros(5), top_k=2).kept.tolist() == [0, 1]
    assert sample.sample(logits, temperature=0, seen=[1, 1, 3], repetition_penalty=3).token == 2
    for bad in (np.nan, np.inf):
        assert sample.sample(np.array([0, bad])).token == -1
    assert sample.sample(np.full(3, -np.inf)).token == -1


def test_draws_follow_the_distribution() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        draws = [sample.sample(np.log(p), seed=5, draw=i) for i in range(3000)]
    counts = np.bincount([d.token for d in draws], minlength=4) / 3000
    assert np.abs(counts - p).max() < 0.03 and counts[1] == 0
    np.testing.assert_allclose(draws[0].logprob, np.log(p[draws[0].token]))


def test_sample_cases() -> None:
    """Every case draws a token that its filters kept, or says that it cannot."""
    for case in SAMPLE_CASES:
        drawn = sample.sample(
            case.logits(),
            seed=case.seed,
            temperature=case.temperature,
            top_k=case.top_k,
            top_p=case.top_p,
            min_p=case.min_p,
        )
        assert (drawn.token in drawn.kept) == (case.kind not in ("nan", "inf")), case


def test_ids_are_unique() -> None:
    for cases in (FORMAT_CASES, MATMUL_CASES, ATTENTION_CASES, ROWS_CASES, SAMPLE_CASES):
        ids = [str(case) for case in cases]
        assert len(set(ids)) == len(ids), sorted(i for i in ids if ids.count(i) > 1)


def test_tolerance() -> None:
    e = np.array([1.0, -2.0, np.nan, np.inf])
    check(e, e)
    check(e, e, "exact")
    check(np.zeros((0, 3)), np.zeros((0, 3)))
    near = e + np.array([1e-4, 0, 0, 0])
    check(near, e)
    with pytest.raises(
        AssertionError,
        match=r"gemv: NMSE .* over 1e-10 \(f32\); worst at \[0\]: 1.0001, expected 1;",
    ):
        check(near, e, "f32", what="gemv")
    with pytest.raises(AssertionError, match=r"nan in other places: 1 of 4 differ, first at \[2\]"):
        check(np.array([1.0, -2.0, 0.0, np.inf]), e)
    with pytest.raises(AssertionError, match="inf in other places"):
        check(np.array([1.0, -2.0, np.nan, -np.inf]), e)
    with pytest.raises(AssertionError, match=r"1 of 4 differ, first at \[1\]: -2.5, expected -2.0"):
        check(np.array([1.0, -2.5, np.nan, np.inf]), e, "exact")
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(4,\)"):
        check(np.zeros(2), e)
    with pytest.raises(AssertionError, match="NMSE inf"):
        check(np.array([1e-9]), np.zeros(1))
