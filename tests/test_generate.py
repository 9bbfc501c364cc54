"""Generation: lengths, stops, seeds, batches, streams, cancellation."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marlin as ml
from marlin import bench

LLAMA = Path(__file__).resolve().parent.parent / "models" / "fix-llama"
PROMPT = "Once upon a time there was a little girl who"


@pytest.fixture(scope="module")
def model() -> Iterator[ml.Model]:
    with ml.Model.load(LLAMA, slots=3, context=96) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def greedy(model: ml.Model) -> ml.Generation:
    return model.generate(PROMPT, max_tokens=24, temperature=0)


# ---- lengths and stops -------------------------------------------------------------------------------------------


def test_greedy(model: ml.Model, greedy: ml.Generation) -> None:
    assert len(greedy.tokens) == 24
    assert greedy.finish_reason == "length"
    assert str(greedy) == greedy.text == model.tokenizer.decode(greedy.prompt_tokens + greedy.tokens)[len(PROMPT) :]
    assert greedy.stats.prompt_tokens == len(greedy.prompt_tokens)
    assert 0 < greedy.stats.first_token_s <= greedy.stats.total_s
    assert greedy.stats.tokens_per_s > 0
    assert greedy.text[:10] in greedy._repr_html_().replace("&quot;", '"')


def test_token_ids_in(model: ml.Model, greedy: ml.Generation) -> None:
    for prompt in (greedy.prompt_tokens, np.array(greedy.prompt_tokens), tuple(greedy.prompt_tokens)):
        assert model.generate(prompt, max_tokens=24, temperature=0).tokens == greedy.tokens


def test_one_token_prompt(model: ml.Model) -> None:
    assert len(model.generate([5], max_tokens=3, temperature=0).tokens) == 3


def test_no_tokens(model: ml.Model) -> None:
    out = model.generate(PROMPT, max_tokens=0, echo=True)
    assert (out.text, out.tokens, out.finish_reason) == (PROMPT, [], "length")


def test_echo(model: ml.Model, greedy: ml.Generation) -> None:
    assert model.generate(PROMPT, max_tokens=24, temperature=0, echo=True).text == PROMPT + greedy.text


def test_stop_string(model: ml.Model, greedy: ml.Generation) -> None:
    words = greedy.text.split(" ")
    stop = " " + words[4]
    out = model.generate(PROMPT, max_tokens=24, temperature=0, stop=stop)
    assert out.finish_reason == "stop"
    assert out.text == greedy.text[: greedy.text.find(stop)]
    assert len(out.tokens) < 24
    again = model.generate(PROMPT, max_tokens=24, temperature=0)  # the slot is free and clean
    assert again.tokens == greedy.tokens


def test_stop_id(model: ml.Model, greedy: ml.Generation) -> None:
    id = greedy.tokens[6]
    first = greedy.tokens.index(id)
    out = model.generate(PROMPT, max_tokens=24, temperature=0, stop=[id, "never there"])
    assert out.finish_reason == "stop"
    assert out.tokens == greedy.tokens[: first + 1]
    assert out.text == model.tokenizer.decode(greedy.prompt_tokens + greedy.tokens[:first])[len(PROMPT) :]


def test_more_stop_ids_than_the_device_keeps(model: ml.Model, greedy: ml.Generation) -> None:
    unused = [id for id in range(4000, 4060) if id not in greedy.tokens][:30]
    out = model.generate(PROMPT, max_tokens=24, temperature=0, stop=[*unused, greedy.tokens[5]])
    assert out.finish_reason == "stop"
    assert out.tokens == greedy.tokens[: greedy.tokens.index(greedy.tokens[5]) + 1]


def test_context_full(model: ml.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    out = model.generate(ids, max_tokens=1000, temperature=0, ignore_eos=True)
    assert out.finish_reason == "length"
    assert len(ids) + len(out.tokens) == model.context + 1  # the last one drawn is never an input
    full = model.generate([7] * model.context, max_tokens=5)
    assert (len(full.tokens), full.finish_reason) == (1, "length")


def test_prompt_too_long(model: ml.Model) -> None:
    with pytest.raises(ValueError, match="97 tokens, more than the context of 96"):
        model.generate([7] * 97)


def test_timeout(model: ml.Model) -> None:
    out = model.generate(PROMPT, max_tokens=80, ignore_eos=True, timeout=0.02)
    assert out.finish_reason == "timeout"
    assert len(out.tokens) < 80


# ---- sampling ----------------------------------------------------------------------------------------------------


def test_seeds(model: ml.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    a = model.generate(PROMPT, seed=1, **options)
    assert a.seed == 1
    assert model.generate(PROMPT, seed=1, **options).tokens == a.tokens
    assert model.generate(PROMPT, seed=2, **options).tokens != a.tokens
    drawn = model.generate(PROMPT, **options)
    assert model.generate(PROMPT, seed=drawn.seed, **options).tokens == drawn.tokens


def test_several_continuations(model: ml.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
    several = model.generate(PROMPT, n=2, seed=10, **options)
    assert [out.seed for out in several] == [10, 11]
    alone = [model.generate(PROMPT, seed=seed, **options).tokens for seed in (10, 11)]
    assert [out.tokens for out in several] == alone
    assert np.shape(model.generate([PROMPT, "He"], n=2, max_tokens=1)) == (2, 2)


def test_params_and_defaults(model: ml.Model) -> None:
    params = ml.SamplingParams(max_tokens=5, temperature=0, seed=3)
    assert len(model.generate(PROMPT, params).tokens) == 5
    assert len(model.generate(PROMPT, params, max_tokens=2).tokens) == 2
    filled = ml.SamplingParams().filled(model.config.generation)
    assert (filled.temperature, filled.top_k, filled.top_p) == (0.8, 40, 0.95)  # generation_config.json


def test_logprobs(model: ml.Model, greedy: ml.Generation) -> None:
    out = model.generate(PROMPT, max_tokens=4, temperature=0, logprobs=3)
    assert out.tokens == greedy.tokens[:4]
    score = model.score(out.prompt_tokens + out.tokens)
    for entry, expected in zip(out.logprobs, score.logprobs[-4:], strict=True):
        assert entry.logprob == pytest.approx(expected, abs=0.02)
        assert entry.top[0] == (entry.token, pytest.approx(entry.logprob))
        assert len(entry.top) == 3
    assert greedy.logprobs is None


def test_logit_bias_and_penalty(model: ml.Model, greedy: ml.Generation) -> None:
    banned = greedy.tokens[0]
    out = model.generate(PROMPT, max_tokens=8, temperature=0, logit_bias={banned: -np.inf})
    assert banned not in out.tokens
    forced = model.generate(PROMPT, max_tokens=3, temperature=0, logit_bias={77: 1000.0})
    assert forced.tokens == [77, 77, 77]
    penal = model.generate([77, 78], max_tokens=1, temperature=0, repetition_penalty=1000.0, logit_bias={77: 30.0})
    assert penal.tokens != [77]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be 0 to"),
        ({"temperature": float("nan")}, ValueError, "temperature must be"),
        ({"top_p": 1.5}, ValueError, "top_p must be 0 to 1"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be 0 to"),
        ({"max_tokens": True}, TypeError, "max_tokens must be an integer"),
        ({"n": 0}, ValueError, "n must be 1 to 64"),
        ({"seed": 1 << 64}, ValueError, "seed must be"),
        ({"logprobs": 21}, ValueError, "logprobs must be 0 to 20"),
        ({"stop": ""}, ValueError, "stop: strings have 1 to"),
        ({"stop": [1.5]}, TypeError, "stop must be an integer"),
        ({"logit_bias": {5: float("inf")}}, ValueError, "logit_bias"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0"),
        ({"temprature": 1}, TypeError, "unknown keyword 'temprature'; did you mean 'temperature'"),
    ],
)
def test_wrong_parameters(model: ml.Model, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        model.generate(PROMPT, **options)


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        ("", ValueError, "prompt is empty"),
        ([4096], ValueError, "token id 4096 is not in 0 .. 4095"),
        ([-1], ValueError, "token id -1"),
        ([[1.5]], TypeError, "a prompt is text or a list of token ids"),
        (["good", ""], ValueError, "prompt is empty"),
        ("\ud800", ValueError, "surrogate"),
    ],
)
def test_wrong_prompts(model: ml.Model, prompt: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        model.generate(prompt, max_tokens=2)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_list_in_list_out(model: ml.Model, greedy: ml.Generation) -> None:
    """Five prompts for three slots, each the same as alone."""
    prompts = [PROMPT, "He", '"Where are we going?"', [5, 6, 7], "The king"]
    alone = [model.generate(prompt, max_tokens=10, temperature=0).tokens for prompt in prompts]
    together = model.generate(prompts, max_tokens=10, temperature=0)
    assert [out.tokens for out in together] == alone
    assert model.generate([], max_tokens=3) == []
    assert [out.tokens for out in model.generate([PROMPT], max_tokens=10, temperature=0)] == alone[:1]


def test_bounds_grow() -> None:
    """A short generation captures the first bound; a longer one another, and both give the same text."""
    with ml.Model.load(LLAMA, slots=1) as model:
        short = model.generate(PROMPT, max_tokens=8, temperature=0)
        assert [bound for bound, _ in model._engine._programs[1]] == [512]
        long = model.generate([*short.prompt_tokens] * 52, max_tokens=4, temperature=0)
        assert [bound for bound, _ in model._engine._programs[1]] == [512, 1024]
        assert len(long.tokens) == 4
        assert model.generate(PROMPT, max_tokens=8, temperature=0).tokens == short.tokens


# ---- streams, threads, Ctrl-C ------------------------------------------------------------------------------------


def test_stream_is_generate(model: ml.Model, greedy: ml.Generation) -> None:
    stream = model.stream(PROMPT, max_tokens=24, temperature=0)
    chunks = list(stream)
    assert [chunk.token for chunk in chunks] == greedy.tokens
    assert "".join(chunk.text for chunk in chunks) == greedy.text
    assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert stream.result.tokens == greedy.tokens


def test_leaving_a_stream(model: ml.Model, greedy: ml.Generation) -> None:
    for chunk in model.stream(PROMPT, max_tokens=24, temperature=0):
        if chunk.stats.tokens == 3:
            break
    assert model.generate(PROMPT, max_tokens=24, temperature=0).tokens == greedy.tokens
    with model.stream(PROMPT, max_tokens=24) as stream:
        next(stream)
        with pytest.raises(ml.MarlinError, match="a stream of this model is open in this thread"):
            model.generate(PROMPT)
        stream.close()
        assert stream.result.finish_reason == "cancelled"
        assert list(stream) == []
    assert model.generate(PROMPT, max_tokens=24, temperature=0).tokens == greedy.tokens


def test_stream_takes_one_prompt(model: ml.Model) -> None:
    with pytest.raises(ValueError, match="n must be 1"):
        model.stream(PROMPT, ml.SamplingParams(n=2))
    with pytest.raises(ValueError, match="more than the context"):
        model.stream([1] * 200)  # told at once, not at the first token


def test_threads_take_turns(model: ml.Model, greedy: ml.Generation) -> None:
    results: list[list[int]] = []

    def work() -> None:
        for _ in range(3):
            results.append(model.generate(PROMPT, max_tokens=24, temperature=0).tokens)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [greedy.tokens] * 12


def test_interrupt(model: ml.Model, greedy: ml.Generation) -> None:
    """Ctrl-C ends a generation within a step or so and leaves the model as it was."""
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    timer.start()
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        while time.perf_counter() - begin < 30:
            model.generate(PROMPT, max_tokens=80, ignore_eos=True)
    timer.join()
    assert time.perf_counter() - begin < 5
    assert model.generate(PROMPT, max_tokens=24, temperature=0).tokens == greedy.tokens


def test_dropped_model_frees_its_memory() -> None:
    model = ml.Model.load(LLAMA, slots=1, context=64)
    device = model.device
    model.generate(PROMPT, max_tokens=2)
    used = device.memory()["device_used"]
    del model
    assert device.memory()["device_used"] < used - (2 << 20)


def test_closing_with_an_open_stream() -> None:
    with ml.Model.load(LLAMA, slots=1, context=64) as model:
        stream = model.stream(PROMPT)
        next(stream)
    assert model.closed
    assert list(stream) == []


# ---- chat --------------------------------------------------------------------------------------------------------


def test_chat(model: ml.Model) -> None:
    messages = [{"role": "user", "content": "Tell me a story."}]
    reply = model.chat(messages, max_tokens=8, temperature=0)
    assert reply.prompt_tokens == model.chat_ids(messages)
    assert len(reply.tokens) <= 8
    chunks = model.chat(messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.text for chunk in chunks) == reply.text
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        model.chat(messages, max_token=8)


def test_session_keeps_its_cache(model: ml.Model) -> None:
    session = model.session(system="Be brief.", max_tokens=6, temperature=0)
    first = session.say("Hi")
    assert first.stats.cached_tokens == 0
    second = session.say("And again")
    assert second.stats.cached_tokens > len(first.prompt_tokens) - 2
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]
    fresh = model.chat(session.messages[:-1], max_tokens=6, temperature=0)
    assert fresh.tokens == second.tokens


def test_scripts_need_no_guard(tmp_path: Path) -> None:
    """Templates render in a child process that must not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import marlin as ml\n"
        "print('once')\n"
        f"model = ml.Model.load({str(LLAMA)!r}, slots=1, context=64, progress=False)\n"
        "print(len(model.chat([{'role': 'user', 'content': 'Hi'}], max_tokens=2, ignore_eos=True).tokens))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.split() == ["once", "2"], run.stderr


