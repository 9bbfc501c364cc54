"""Faults in the middle of real work: the k-th allocation, the k-th submission, memory short by any amount."""

from __future__ import annotations

import gc
import json
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import device_row
from test_model import TINY, weights_of

import marlin as ml
from marlin.loaders import safetensors

IDS = [3, 100, 7, 7, 42]
COUNTERS = ("device_used", "host_used")  # reserved slabs stay for reuse


@pytest.fixture
def own_devices(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ml.Device]:
    """A function that gives the device of marlin.Device(), opened for this test alone; again after a loss."""
    monkeypatch.setattr("marlin.device._opened", {})
    return lambda: ml.Device(device_row()["index"])  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One layer, dense f16 in a file; small, so that it can be loaded hundreds of times."""
    config = TINY | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.save(tmp_path / "model.safetensors", weights_of(config))
    return tmp_path


def work(path: Path, device: ml.Device) -> tuple[Any, ...]:
    """Everything that takes memory or submits work, and what came out."""
    with ml.Model.load(path, device=device, format="int4:32", context=32, slots=1) as model:
        made = model.generate(IDS, max_tokens=3, temperature=0, ignore_eos=True).tokens
        streamed = [chunk.token for chunk in model.stream(IDS, max_tokens=3, temperature=0, ignore_eos=True)]
        return made, streamed, model.logits(IDS).tobytes()


def outcome(call: Callable[[], Any]) -> tuple[type[BaseException] | None, str]:
    """The type and text of what a call raises, the exception itself (and all that its frames hold) let go."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def test_every_host_allocation_may_fail(checkpoint: Path, own_devices: Callable[[], ml.Device]) -> None:
    """MemoryError wherever the k-th buffer cannot be made; all is given back and the same model works after it."""
    device = own_devices()
    expected = work(checkpoint, device)
    before = device.memory()
    failed = 0
    while True:
        device.raw.inject("host", failed + 1)
        kind, text = outcome(lambda: work(checkpoint, device))
        device.raw.inject("host", 0)
        device.sync()
        after = device.memory()
        assert [after[key] for key in COUNTERS] == [before[key] for key in COUNTERS], failed + 1
        if kind is None:
            break
        assert (kind, "memory" in text) == (MemoryError, True), failed + 1
        failed += 1
    assert failed > 30
    assert work(checkpoint, device) == expected


def test_every_device_allocation_may_fail(own_devices: Callable[[], ml.Device]) -> None:
    """Caches larger than a slab, so that each is an allocation of its own: DeviceOutOfMemory with the plan."""
    config = TINY | {"max_position_embeddings": 1 << 20, "num_hidden_layers": 2}
    device = own_devices()

    def load() -> None:
        # 4 caches of 96 MiB that nothing is ever written to
        ml.Model.random(config, device=device, context=3 << 18, slots=2).close()

    load()
    before = device.memory()
    for k in range(1, 5):
        device.raw.inject("memory", k)
        with pytest.raises(ml.DeviceOutOfMemory, match="no room for 100663296 bytes of device memory") as caught:
            load()
        assert caught.value.plan.kv == 4 * (96 << 20)  # type: ignore[attr-defined]
        del caught
        gc.collect()
        assert device.memory()["device_used"] == before["device_used"]
        assert device.memory()["device_reserved"] == before["device_reserved"]
    device.raw.inject("memory", 5)
    load()
    device.raw.inject("memory", 0)


def test_loss_at_each_submission(checkpoint: Path, own_devices: Callable[[], ml.Device]) -> None:
    """DeviceLostError from whatever call waits next; the device goes with its last object, and a new one works."""
    expected = work(checkpoint, own_devices())
    lost = 0
    while True:
        device = own_devices()
        device.raw.inject("lost", lost + 1)
        kind, text = outcome(lambda device=device: work(checkpoint, device))  # type: ignore[misc]
        if kind is None:
            break
        assert kind is ml.DeviceLostError and "lost" in text, (lost + 1, kind, text)
        assert device.raw.lost and own_devices() != device
        raw = weakref.ref(device.raw)
        del device
        gc.collect()
        assert raw() is None, f"something of the device lost at submission {lost + 1} is kept"
        lost += 1
    assert lost >= 4
    device.raw.inject("lost", 0)
    assert work(checkpoint, own_devices()) == expected


