"""Text to token ids and back, and chat templates, from the tokenizer files of a checkpoint.

The rule that everything here keeps: text from users never becomes a control token (<|user|>, <s>,
<think>). Only a chat template makes those, or a caller who says special=True.
"""

from __future__ import annotations

import difflib
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, overload

from marlin import templates
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.loaders.base import inside, read_bytes, read_json, show

TOKENIZER_BYTES: Final = 256 << 20
ROLES: Final = (
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "ipython",
    "observation",
)
TEMPLATE_KWARGS: Final = (
    "enable_thinking",
    "thinking",
    "reasoning_effort",
    "date_string",
    "preserve_thinking",
    "clear_thinking",
)

# Added tokens count as control tokens when the file says "special", and when they look like it:
# published tokenizers leave <think> or <tool_call> unmarked, while their runs of spaces are added
# tokens too.
_CONTROL_SHAPE: Final = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_ ]*\]")
_SENTINEL: Final = re.compile("\ue000([0-9]+)\ue001")


class Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, tokenizer_config.json, chat_template.jinja.

    vocab_size      ids run from 0 to vocab_size - 1
    bos_id, eos_id  begin and end token, None where the files name none
    begin_ids       what encode puts in front with bos=True: often (bos_id,), or nothing
    control_ids     tokens that user text never becomes; special_ids those that decode leaves out
    templates       chat templates by name, "default" first
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the files. Raises ModelFormatError, or UnsupportedModelError without a
        tokenizer.json."""
        folder = Path(folder)
        if not (folder / "tokenizer.json").exists():
            raise UnsupportedModelError(f"{folder.name}: has no tokenizer.json (other kinds are not supported)")
        self._lock = threading.Lock()
        self._backend = _load_backend(read_bytes(inside(folder, "tokenizer.json"), TOKENIZER_BYTES))
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.control_ids = self.special_ids | {
            id for id, token in added.items() if _CONTROL_SHAPE.fullmatch(token.content)
        }
        self._special_texts = _matcher(added[id].content for id in self.special_ids)
        self._control_texts = _matcher(added[id].content for id in self.control_ids)
        # A token matched after normalization (lower case, NFKC) can hide in text that does not
        # contain it.
        self._normalized = any(added[id].normalized for id in self.control_ids)

        config = read_json(folder, "tokenizer_config.json", optional=True)
        extra = read_json(folder, "special_tokens_map.json", optional=True)
        self._named = {
            key: text
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (text := _token_text(config, extra, key)) is not None
        }
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.begin_ids = self._find_begin(config.get("add_bos_token"))
        self.templates = _read_templates(folder, config)

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """The ids of a text.

        special: control tokens written in the text become control tokens; never do this with user
        text. bos: put the model's begin tokens in front, as a prompt needs them.
        Raises TypeError for what is no string, ValueError for lone surrogates.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be str, got {type(text).__name__}")
        begin = list(self.begin_ids) if bos else []
        return begin + (self._ids(text, special=True) if special else self._plain(text))

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids; special=True writes special tokens out. Raises ValueError for an id out
        of range."""
        listed = [int(id) for id in ids]
        for id in listed:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"decode: token id {id} is not in 0 .. {self.vocab_size - 1}")
        text: str = self._backend.decode(listed, skip_special_tokens=not special)
        return text

    def is_special(self, id: int) -> bool:
        """Whether decode leaves this id out. Raises ValueError for an id out of range."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is not in 0 .. {self.vocab_size - 1}")
        return id in self.special_ids

    def token(self, id: int) -> str:
        """The text of one token, special ones written out."""
        return self.decode([id], special=True)

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: Literal[False] = ...,
        **options: Any,
    ) -> str: ...
    @overload
    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: Literal[True], **options: Any
    ) -> list[int]: ...
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> str | list[int]:
        """A conversation as the model's own template writes it: text, or with tokenize=True ids.

        messages: [{"role": ..., "content": ...}, ...]. Use the ids for generation: control tokens
        that stand in a message stay plain text in them, which the rendered text alone cannot
        express. template_kwargs: TEMPLATE_KWARGS only. Raises ValueError for messages that the
        template refuses, TypeError for other keywords, UnsupportedModelError without a template,
        ModelFormatError for a template that is broken or exceeds its limits.
        """
        for name in template_kwargs:
            if name not in TEMPLATE_KWARGS:
                near = difflib.get_close_matches(name, TEMPLATE_KWARGS, n=1, cutoff=0.0)
                raise TypeError(f"apply_chat_template: unknown keyword {name!r}, the nearest is {near[0]!r}")
        _check_messages(messages)
        template = self._template("tool_use" if tools else "default")
        originals: list[str] = []
        try:
            variables = {
                **self._named,
                **{name: self._guard(value, originals) for name, value in template_kwargs.items()},
                "messages": [self._guard_message(message, originals) for message in messages],
                "tools": self._guard(tools, originals),
                "documents": self._guard(documents, originals),
                "add_generation_prompt": add_generation_prompt,
            }
        except RecursionError:
            raise ValueError("messages are nested too deeply") from None
        rendered = templates.worker.render(template, variables)
        parts = _SENTINEL.split(rendered) if originals else [rendered]
        parts[1::2] = [originals[int(at)] if int(at) < len(originals) else "" for at in parts[1::2]]
        if not tokenize:
            return "".join(parts)
        ids: list[int] = []
        for at, part in enumerate(parts):
            ids += self._plain(part) if at % 2 else self._ids(part, special=True)
        return ids

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._encoding(text, special).ids)

    def _encoding(self, text: str, special: bool) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"encode: text has a lone surrogate at character {error.start}") from None
        with self._lock:  # the switch belongs to the shared backend
            self._backend.encode_special_tokens = not special
            return self._backend.encode(text, add_special_tokens=False)

    def _plain(self, text: str) -> list[int]:
        """Ids without any control token: where one comes out, its text is cut in two and read
        again."""
        ids: list[int] = []
        waiting = [text]
        while waiting:
            piece = waiting.pop()
            encoding = self._encoding(piece, special=False)
            spans = [encoding.offsets[at] for at, id in enumerate(encoding.ids) if id in self.control_ids]
            cuts = [(begin + end) // 2 for begin, end in spans if end - begin > 1]
            if cuts:
                edges = [0, *cuts, len(piece)]
                pieces = [piece[a:b] for a, b in itertools.pairwise(edges)]
                waiting += reversed(pieces)
            else:
                ids += [id for id in encoding.ids if id not in self.control_ids]
        return ids

    def _guard_message(self, message: Mapping[str, Any], originals: list[str]) -> dict[str, Any]:
        # What the model itself said may carry <think> and the like, which templates look for.
        only_special = message["role"] == "assistant"
        guarded: dict[str, Any] = self._guard(message, originals, only_special)
        return guarded

    def _guard(self, value: Any, originals: list[str], only_special: bool = False) -> Any:
        """`value` with sentinels in the place of control-token texts, which are appended to
        `originals`."""
        if isinstance(value, str):
            pieces, last = [], 0
            for begin, end in self._control_spans(value, only_special):
                pieces += [value[last:begin], f"\ue000{len(originals)}\ue001"]
                originals.append(value[begin:end])
                last = end
            return "".join([*pieces, value[last:]])
        if isinstance(value, Mapping):
            return {
                self._guard(key, originals, only_special): self._guard(item, originals, only_special)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._guard(item, originals, only_special) for item in value]
        return value

    def _control_spans(self, text: str, only_special: bool) -> Iterator[tuple[int, int]]:
        matcher = self._special_texts if only_special else self._control_texts
        if not self._normalized:
            yield from (found.span() for found in matcher.finditer(text))
            return
        ids = self.special_ids if only_special else self.control_ids
        encoding = self._encoding(text, special=True)
        spans = [span for id, span in zip(encoding.ids, encoding.offsets, strict=True) if id in ids]
        spans += [found.span() for found in matcher.finditer(text)]
        last = 0
        for begin, end in sorted(spans):
            if begin >= last and end > begin:
                yield begin, end
                last = end

    def _template(self, name: str) -> str:
        if not self.templates:
            raise UnsupportedModelError("the model has no chat template (it may not be a chat model)")
        return self.templates.get(name) or self.templates.get("default") or next(iter(self.templates.values()))

    def _id_of(self, key: str) -> int | None:
        text = self._named.get(key)
        if text is None:
            return None
        id: int | None = self._backend.token_to_id(text)
        if id is None:
            raise ModelFormatError(f"tokenizer_config.json: {key} {show(text)} is not in tokenizer.json")
        return id

    def _find_begin(self, add_bos: Any) -> tuple[int, ...]:
        """Begin ids: what tokenizer.json's post-processor puts in front, corrected by
        add_bos_token."""
        if add_bos is not None and not isinstance(add_bos, bool):
            raise ModelFormatError(f"tokenizer_config.json: add_bos_token must be true or false, got {show(add_bos)}")
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare), 0)
        begin = tuple(full[:at])
        if add_bos is False:
            return tuple(id for id in begin if id != self.bos_id)
        if add_bos and self.bos_id is not None and self.bos_id not in begin:
            return (self.bos_id, *begin)
        return begin


