"""A model in a process: forks, Ctrl-C, the end of the interpreter, and many models one after another."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from conftest import device_row
from test_model import TINY

import marlin as ml
from marlin import _C

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "models" / "fix-llama"
PROMPT = "Once upon a time there was a little girl who"
LOAD = f"import marlin as ml\nmodel = ml.Model.load({str(LLAMA)!r}, slots=1, context=512, progress=False)\n"


@pytest.fixture(scope="module")
def model() -> Iterator[ml.Model]:
    with ml.Model.load(LLAMA, slots=2, context=64) as loaded:
        yield loaded


def tokens(model: ml.Model) -> list[int]:
    return model.generate(PROMPT, max_tokens=8, temperature=0).tokens


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# ---- forks -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_with_a_model(model: ml.Model) -> None:
    """In the child every use is a DeviceError that says so, and dropping the model does no harm; the parent goes on."""
    expected = tokens(model)
    child = os.fork()
    if child == 0:
        told = 0
        for call in (
            lambda: tokens(model),
            lambda: next(model.stream(PROMPT)),
            lambda: model.logits([1, 2]),
            lambda: ml.Model.load(LLAMA, device=model.device),
        ):
            try:
                call()
            except ml.DeviceLostError:
                pass
            except ml.DeviceError as error:
                told += "fork" in str(error)
        model.close()
        gc.collect()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert tokens(model) == expected


# ---- threads -----------------------------------------------------------------------------------------------------


def test_threads_mix_their_calls(model: ml.Model) -> None:
    """Streams, generations and logits of one model from four threads: each waits its turn and gets its own answer."""
    expected, rows = tokens(model), model.logits([5, 6, 7]).tobytes()
    failures: list[BaseException] = []

    def streams() -> None:
        found = [chunk.token for chunk in model.stream(PROMPT, max_tokens=8, temperature=0)]
        assert found == expected

    def leaves() -> None:
        with model.stream(PROMPT, max_tokens=8, temperature=0) as stream:
            assert next(stream).token == expected[0]

    def generates() -> None:
        assert tokens(model) == expected

    def asks() -> None:
        assert model.logits([5, 6, 7]).tobytes() == rows

    def repeat(call: object) -> None:
        try:
            for _ in range(4):
                call()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in (streams, leaves, generates, asks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_closing_while_another_thread_waits() -> None:
    """close() lets the call in progress finish; those that waited learn that the model is closed."""
    model = ml.Model.load(LLAMA, slots=1, context=64)
    begun = threading.Event()
    ends: list[object] = []

    def use() -> None:
        try:
            reasons = []
            for chunk in model.stream(PROMPT, max_tokens=20, temperature=0, ignore_eos=True):
                begun.set()
                reasons.append(chunk.finish_reason)
            ends.append(reasons[-1])
            while True:  # the lock may come to this thread before it comes to close()
                model.generate(PROMPT, max_tokens=1)
        except ml.MarlinError as error:
            ends.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    assert begun.wait(60)
    model.close()
    thread.join(60)
    assert model.closed and ends == ["length", "the model fix-llama is closed"]


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import signal, sys
ids = [7] * 500
want = model.generate(ids[:9], max_tokens=6, temperature=0).tokens
used = model.device.memory()["device_used"]
def load():
    while True: ml.Model.load(PATH, device=model.device, format="int4", slots=1, context=64, progress=False)
def prefill():
    while True: model.logits(ids)
def decode():
    while True: model.generate(ids[:9], max_tokens=400, ignore_eos=True)
def stream():
    while True:
        for chunk in model.stream(ids[:9], max_tokens=400, ignore_eos=True): pass
for stage in (load, prefill, decode, stream):
    print(stage.__name__, flush=True)
    try:
        stage()
    except KeyboardInterrupt:
        same = model.generate(ids[:9], max_tokens=6, temperature=0).tokens == want
        print("usable" if same else "wrong", flush=True)
print(model.device.memory()["device_used"] <= used + (1 << 20), flush=True)
"""


def test_interrupted_in_every_stage() -> None:
    """SIGINT while loading, in prefill, in decode, in a stream: KeyboardInterrupt soon, and the model is usable in the
    very handler of it."""
    child = start(LOAD + INTERRUPTED.replace("PATH", repr(str(LLAMA))))
    assert child.stdout is not None
    try:
        for stage in ("load", "prefill", "decode", "stream"):
            assert child.stdout.readline().strip() == stage, child.communicate(timeout=10)[1]
            time.sleep(0.4)
            begin = time.perf_counter()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline().strip() == "usable", child.communicate(timeout=10)[1]
            assert time.perf_counter() - begin < 10
        assert child.stdout.readline().strip() == "True"
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.communicate()