def test_model_of_a_lost_device(checkpoint: Path, own_devices: Callable[[], ml.Device]) -> None:
    """Each call says what happened, in a stream as elsewhere; closing and showing still work."""
    model = ml.Model.load(checkpoint, device=own_devices(), context=32, slots=1)
    stream = model.stream(IDS, max_tokens=20, ignore_eos=True)
    next(stream)
    model.device.raw.inject("lost", 1)
    with pytest.raises(ml.DeviceLostError):
        list(stream)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: model.generate(IDS),
        lambda: next(model.stream(IDS)),
        lambda: model.logits(IDS),
        lambda: model.score(IDS),
        lambda: model.perplexity(IDS, stride=4),
        lambda: model.bench(prompt=(4,), gen=(2,)),
        lambda: model.trace(IDS),
    )
    for call in calls:
        with pytest.raises(ml.DeviceLostError):
            call()
    assert model.name in repr(model) and "<table>" in model._repr_html_()
    model.close()
    assert model.closed
    with ml.Model.load(checkpoint, device=own_devices(), context=32, slots=1) as again:
        assert len(again.generate(IDS, max_tokens=2, ignore_eos=True).tokens) == 2


def test_memory_short_by_any_amount(checkpoint: Path, own_devices: Callable[[], ml.Device]) -> None:
    """20 limits from nothing to enough: a refusal with the plan before anything is taken, or a model that works."""
    device = own_devices()
    whole = ml.plan(checkpoint, slots=2, context=64).total
    work(checkpoint, device)
    before = device.memory()["device_used"]
    loaded = 0
    for step in range(1, 21):
        limit = whole * step // 20
        try:
            with ml.Model.load(checkpoint, device=device, slots=2, context=64, memory_limit=limit) as model:
                assert model.memory.total <= limit
                loaded += 1
        except ml.DeviceOutOfMemory as error:
            plan = error.plan  # type: ignore[attr-defined]
            assert plan.budget == limit < plan.total == whole
        assert device.memory()["device_used"] == before
    assert loaded == 1


# ---- damaged files -------------------------------------------------------------------------------------------------


def cuts(data: bytes) -> Iterator[bytes]:
    """A file cut short at each byte of its header's end, and at 60 places anywhere."""
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(5)
    for end in (0, 7, 8, header - 1, header, header + 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))):
        yield data[:end]


def flips(data: bytes) -> Iterator[bytes]:
    """One bit turned: 100 times in the header, 100 in the numbers."""
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(6)
    for begin, end in ((0, header), (header, len(data))):
        for _ in range(100):
            changed = bytearray(data)
            changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
            yield bytes(changed)


def test_truncated_weights(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    for data in cuts(file.read_bytes()):
        file.write_bytes(data)
        with pytest.raises(ml.ModelFormatError, match=r"model\.safetensors"):
            ml.Model.load(checkpoint, slots=1)


def test_flipped_bits(checkpoint: Path, own_devices: Callable[[], ml.Device]) -> None:
    """A header with a wrong bit is refused, or says the same (in its padding); a wrong weight is a number or is
    found: loading with verify=True then gives finite logits."""
    device, file = own_devices(), checkpoint / "model.safetensors"
    before, outcomes = device.memory()["device_used"], set()
    for data in flips(file.read_bytes()):
        file.write_bytes(data)
        try:
            with ml.Model.load(checkpoint, device=device, slots=1, verify=True) as model:
                assert np.isfinite(model.logits(IDS)).all()
            outcomes.add("loaded")
        except ml.MarlinError as error:
            assert not isinstance(error, ml.DeviceError), error
            outcomes.add(type(error).__name__)
    assert outcomes >= {"loaded", "ModelFormatError"}
    assert device.memory()["device_used"] == before
