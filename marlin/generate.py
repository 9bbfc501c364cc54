"""From prompts to text: the slots of a model, its captured steps, and the loop that feeds and reads them.

    prompt ids --prefill, in chunks--> cache of a slot --admit--> Generator (C) --pump--> ids --> text

Python does nothing per token but turn ids into text; steps run ahead on the device meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from marlin import _C, html
from marlin.config import ModelConfig
from marlin.detokenize import Detokenizer
from marlin.errors import MarlinError
from marlin.memory import chunk_rows
from marlin.models.base import CausalLM, Run
from marlin.sampling import STOP_IDS, SamplingParams
from marlin.tensors import upload
from marlin.tokenizer import Tokenizer

FIRST_BOUND: Final = 512  # positions that the smallest captured step reaches; each further one reaches 4 times as far


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a drawn token, and (id, log-probability) of the likeliest ones."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class GenerationStats:
    """Counts of tokens and seconds of one continuation. cached: prompt tokens whose cache was still there;
    drafted, accepted: of speculation."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first; 0 when there were fewer than two."""
        spent = self.total_s - self.first_token_s
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens, {self.tokens_per_s:.1f} tokens/s, first token after {self.first_token_s:.3f} s, "
            f"prompt of {self.prompt_tokens} tokens ({self.cached_tokens} cached)"
        )


