"""Model: a checkpoint on a device, and everything that can be asked of it."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marlin import _C, html
from marlin.bench import BenchResult, measure, profile, profile_prefill
from marlin.compare import Comparison, differences, transformers_trace
from marlin.config import ModelConfig, read_config
from marlin.device import Device
from marlin.errors import DeviceOutOfMemory, MarlinError, UnsupportedModelError
from marlin.generate import Chunk, Continuation, Engine, Generation, run, token_ids
from marlin.keywords import checked_keywords
from marlin.linear import WeightFormat, parse_format
from marlin.loaders import open_checkpoint
from marlin.memory import ACTIVATION_BYTES, KV_BYTES, MemoryPlan, kv_dtype
from marlin.models.base import CausalLM
from marlin.models.moe import MoE
from marlin.perplexity import Perplexity, Score, log_softmax, picked, windows
from marlin.placement import bus_rate, read_usage
from marlin.planning import budget_of, build_for, check_choice, make_plan, read_network, refuse
from marlin.sampling import SamplingParams, Stop
from marlin.tensors import to_numpy
from marlin.tokenizer import Tokenizer
from marlin.usage import ExpertUsage

Prompt = str | Sequence[int]
LOGITS_BYTES: Final = 256 << 20  # logits on the device at a time
TRACE_ROWS: Final = 512  # tokens of a trace: every result of the network goes to host memory


@dataclass
class ModelStats:
    """Counters since the model was loaded."""

    load_s: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Model:
    """A language model on a device. Made by `Model.load`; calls from several threads take turns.

    Close it with `close()`, with `with`, or by dropping it. A stream that is not read to the end holds the
    model until it is closed.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        network: CausalLM,
        tokenizer: Tokenizer | None,
        device: Device,
        plan: MemoryPlan,
        *,
        dtype: str,
        progress: bool,
    ) -> None:
        begin = time.perf_counter()
        self.name, self.config, self.tokenizer, self.device, self.dtype = (
            name,
            config,
            tokenizer,
            device,
            dtype,
        )
        self.memory = plan
        self.stats = ModelStats()
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._stream: weakref.ref[Stream] | None = None
        self._engine: Engine | None = None
        try:
            modules = list(network.modules())
            with progress_bar(f"loading {name}", sum(module.nbytes for module in modules), progress) as advance:
                for module in modules:
                    module.load(device.raw)
                    advance(module.nbytes)
            self._engine = Engine(
                network,
                config,
                device.raw,
                context=plan.context,
                slots=plan.slots,
                kv=plan.kv_dtype,
                dtype=dtype,
            )
        except DeviceOutOfMemory as error:
            error.plan = plan  # type: ignore[attr-defined]
            raise
        self.stats.load_s = time.perf_counter() - begin

    @classmethod
    @checked_keywords
    def load(
        cls,
        source: str | Path,
        *,
        format: str | WeightFormat | None = None,
        device: Device | int | str | None = None,
        dtype: str = "f16",
        context: int | None = None,
        kv: str | None = None,
        slots: int | None = None,
        memory_limit: int | None = None,
        expert_usage: ExpertUsage | str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        verify: bool = False,
        progress: bool = True,
    ) -> Model:
        """Load a model folder or hub name ("org/model").

        format   of the linear layers: "int4", "int4:64", "int8", "fp8", "fp4", "mxfp4", "nvfp4", "f16", "bf16",
                 "f32", rounded to nearest on the device; None keeps what is stored. A name alone ("int4") also
                 keeps weights stored in that format, with whatever groups and scales; options ("int4:64") are had
        device   index, part of a name, UUID or Device; None is $MARLIN_DEVICE, else the best
        dtype    of activations between kernels: "f16", "bf16" or "f32"; "int8" is f16, rounded to 8 bits with a scale
                 for 128 where EXL3 trellises of codebook mul1 multiply one or two rows: faster, a little less exact
        context  tokens a slot holds; None: the model's own, at most 4096, less if memory is short
        kv       of the cache: "f16" or "f32"; None: f32 where dtype is, else f16
        slots    sequences generated at once; None: 8, fewer if memory is short
        memory_limit   bytes of device memory that may be taken; what routed experts need beyond it stays in host memory
        expert_usage   how often experts are chosen (Model.expert_usage(), or a .json file that it saved): the least
                       used go to host memory first
        verify   run the model once and check that its logits are finite

        Raises ModelFormatError (a file is broken), UnsupportedModelError, DeviceError, DeviceOutOfMemory (its
        `plan` says what was wanted), ValueError and TypeError for arguments.
        """
        check_choice("dtype", dtype, ACTIVATION_BYTES)
        check_choice("kv", kv_dtype(kv, dtype), KV_BYTES)
        if slots is not None and not 1 <= slots <= 256:
            raise ValueError(f"slots must be 1 to 256, got {slots}")
        checkpoint = open_checkpoint(source, revision=revision, local_files_only=local_files_only)
        config, network = read_network(checkpoint, format, context, dtype)
        tokenizer = Tokenizer(checkpoint.folder) if (checkpoint.folder / "tokenizer.json").exists() else None
        opened = Device(device)
        plan = make_plan(
            network, checkpoint.folder.name, device=opened.name, kind=opened.kind,
            budget=budget_of(opened, memory_limit), context=context, slots=slots, kv=kv, dtype=dtype,
            usage=read_usage(expert_usage), rate=partial(bus_rate, opened),
        )  # fmt: skip
        if not plan.fits:
            raise refuse(plan)
        model = cls(
            checkpoint.folder.name,
            config,
            network,
            tokenizer,
            opened,
            plan,
            dtype=dtype,
            progress=progress,
        )
        if verify:
            model._verify()
        return model

    @classmethod
    @checked_keywords
    def random(
        cls,
        config: Mapping[str, Any],
        *,
        format: str | WeightFormat = "f16",
        device: Device | int | str | None = None,
        dtype: str = "f16",
        context: int | None = None,
        kv: str | None = None,
        slots: int | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> Model:
        """A model with random weights of a config.json's shapes, for measuring speed. It has no tokenizer."""
        check_choice("dtype", dtype, ACTIVATION_BYTES)
        check_choice("kv", kv_dtype(kv, dtype), KV_BYTES)
        parsed = read_config(config, context=context)
        network = build_for(parsed, None, parse_format(format), dtype)
        opened, name = Device(device), f"random {parsed.model_type}"
        plan = make_plan(
            network, name, device=opened.name, kind=opened.kind, budget=budget_of(opened, memory_limit),
            context=context, slots=slots, kv=kv, dtype=dtype, rate=partial(bus_rate, opened),
        )  # fmt: skip
        if not plan.fits:
            raise refuse(plan)
        return cls(name, parsed, network, None, opened, plan, dtype=dtype, progress=progress)

    # ---- text ------------------------------------------------------------------------------------------------

    @checked_keywords
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Stop | None = None,
        ignore_eos: bool | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        n: int | None = None,
        echo: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Continue a prompt (text or token ids): a Generation, a list of n, or for a list of prompts a list.

        Values given here go before `params`, and both before the model's generation_config.json. Of a list as
        many prompts run at once as the model has slots. max_tokens is 256 unless given; when the context is full
        the text ends with finish_reason "length". timeout: seconds for the whole call; what is not finished then
        ends with "timeout". Raises ValueError for a prompt longer than the context. Ctrl-C cancels.
        """
        wanted = (params or SamplingParams()).changed(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, ignore_eos=ignore_eos, seed=seed, logprobs=logprobs,
            logit_bias=logit_bias, n=n,
        )  # fmt: skip
        single = isinstance(prompt, str) or (
            len(prompt) > 0 and all(isinstance(item, int | np.integer) for item in prompt)
        )
        prompts: list[Any] = [prompt] if single else list(prompt)
        if not single and not prompts:
            return []
        made = [self._continuations(item, wanted) for item in prompts]
        self._finish([item for group in made for item in group], timeout)
        results = [[item.result(echo) for item in group] for group in made]
        if wanted.n == 1:
            flat = [group[0] for group in results]
            return flat[0] if single else flat
        return results[0] if single else results

    @checked_keywords
    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Stop | None = None,
        ignore_eos: bool | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """Continue a prompt token by token: an iterator of Chunk. Closing it, or Ctrl-C, cancels.

        Parameters are those of `generate`.
        """
        wanted = (params or SamplingParams()).changed(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, ignore_eos=ignore_eos, seed=seed, logprobs=logprobs,
            logit_bias=logit_bias,
        )  # fmt: skip
        if wanted.n != 1:
            raise ValueError(f"stream: n must be 1, got {wanted.n}")
        return Stream(self, self._continuations(prompt, wanted)[0], timeout)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """The model's answer to a conversation [{"role": ..., "content": ...}, ...], by its own chat template.

        A Generation, or with stream=True a Stream. Other options are those of `generate`. Raises ValueError
        for messages that the template refuses, UnsupportedModelError for a model without one.
        """
        ids = self.chat_ids(messages, tools=tools, template_kwargs=template_kwargs)
        return self.stream(ids, params, **options) if stream else self.generate(ids, params, **options)

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a conversation, up to where the model answers."""
        return self._need_tokenizer().apply_chat_template(
            messages, tokenize=True, tools=tools, **dict(template_kwargs or {})
        )

    def session(self, system: str | None = None, **options: Any) -> Session:
        """A conversation that remembers its messages and keeps its cache. options: those of `generate`."""
        return Session(self, system, options)

    # ---- numbers ---------------------------------------------------------------------------------------------

    def logits(self, tokens: Prompt) -> NDArray[np.float32]:
        """Logits (positions, vocabulary) of a text or of token ids, each given the tokens before it."""
        ids = self._ids(tokens)
        result = np.empty((len(ids), self.config.vocab_size), np.float32)
        with self._turn(), self._running() as engine:
            for rows, logits in self._logit_rows(engine, ids):
                result[rows] = logits
        return result

    def score(self, text: Prompt, *, top: int = 0) -> Score:
        """The log-probability of each token but the first; top: also the likeliest tokens at each position."""
        ids = self._ids(text)
        found = np.empty(len(ids) - 1, np.float32)
        likeliest: list[list[tuple[int, float]]] = []
        with self._turn(), self._running() as engine:
            for rows, logits in self._logit_rows(engine, ids[:-1] if len(ids) > 1 else []):
                found[rows] = picked(logits, np.asarray(ids[rows.start + 1 : rows.stop + 1]))
                if top:
                    likeliest += _likeliest(log_softmax(logits), top)
        return Score(ids, found, likeliest if top else None)

    def perplexity(self, text: Prompt, *, stride: int = 512, progress: bool = True) -> Perplexity:
        """Perplexity of a text, cut into windows of `stride` tokens side by side.

        The first token of a window is context only, so a window of 512 makes 511 predictions; no begin token is
        added. Raises ValueError for fewer than two tokens, and where dtype is int8, which texts do not take.
        """
        if self.dtype == "int8":
            raise ValueError(
                "perplexity: int8 is for steps, texts are multiplied in f16; load the model with dtype='f16'"
            )
        if not 2 <= stride <= self.context:
            raise ValueError(f"perplexity: stride must be 2 to {self.context} (the context), got {stride}")
        ids = self._ids(text, bos=False, whole=False)
        nlls: list[float] = []
        counts: list[int] = []
        parts = list(windows(len(ids), stride))
        if not parts:
            raise ValueError(f"perplexity: the text must have at least 2 tokens, got {len(ids)}")
        with self._turn(), self._running() as engine, progress_bar("perplexity", len(parts), progress) as advance:
            for part in parts:
                window = ids[part]
                nll = 0.0
                for rows, logits in self._logit_rows(engine, window[:-1]):
                    targets = np.asarray(window[rows.start + 1 : rows.stop + 1])
                    nll -= float(picked(logits, targets).sum(dtype=np.float64))
                nlls.append(nll)
                counts.append(len(window) - 1)
                advance(1)
        return Perplexity(nlls, counts, stride)

    @checked_keywords
    def bench(
        self,
        *,
        prompt: Sequence[int] = (512,),
        gen: Sequence[int] = (128,),
        depth: Sequence[int] = (0,),
        batch: Sequence[int] = (1,),
        repeat: int = 5,
        with_profile: bool = False,
        progress: bool = True,
    ) -> BenchResult:
        """Tokens a second of prefill (prompt), and of decode (gen) behind `depth` tokens, for each batch size.

        with_profile: also time by kernel of one decode step, and of the longest prefill, behind the largest depth.
        Raises ValueError for what the context or the slots cannot hold.
        """
        cases = len(depth) * (len(prompt) + len(gen) * len(batch))
        rows = []
        with self._turn(), self._running() as engine, progress_bar("bench", cases, progress) as advance:
            for row in measure(engine, prompt=prompt, gen=gen, depth=depth, batch=batch, repeat=repeat):
                rows.append(row)
                advance(1)
            times = profile(engine, depth=max(depth), batch=max(batch)) if with_profile else []
            prefill = profile_prefill(engine, max(prompt), depth=max(depth)) if with_profile and prompt else []
        info = self.device.info
        return BenchResult(
            self.name,
            info.name,
            info.driver,
            self.memory.format,
            self.layers.parameters,
            rows,
            times,
            prefill,
        )

    def trace(self, tokens: Prompt) -> dict[str, NDArray[Any]]:
        """Every result of the network for a short prompt, by the module's name, in order of computation.

        "model.layers.3" is the residual stream after layer 3 (rows, hidden), "model.layers.3.qkv" and so on what
        is computed inside; "model.norm" and "logits" come last. For comparing with another implementation.
        """
        ids = self._ids(tokens)
        if len(ids) > TRACE_ROWS:
            raise ValueError(f"trace: at most {TRACE_ROWS} tokens, got {len(ids)}")
        seen: dict[str, NDArray[Any]] = {}

        def watch(name: str, y: _C.Tensor) -> None:
            seen[name] = np.array(to_numpy(y))

        with self._turn(), self._running() as engine:
            network = engine.network
            try:
                for module in network.modules():
                    module.watch = watch
                hidden = engine.forward(ids)
                watch("model.norm", network.final_norm(hidden))
                logits = network.logits(hidden)
            finally:
                for module in network.modules():
                    module.watch = None
            watch("logits", logits)
        return seen

    def compare(self, reference: Any, tokens: Prompt) -> Comparison:
        """`trace` beside another implementation: the difference of each result that both have, in order.

        reference: a folder or hub name, computed by transformers in f32 (needs the extra `hf`), a model that
        transformers has loaded, or arrays by the names of `trace`. Load this one with dtype="f32" and the weights as
        stored, so that rounding does not blur where the two part.
        Raises MarlinError where transformers is missing, ValueError for results that cannot be compared.
        """
        ids = self._ids(tokens)
        ours = self.trace(ids)
        return differences(ours, reference if isinstance(reference, Mapping) else transformers_trace(reference, ids))

    def expert_usage(self, *, reset: bool = False) -> ExpertUsage:
        """How often each expert of each layer was chosen since loading, or since the last reset.

        Counted on the device, for every token of every prefill and decode step. Raises UnsupportedModelError for a
        model without experts.
        """
        with self._turn(), self._running() as engine:
            mixtures = [module for module in engine.network.modules() if isinstance(module, MoE)]
            if not mixtures:
                raise UnsupportedModelError(f"{self.name}: model_type {self.config.model_type} has no experts")
            counts = np.stack([to_numpy(mixture.usage) for mixture in mixtures]).astype(np.int64)
            if reset:
                for mixture in mixtures:
                    mixture.reset_usage()
        assert self.config.experts is not None
        layers = [index for index, sparse in enumerate(self.config.experts.sparse) if sparse]
        return ExpertUsage(self.name, layers, counts)

    # ---- what it is ------------------------------------------------------------------------------------------

    @property
    def layers(self) -> CausalLM:
        """The module tree; printing it shows every matrix with its shape and format."""
        return self._open_engine().network

    @property
    def context(self) -> int:
        """Tokens that a slot holds."""
        return self.memory.context

    @property
    def slots(self) -> int:
        """Sequences generated at once."""
        return self.memory.slots

    @property
    def closed(self) -> bool:
        return self._engine is None

    def close(self) -> None:
        """Give the device memory back; an open stream ends."""
        stream = self._stream() if self._stream is not None else None
        if stream is not None and self._owner == threading.get_ident():
            stream.close()
        with self._lock:
            self._engine = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Model {self.name}, closed>"
        millions = self.layers.parameters / 1e6
        return (
            f"<Model {self.name} ({self.config.model_type}, {millions:.1f}M parameters, {self.memory.format}) on "
            f"{self.device.name}, context {self.context}, {self.slots} slots, {html.size(self.memory.total)}>"
        )

    def _repr_html_(self) -> str:
        if self.closed:
            return html.text(repr(self))
        config = self.config
        rows = [
            ("type", f"{config.model_type}, {self.layers.parameters / 1e6:.1f}M parameters"),
            ("shape", f"{config.layers} layers, hidden {config.hidden_size}, {config.heads} heads, "
                      f"{config.kv_heads} kv heads of {config.head_dim}, vocabulary {config.vocab_size}"),
            ("activations", self.dtype),
            ("loaded in", f"{self.stats.load_s:.2f} s"),
        ]  # fmt: skip
        return html.table(rows, title=f"Model {self.name}") + self.memory._repr_html_()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise MarlinError(f"the model {self.name} is closed")
        return self._engine

    def _turn(self) -> threading.Lock:
        """The lock of the model, to be taken with `with` itself: Python runs no signal handler between taking a lock
        there and entering the block, so that Ctrl-C cannot leave it taken.

        MarlinError where waiting would be for oneself, and when the model is closed.
        """
        if self._owner == threading.get_ident() and self._lock.locked():
            raise MarlinError("a stream of this model is open in this thread: read it to the end or close() it first")
        self._open_engine()
        return self._lock

    @contextmanager
    def _running(self) -> Iterator[Engine]:
        """The engine, in one's turn; the pipelines that it made are saved afterwards."""
        engine = self._open_engine()
        self._owner = threading.get_ident()
        try:
            yield engine
        finally:
            self._owner = None
        engine.device.save_cache()

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MarlinError(f"the model {self.name} has no tokenizer: give token ids")
        return self.tokenizer

    def _ids(self, prompt: Prompt, *, bos: bool = True, whole: bool = True) -> list[int]:
        """The ids of a prompt; `whole`: it must fit the context."""
        ids = token_ids(prompt, self.tokenizer, self.config.vocab_size, bos=bos)
        if whole and len(ids) > self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, more than the context of {self.context}")
        return ids

    def _continuations(self, prompt: Prompt, params: SamplingParams) -> list[Continuation]:
        ids = self._ids(prompt)
        filled = params.filled(self.config.generation)
        assert filled.seed is not None
        if params.stop_strings and self.tokenizer is None:
            raise MarlinError("stop strings need a tokenizer, which this model does not have")
        return [
            Continuation(
                i,
                ids,
                filled.changed(seed=(filled.seed + i) % (1 << 64)),
                self.tokenizer,
                self.config,
                self.context,
            )
            for i in range(filled.n)
        ]

    def _finish(self, made: list[Continuation], timeout: float | None, *, reuse: bool = False) -> None:
        with self._turn(), self._running() as engine:
            for _ in run(engine, made, deadline=_deadline(timeout), reuse=reuse):
                pass
        self._count(made)

    def _count(self, made: Sequence[Continuation]) -> None:
        self.stats.requests += len(made)
        self.stats.prompt_tokens += sum(item.stats.prompt_tokens for item in made)
        self.stats.generated_tokens += sum(item.stats.tokens for item in made)

    def _logit_rows(self, engine: Engine, ids: Sequence[int]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Logits of consecutive tokens from position 0, in blocks that bound the device memory."""
        block = max(1, min(engine.chunk, LOGITS_BYTES // (4 * self.config.vocab_size)))
        for first in range(0, len(ids), engine.chunk):
            hidden = engine.forward(ids[first : first + engine.chunk], start=first)
            for row in range(0, hidden.shape[0], block):
                logits = to_numpy(engine.network.logits(hidden[row : row + block]))
                yield slice(first + row, first + row + len(logits)), logits

    def _verify(self) -> None:
        ids = [i * 997 % self.config.vocab_size for i in range(min(16, self.context))]
        if not np.isfinite(self.logits(ids)).all():
            raise MarlinError(f"verify: {self.name}: logits are not finite; try dtype='bf16' or 'f32'")


class Stream:
    """An iterator of Chunk. `result` is the Generation so far; close() cancels."""

    def __init__(self, model: Model, continuation: Continuation, timeout: float | None) -> None:
        self._model, self._continuation = model, continuation
        # The generator must not know this object: dropping a stream half-read ends it at once.
        self._chunks = _chunks(model, continuation, timeout)

    @property
    def result(self) -> Generation:
        """What was generated so far; finish_reason "cancelled" if it was closed before its end."""
        if self._continuation.finish is None:
            return self._continuation.result(False, unfinished="cancelled")
        return self._continuation.result(False)

    def close(self) -> None:
        """Cancel: the slot is free and the model can be used again when this returns."""
        self._chunks.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        try:
            chunk = next(self._chunks)
            self._model._stream = weakref.ref(self)
        except BaseException:  # Ctrl-C may come when a chunk was made and not yet returned
            self._chunks.close()
            raise
        return chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _chunks(model: Model, continuation: Continuation, timeout: float | None) -> Generator[Chunk, None, None]:
    with model._turn(), model._running() as engine:
        try:
            for _, chunk in run(engine, [continuation], deadline=_deadline(timeout)):
                yield chunk
        finally:
            model._count([continuation])


class Session:
    """A conversation: `say` adds a message and the model's answer. The cache of what was said is used again
    as long as nothing else used its slot."""

    def __init__(self, model: Model, system: str | None, options: Mapping[str, Any]) -> None:
        self.model, self.options = model, dict(options)
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, **options: Any) -> Generation:
        """The answer to a message. options: those of `Model.generate`, for this message."""
        messages = [*self.messages, {"role": "user", "content": text}]
        given = {**self.options, **options}
        timeout, params = given.pop("timeout", None), given.pop("params", None) or SamplingParams()
        for name in given:
            if name not in SamplingParams.__dataclass_fields__ or name == "n":
                raise TypeError(f"Session.say: unknown keyword {name!r}")
        made = self.model._continuations(self.model.chat_ids(messages), params.changed(**given))
        self.model._finish(made, timeout, reuse=True)
        answer = made[0].result(False)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def __repr__(self) -> str:
        return f"<Session with {self.model.name}, {len(self.messages)} messages>"


@contextmanager
def progress_bar(title: str, total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on; there is one only where a person looks at a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, got {timeout}")
    return time.perf_counter() + timeout


def _likeliest(logprobs: NDArray[np.float32], count: int) -> list[list[tuple[int, float]]]:
    order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :count]
    return [[(int(id), float(row[id])) for id in ids] for row, ids in zip(logprobs, order, strict=True)]