class Interrupter:
    """Raises KeyboardInterrupt once, at a place where it did not before and where Python would run a signal handler: a
    function of marlin or contextlib is entered, or a C function called there returns."""

    def __init__(self) -> None:
        self.places: set[tuple[str, int, int]] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or not (f"{os.sep}marlin{os.sep}" in file or file == contextlib.__file__):
            return
        place = (file, frame.f_code.co_firstlineno, frame.f_lasti)
        if place not in self.places:
            self.places.add(place)
            sys.setprofile(None)
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in generators that end
@pytest.mark.parametrize("name", ["generate", "stream", "logits"])
def test_interrupted_at_every_place(name: str) -> None:
    """Wherever in our Python Ctrl-C falls, the model is usable in the handler: no lock taken, no slot lost."""
    ids, options = [7] * 3, {"max_tokens": 2, "temperature": 0, "ignore_eos": True}
    with ml.Model.random(TINY, slots=1, context=32) as model:

        def call() -> object:
            if name == "generate":
                return model.generate(ids, **options).tokens
            if name == "stream":
                return [chunk.token for chunk in model.stream(ids, **options)]
            return model.logits(ids).tobytes()

        expected, interrupter = call(), Interrupter()
        while True:
            try:
                sys.setprofile(interrupter)
                call()
                break
            except KeyboardInterrupt:
                assert call() == expected
            finally:
                sys.setprofile(None)
        assert len(interrupter.places) > 20


def test_interrupted_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step for a longer context that could not be captured is captured the next time."""
    with ml.Model.load(LLAMA, slots=1, context=640) as model:
        engine = model._open_engine()
        capture = engine._capture
        for failing in (512, 640):

            def interrupted(state: _C.StepState, bound: int, failing: int = failing) -> _C.Program:
                if bound == failing:
                    raise KeyboardInterrupt
                return capture(state, bound)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(engine, "_capture", interrupted)
                model.generate([7] * 600, max_tokens=2)
        out = model.generate([7] * 600, max_tokens=2, ignore_eos=True)
        assert len(out.tokens) == 2


# ---- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "stream = model.stream('Once', max_tokens=300, ignore_eos=True); next(stream)",
        "import threading\n"
        "def run():\n"
        "    while True: model.generate('Once', max_tokens=100)\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "model.generate('Once', max_tokens=3)",
        "import atexit; atexit.register(lambda: print(model.generate('Once', max_tokens=2) and 'late'))",
        "model.self = model; ml.keep = model; t = ml.tensor([1, 2])\n"
        "views = [t.raw[:1], t.raw.__dlpack__(), t.numpy()]\n"
        "if 'host_visible' in model.device.features: views.append(memoryview(t.raw))",
    ],
    ids=["stream", "daemon-thread", "atexit", "cycle-and-views"],
)
def test_end_of_the_interpreter(code: str) -> None:
    """A model alive at exit, a stream half-read, work in flight: exit status 0 and nothing on stderr."""
    child = start(LOAD + code)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert out.strip() == ("late" if "atexit" in code else "")


# ---- many --------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.skipif("MARLIN_SANITIZE" in os.environ, reason="the sanitizer keeps what is freed")
def test_models_come_and_go() -> None:
    """Memory does not grow with the number of models loaded, used, left half-used and dropped."""

    def use(i: int) -> None:
        model = ml.Model.load(LLAMA, slots=1, context=64, progress=False)
        if i % 3 == 0:
            next(model.stream([1, 2, 3], max_tokens=20, ignore_eos=True))
        else:
            model.logits([1, 2, 3])
        if i % 2:
            model.close()

    device = ml.Device()
    for i in range(4):
        use(i)
    gc.collect()
    device.sync()
    before, start = device.memory(), resident()
    for i in range(16):
        use(i)
    gc.collect()
    device.sync()
    after = device.memory()
    for key in ("device_used", "host_used", "device_reserved", "host_reserved"):
        assert after[key] == before[key], key
    assert resident() - start < 24 << 20  # models kept would be 3 MiB each on the device and as much in the tokenizer


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_devices_come_and_go() -> None:
    """An opened device that is dropped gives its slabs back."""

    def use() -> None:
        device = _C.Device(device_row()["index"])
        _C.full(device, (1 << 20,), 7).astype("f16").tobytes()

    for _ in range(3):
        use()
    start = resident()
    for _ in range(15):
        use()
    assert resident() - start < 60 << 20  # each has a slab of 64 MiB, of which 6 MiB were touched