# ---- bench -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spent", "runs"), [((9.0, 0.05, 0.05, 0.2), 4), ((9.0, 0.5), 2), ((0.03,) * 40, 8)])
def test_warm_up(monkeypatch: pytest.MonkeyPatch, spent: tuple[float, ...], runs: int) -> None:
    """The first run, which compiles, does not count."""
    now, left = 0.0, list(spent)

    def run() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    bench.warm_up(run)
    assert len(spent) - len(left) == runs


def test_bench(model: ml.Model) -> None:
    result = model.bench(prompt=(8,), gen=(4,), depth=(0, 16), batch=(1, 2), repeat=2, with_profile=True)
    assert [row.name for row in result.rows] == [
        "pp8", "tg4", "tg4 b2", "pp8 @ d16", "tg4 @ d16", "tg4 b2 @ d16",
    ]  # fmt: skip
    assert all(row.tokens_per_s > 0 for row in result.rows)
    for entries in (result.profile, result.prefill_profile):
        assert sum(entry["calls"] for entry in entries) > 10
        assert {"name", "calls", "us", "gb_per_s", "tflop_per_s"} == set(entries[0])
    # Of 8 tokens at once, not of a step of 2 slots: matrices of the same size have other products.
    assert {entry["name"] for entry in result.profile} != {entry["name"] for entry in result.prefill_profile}
    assert max(entry["tflop_per_s"] for entry in result.prefill_profile) > 0
    assert not model.bench(prompt=(), gen=(4,), repeat=1, with_profile=True).prefill_profile
    assert "tg4 b2" in repr(result)
    assert "<table>" in result._repr_html_()
    assert result.to_dict()["rows"][0]["name"] == "pp8"
    with pytest.raises(ValueError, match="does not fit the context of 96"):
        model.bench(prompt=(96,))
    with pytest.raises(ValueError, match="batch must be 1 to 3"):
        model.bench(batch=(4,))