@dataclass(frozen=True)
class Chunk:
    """One token of a stream. `text` may be empty while a character or a possible stop string is incomplete."""

    text: str
    token: int
    logprob: float
    finish_reason: str | None
    stats: GenerationStats

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Generation:
    """A finished continuation; str() gives its text.

    tokens: all that were drawn, an end token included, which text leaves out. finish_reason: "stop" (end token or
    stop string), "length" (max_tokens, or the context is full), "timeout".
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stats: GenerationStats
    prompt_tokens: list[int] = field(repr=False)
    seed: int
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return html.text(self.text) + html.table([(self.finish_reason, str(self.stats))])


class Engine:
    """The slots of a network on a device: a shared cache, prefill, and captured decode steps.

    A decode step is captured for a number of slots B (1, 2, 4, ... slots) and a bound on positions (512, 2048,
    8192, ... context), when first needed: B decides the shapes, the bound how many workgroups attention starts.
    The cache is one for all, so programs of every B and bound read the same slots. Not thread-safe: the lock of
    Model guards it.
    """

    def __init__(
        self,
        network: CausalLM,
        config: ModelConfig,
        device: _C.Device,
        *,
        context: int,
        slots: int,
        kv: str,
        dtype: str,
    ) -> None:
        self.network, self.config, self.device = network, config, device
        self.context, self.slots = context, slots
        self.dtype = "f16" if dtype == "int8" else dtype  # between kernels
        self.chunk = chunk_rows(device.kind)
        latent = config.latent
        self.cache = _C.KVCache(
            device, layers=config.cache_layers, slots=slots, context=context, dtype=kv,
            kv_heads=1 if latent else config.kv_heads, dim=latent.row if latent else config.head_dim,
            rank=latent.rank if latent else 0,
        )  # fmt: skip
        delta = config.delta
        self.state = None if delta is None or not any(delta.linear) else _C.DeltaState(
            device, layers=sum(delta.linear), slots=slots, key_heads=delta.key_heads, value_heads=delta.value_heads,
            key_dim=delta.key_dim, value_dim=delta.value_dim, taps=delta.taps,
        )  # fmt: skip
        self.kept: dict[int, list[int]] = {}  # ids that a slot still remembers: its keys and values, or its state
        self._states: dict[int, _C.StepState] = {}
        self._programs: dict[int, list[tuple[int, _C.Program]]] = {}
        self._generators: dict[int, _C.Generator] = {}

    def forward(self, ids: Sequence[int], *, slot: int = 0, start: int = 0) -> _C.Tensor:
        """Hidden states (rows, hidden) f32 of consecutive tokens of a slot, whose cache they extend."""
        rows = len(ids)
        self.kept.pop(slot, None)
        run = Run(
            cache=self.cache,
            positions=upload(np.arange(start, start + rows, dtype=np.int32), self.device),
            slots=upload(np.full(rows, slot, np.int32), self.device),
            bound=start + rows,
            dtype=self.dtype,
            sequence=True,
            state=self.state,
        )
        return self.network(upload(np.asarray(ids, np.int32), self.device), run)

    def prefill(self, slot: int, ids: Sequence[int], *, reuse: bool = False) -> int:
        """Put ids into the cache of a slot; returns how many were there already (with `reuse`).

        A state has no positions to go back to: it serves ids that go on where it stands, and no others.
        """
        kept = self.kept.pop(slot, [])
        start = shared_prefix(kept, ids) if reuse else 0
        if self.state is not None and start < len(kept):
            start = 0
        for first in range(start, len(ids), self.chunk):
            self.forward(ids[first : first + self.chunk], slot=slot, start=first)
            if first + self.chunk < len(ids):
                self.device.sync()  # bounded work in flight: Ctrl-C is answered within two chunks
        return start

    def decode_once(self, token: int, position: int, slots: int) -> _C.Tensor:
        """Logits (slots, vocab) of one decode step run without a capture, the same token in every slot."""
        self.kept.clear()
        run = Run(
            cache=self.cache,
            positions=upload(np.full(slots, position, np.int32), self.device),
            slots=upload(np.arange(slots, dtype=np.int32), self.device),
            bound=position + 1,
            dtype=self.dtype,
            state=self.state,
        )
        return self.network.logits(self.network(upload(np.full(slots, token, np.int32), self.device), run))

    def generator(self, sequences: int, need: int) -> tuple[_C.Generator, int]:
        """A generator with all slots idle for so many sequences at once and positions below `need`; and its slots."""
        count = min(self.slots, 1 << (sequences - 1).bit_length())
        state = self._states.get(count)
        if state is None:
            state = self._states[count] = _C.StepState(self.device, count, self.config.vocab_size)
        programs = list(self._programs.get(count, ()))
        captured = len(programs)
        while not programs or programs[-1][0] < need:
            bound = min(self.context, programs[-1][0] * 4 if programs else FIRST_BOUND)
            programs.append((bound, self._capture(state, bound)))
        if captured < len(programs):
            # Kept only when all are there: a capture may fail, or be interrupted.
            generator = _C.Generator(state, programs)
            self._programs[count], self._generators[count] = programs, generator
        generator = self._generators[count]
        for slot in range(count):  # what an interrupted call has left running, perhaps by another generator
            generator.release(slot)
        return generator, count

    def compile_beside(self, rows: int) -> threading.Thread | None:
        """Compile the kernels of a prefill of so many rows in a thread, beside those of the first decode step.

        Drivers compile one pipeline a thread, and a first run needs twenty. None where there is nothing to gain.
        """
        if self._programs or rows < 1:
            return None
        thread = threading.Thread(target=self._compile_prefill, args=(rows,), name="marlin-compile")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            return None
        return thread

    def _compile_prefill(self, rows: int) -> None:
        # Recorded, never run. What fails here fails in the prefill itself, where it is told.
        with contextlib.suppress(MarlinError, MemoryError):
            ids, positions, slots = (_C.full(self.device, (rows,), 0, "i32") for _ in range(3))
            run = Run(self.cache, positions, slots, rows, self.dtype, sequence=True, state=self.state)
            with self.device.capture():
                self.network(ids, run)

    def _capture(self, state: _C.StepState, bound: int) -> _C.Program:
        run = Run(self.cache, state.positions, state.slot_ids, bound, self.dtype, state=self.state)
        with self.device.capture() as program:
            hidden = self.network(state.tokens, run)
            _C.sample(self.network.logits(hidden), state)
        return program


class Continuation:
    """One continuation in the making."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        config: ModelConfig,
        context: int,
    ) -> None:
        self.index, self.prompt, self.params = index, prompt, params
        self.seed = params.seed or 0
        self.limit = min(len(prompt) - 1 + params.max_tokens, context)
        self.stop_ids = tuple(dict.fromkeys([*params.stop_ids, *(() if params.ignore_eos else config.eos_ids)]))
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: str | None = "length" if params.max_tokens == 0 else None
        self.stats = GenerationStats(prompt_tokens=len(prompt))
        self.begun = time.perf_counter()
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer, stop=params.stop_strings, prompt=prompt) if tokenizer else None

    def admit(self, generator: _C.Generator, slot: int) -> None:
        """Start it in a slot whose cache holds all of the prompt but its last token."""
        p = self.params
        generator.admit(
            slot, token=self.prompt[-1], position=len(self.prompt) - 1, limit=self.limit,
            temperature=p.temperature or 0.0, top_k=p.top_k or 0, top_p=1.0 if p.top_p is None else p.top_p,
            min_p=p.min_p or 0.0, repetition_penalty=p.repetition_penalty or 1.0, seed=self.seed,
            stop_ids=self.stop_ids[:STOP_IDS], logprobs=p.logprobs or 0, bias=list(p.logit_bias.items()),
            seen=sorted(set(self.prompt)) if p.repetition_penalty not in (None, 1.0) else (),
        )  # fmt: skip

    def feed(self, token: int, finish: str | None, logprob: float, top: list[tuple[int, float]]) -> Chunk:
        """Take a drawn token."""
        now = time.perf_counter() - self.begun
        if finish == "nan":
            raise MarlinError(
                "the model's logits are not finite: activations overflowed; load the model with dtype='bf16' or 'f32'"
            )
        if not self.tokens:
            self.stats.first_token_s = now
        self.tokens.append(token)
        self.stats.tokens, self.stats.total_s = len(self.tokens), now
        if self.params.logprobs is not None:
            self.logprobs.append(TokenLogprob(token, logprob, top))
        if finish is None and token in self.stop_ids:
            finish = "stop"
        text = ""
        if self._text is not None and self._tokenizer is not None:
            # Vocabularies are padded: an id may have a logit and no text.
            if finish != "stop" and token < self._tokenizer.vocab_size:
                text = self._text.push([token])
            if self._text.stopped is not None:
                finish = "stop"
            elif finish is not None:
                text += self._text.flush()
        self.finish = finish
        self.pieces.append(text)
        return Chunk(text, token, logprob, finish, self.stats)

    def result(self, echo: bool, *, unfinished: str = "stop") -> Generation:
        """The continuation so far; echo: behind the text of its prompt; unfinished: the reason until there is one."""
        text = "".join(self.pieces)
        if echo and self._tokenizer is not None:
            text = self._tokenizer.decode(self.prompt) + text
        logprobs = self.logprobs if self.params.logprobs is not None else None
        return Generation(
            text,
            self.tokens,
            self.finish or unfinished,
            self.stats,
            self.prompt,
            self.seed,
            logprobs,
        )