def _load_backend(data: bytes) -> Any:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
        # A stored limit would cut prompts short without a word.
        backend.no_truncation()
        backend.no_padding()
        backend.encode("a b", add_special_tokens=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the Rust code is a BaseException
        raise ModelFormatError(f"tokenizer.json: {str(error)[:300]}") from None
    return backend


def _matcher(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these texts, the longest first, and the marks of sentinels, so that only ours
    are put back."""
    listed = sorted(set(texts) - {""}, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, listed), "[\ue000\ue001]"]))


def _token_text(config: Mapping[str, Any], extra: Mapping[str, Any], key: str) -> str | None:
    """A named token: a string or {"content": string}; null and a missing key mean none."""
    value = config.get(key, extra.get(key))
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ModelFormatError(f"tokenizer_config.json: {key} must be a string, got {show(value)}")
    return value or None


def _read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name. chat_template.jinja wins over tokenizer_config.json, as in
    transformers."""
    if (folder / "chat_template.jinja").exists():
        data = read_bytes(inside(folder, "chat_template.jinja"), templates.TEMPLATE_BYTES)
        try:
            return {"default": data.decode()}
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"chat_template.jinja: not UTF-8 at byte {error.start}") from None
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in value
    ):
        raise ModelFormatError(
            f"tokenizer_config.json: chat_template must be a string or a list of name and template, got {show(value)}"
        )
    return {item["name"]: item["template"] for item in sorted(value, key=lambda item: item["name"] != "default")}


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of objects, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages must not be empty")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{at}] must be an object, got {type(message).__name__}")
        role = message.get("role")
        # Templates build control tokens from roles ("<|" + role + "|>"), so only known words pass.
        if role not in ROLES:
            raise ValueError(f"messages[{at}]: role must be one of {', '.join(ROLES)}, got {show(role)}")
