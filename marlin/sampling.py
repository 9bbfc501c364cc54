"""How the next token is chosen, and when to stop."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from marlin.config import GenerationDefaults

Stop = str | int | Sequence[str | int]

STOP_IDS: Final = 16  # stop ids that the device knows; the rest the host looks for
STOP_STRINGS: Final = 16
STOP_LENGTH: Final = 256  # characters of a stop string
LOGPROBS: Final = 20
BIASES: Final = 1024
SEED_LIMIT: Final = 1 << 64


@dataclass(frozen=True)
class SamplingParams:
    """All that a request may say of sampling; None takes the model's generation_config.json.

    max_tokens           tokens to draw at most; 0 draws none
    temperature          0 is greedy: always the likeliest token
    top_k, top_p, min_p  keep the k likeliest; the likeliest that sum to p; those at least min_p times as likely
                         as the likeliest. 0, 1 and 0 keep all
    repetition_penalty   divides (positive) or multiplies logits of tokens that were there; 1 is off
    stop                 strings and token ids that end the text, besides the model's own end tokens
    ignore_eos           go on past the model's end tokens
    seed                 0 .. 2^64 - 1; None draws one, which Generation.seed tells. The i-th of n uses seed + i
    logprobs             report the log-probabilities of so many likeliest tokens at each step, 0 .. 20
    logit_bias           token id -> number added to its logit; -inf bans it
    n                    continuations of one prompt
    """

    max_tokens: int = 256
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: Stop = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n: int = 1

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str | int) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        _integer("max_tokens", self.max_tokens, 0, 1 << 31)
        _number("temperature", self.temperature, 0.0, 1e4)
        _integer("top_k", self.top_k, 0, (1 << 31) - 1)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _integer("seed", self.seed, 0, SEED_LIMIT - 1)
        _integer("logprobs", self.logprobs, 0, LOGPROBS)
        _integer("n", self.n, 1, 64)
        for item in stop:
            if isinstance(item, str):
                if not 1 <= len(item) <= STOP_LENGTH:
                    raise ValueError(f"stop: strings have 1 to {STOP_LENGTH} characters, got {len(item)}")
            else:
                _integer("stop", item, 0, 1 << 24)
        if len(self.stop_strings) > STOP_STRINGS:
            raise ValueError(f"stop: at most {STOP_STRINGS} strings, got {len(self.stop_strings)}")
        if len(self.logit_bias) > BIASES:
            raise ValueError(f"logit_bias: at most {BIASES} entries, got {len(self.logit_bias)}")
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 1 << 24)
            if not isinstance(bias, int | float) or math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias: the bias of token {token} must be a number or -inf, got {bias!r}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts among `stop`."""
        return tuple(item for item in self._stops if isinstance(item, str))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids among `stop`."""
        return tuple(item for item in self._stops if isinstance(item, int))

    @property
    def _stops(self) -> tuple[str | int, ...]:
        assert isinstance(self.stop, tuple)
        return self.stop

    def changed(self, **given: Any) -> SamplingParams:
        """A copy with the values that are not None."""
        given = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self, **given) if given else self

    def filled(self, defaults: GenerationDefaults) -> SamplingParams:
        """A copy without None but in `logprobs`: the model's defaults, then "off"; a seed is drawn.

        A model whose generation_config.json does not ask for sampling is greedy, as in transformers.
        """

        def first(*values: Any) -> Any:
            return next(value for value in values if value is not None)

        sampled = defaults.do_sample if defaults.do_sample is not None else defaults.temperature is not None
        return dataclasses.replace(
            self,
            temperature=first(self.temperature, first(defaults.temperature, 1.0) if sampled else 0.0),
            top_k=first(self.top_k, defaults.top_k, 0),
            top_p=first(self.top_p, defaults.top_p, 1.0),
            min_p=first(self.min_p, defaults.min_p, 0.0),
            repetition_penalty=first(self.repetition_penalty, defaults.repetition_penalty, 1.0),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )


def _integer(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {value}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g} to {high:g}, got {value}")