def run(
    engine: Engine,
    sequences: Sequence[Continuation],
    *,
    deadline: float | None = None,
    reuse: bool = False,
) -> Iterator[tuple[Continuation, Chunk]]:
    """Generate all sequences, as many at once as there are slots; yields each token as it is read.

    deadline: time.perf_counter() at which what still runs ends with "timeout". Closing the iterator, Ctrl-C and
    errors release the slots.
    """
    waiting = deque(sequence for sequence in sequences if sequence.finish is None)
    if not waiting:
        return
    need = max(sequence.limit for sequence in waiting)
    compiling = engine.compile_beside(min(len(waiting[0].prompt) - 1, engine.chunk))
    try:
        generator, count = engine.generator(min(len(waiting), engine.slots), need)
    finally:
        if compiling is not None:
            compiling.join()
    free, running = list(range(count))[::-1], dict[int, Continuation]()
    try:
        while waiting or running:
            if deadline is not None and time.perf_counter() > deadline:
                for sequence in [*waiting, *running.values()]:
                    sequence.finish = "timeout"
                return
            while waiting and free:
                slot, sequence = free.pop(), waiting.popleft()
                running[slot] = sequence
                sequence.stats.cached_tokens = engine.prefill(slot, sequence.prompt[:-1], reuse=reuse)
                sequence.admit(generator, slot)
            for slot, token, finish, logprob, top in generator.pump():
                drawn = running[slot]
                chunk = drawn.feed(token, finish, logprob, top)
                if drawn.finish is not None:
                    if finish is None:
                        generator.release(slot)
                    del running[slot]
                    free.append(slot)
                    # The last token was drawn but never an input: its keys are not there. Steps in flight behind an
                    # end that the host decided have written keys, which nothing reads, and moved a state on.
                    if finish is not None or engine.state is None:
                        engine.kept[slot] = [*drawn.prompt, *drawn.tokens[:-1]]
                yield drawn, chunk
    finally:
        for slot in running:
            generator.release(slot)


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids are equal."""
    count = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:count], np.int64) != np.asarray(b[:count], np.int64))
    return int(different[0]) if len(different) else count


def token_ids(prompt: Any, tokenizer: Tokenizer | None, vocab: int, *, bos: bool = True) -> list[int]:
    """The ids of a prompt: a text, encoded with the model's begin tokens, or ids, which are checked.

    Raises TypeError for anything else, ValueError for an empty prompt and for ids out of range.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise MarlinError("the model has no tokenizer: give token ids")
        ids = tokenizer.encode(prompt, bos=bos)
    else:
        array = np.asarray(prompt)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError(f"a prompt is text or a list of token ids, got {type(prompt).__name__}")
        ids = [int(id) for id in array]
    if not ids:
        raise ValueError("the prompt is empty: it must have at least one token")
    if min(ids) < 0 or max(ids) >= vocab:
        wrong = next(id for id in ids if not 0 <= id < vocab)
        raise ValueError(f"token id {wrong} is not in 0 .. {vocab - 1}")
    return ids
