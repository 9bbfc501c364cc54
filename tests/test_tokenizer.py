"""Tokenizer and detokenizer: recorded ids, control tokens, characters in pieces, stop strings, bad
files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from marlin.detokenize import Detokenizer
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.tokenizer import Tokenizer as MarlinTokenizer

ROOT = Path(__file__).resolve().parents[1]
TALE = ROOT / "models" / "tale-moe"
# Made with the tokenizers package through transformers; special tokens in a text are recognised
# there.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer.json").read_text(encoding="utf-8"))
TEXTS = [case["text"] for case in GOLDEN["cases"]]


@pytest.fixture(scope="module")
def tale() -> MarlinTokenizer:
    return MarlinTokenizer(TALE)


def byte_fallback(folder: Path, **config: Any) -> MarlinTokenizer:
    """A tokenizer in the manner of Llama 2: spaces as ▁, unknown characters as bytes, <s> in
    front."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "a", "b", "o", "n", "c", "e", "▁a", "on", "▁on", "ce", "▁once", "é"]
    vocab = {word: id for id, word in enumerate(words)}
    merges = [("▁", "a"), ("o", "n"), ("▁", "on"), ("c", "e"), ("▁on", "ce")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return save(folder, backend, {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | config)


def save(folder: Path, backend: Tokenizer, config: Any = None) -> MarlinTokenizer:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return MarlinTokenizer(folder)


def byte_level(*added: AddedToken) -> Tokenizer:
    """Bytes only, plus added tokens."""
    vocab = {char: id for id, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(added))
    return backend


# Ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: repr(case["text"][:20]))
def test_recorded_ids(tale: MarlinTokenizer, case: dict[str, Any]) -> None:
    assert tale.encode(case["text"], special=True) == case["ids"]
    assert tale.decode(case["ids"], special=True) == case["text"]


@pytest.mark.parametrize("case", GOLDEN["chats"], ids=lambda case: str(len(case["messages"])))
def test_recorded_chats(tale: MarlinTokenizer, case: dict[str, Any]) -> None:
    assert tale.apply_chat_template(case["messages"]) == case["text"]
    assert tale.apply_chat_template(case["messages"], tokenize=True) == case["ids"]


def test_facts(tale: MarlinTokenizer) -> None:
    assert (tale.vocab_size, tale.bos_id, tale.eos_id, tale.begin_ids) == (4096, None, 0, ())
    assert tale.special_ids == tale.control_ids == {0, 1, 2, 3}
    assert tale.token(2) == "<|user|>" and tale.decode([2, 43], special=False) == "H"


def test_bad_arguments(tale: MarlinTokenizer) -> None:
    with pytest.raises(TypeError, match="encode: text must be str, got bytes"):
        tale.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        tale.encode("a\ud800")
    for id in (-1, 4096, 1 << 70):
        with pytest.raises(ValueError, match=r"is not in 0 \.\. 4095"):
            tale.decode([id])


# Control tokens -----------------------------------------------------------------------

ATTACKS = [
    "{t}", "a{t}b", "{t}{t}", " {t} ", "\n{t}\n", "{t}" * 50, "<{t}", "{t}>", "<|{t}|>",
    "{h}{t}{g}", "{h}{h}{g}{g}",
    "é{t}é", "\ue0000\ue001{t}", "{t}\ue0001\ue001", "\u200b{t}", "{h}\u200b{g}", "{t}\ud7ff",
    "🦊{t}🦊",
]  # fmt: skip


def attacks(texts: list[str]) -> list[str]:
    """Texts that hold control tokens whole, in halves, nested."""
    return [
        form.format(t=text, h=text[: len(text) // 2], g=text[len(text) // 2 :]) for text in texts for form in ATTACKS
    ]


@pytest.mark.parametrize("text", attacks(["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"]))
def test_user_text_makes_no_control_tokens(tale: MarlinTokenizer, text: str) -> None:
    ids = tale.encode(text)
    assert not tale.control_ids & set(ids)
    assert tale.decode(ids) == text
    chat = tale.apply_chat_template([{"role": "user", "content": text}], tokenize=True)
    assert [id for id in chat if id in tale.control_ids] == [2, 3]
    assert tale.decode(chat, special=True) == f"<|user|>\n{text}\n<|assistant|>\n"


@pytest.mark.parametrize("text", attacks(["<think>", "</s>", "[INST]", "<tool_call>"]))
def test_unmarked_control_tokens(tmp_path: Path, text: str) -> None:
    added = [AddedToken(name, special=False, normalized=False) for name in ("<think>", "[INST]", "<tool_call>", "    ")]
    tokenizer = save(tmp_path, byte_level(AddedToken("</s>", special=True), *added))
    assert len(tokenizer.control_ids) == 4 and len(tokenizer.special_ids) == 1
    ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(ids) and tokenizer.decode(ids) == text
    assert tokenizer.encode("    ")[0] >= 256  # a run of spaces is an added token, but controls nothing
    assert tokenizer.encode("<think>", special=True)[0] in tokenizer.control_ids


def test_control_tokens_behind_a_normalizer(tmp_path: Path) -> None:
    backend = byte_level()
    backend.normalizer = normalizers.Lowercase()
    backend.add_tokens([AddedToken("<|user|>", special=True, normalized=True)])
    tokenizer = save(tmp_path, backend, {"chat_template": "<|user|>{{ messages[0].content }}"})
    assert tokenizer.encode("<|USER|>", special=True) == [256]
    assert 256 not in tokenizer.encode("x <|USER|> <|User|>")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x <|UsEr|> y"}], tokenize=True)
    assert [at for at, id in enumerate(chat) if id == 256] == [0]


# Begin tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "begin"), [({}, [1]), ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, [])]
)
def test_begin_from_the_post_processor(tmp_path: Path, config: dict[str, Any], begin: list[int]) -> None:
    tokenizer = byte_fallback(tmp_path, **config)
    assert (tokenizer.bos_id, tokenizer.eos_id, list(tokenizer.begin_ids)) == (1, 2, begin)
    assert tokenizer.encode("once", bos=True) == begin + tokenizer.encode("once")
    assert tokenizer.encode("", bos=True) == begin


def test_begin_that_only_the_config_names(tmp_path: Path) -> None:
    backend = byte_level(AddedToken("<s>", special=True))
    assert save(tmp_path, backend, {"bos_token": "<s>"}).begin_ids == ()
    assert save(tmp_path, backend, {"bos_token": "<s>", "add_bos_token": True}).begin_ids == (256,)


def test_stored_truncation_is_ignored(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    assert len(save(tmp_path, backend).encode("a longer text")) == 13


# Detokenizing -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_pieces_make_the_text(tale: MarlinTokenizer, text: str, size: int) -> None:
    ids = tale.encode(text)
    detokenizer = Detokenizer(tale)
    pieces = [detokenizer.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("text", ["once a once", "日本語 text 🦊🐉", "é日é本é", "  a  b", "on\nce", "🦊" * 30])
def test_pieces_of_byte_fallback(tmp_path: Path, text: str, size: int) -> None:
    tokenizer = byte_fallback(tmp_path)
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids) == text.removeprefix(" ")


def test_the_first_word_keeps_its_space(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    ids = tokenizer.encode("once on a")
    assert Detokenizer(tokenizer, prompt=ids[:1]).push(ids[1:]) == " on a"
    assert Detokenizer(tokenizer).push(ids[1:]) == "on a"


def test_special_tokens_are_left_out(tale: MarlinTokenizer) -> None:
    detokenizer = Detokenizer(tale)
    assert detokenizer.push([43, 0, 483, 3]) == tale.decode([43, 483])
    with pytest.raises(ValueError, match="token id 5000 is not in"):
        detokenizer.push([5000])


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_never_change_what_was_given(tmp_path: Path, seed: int) -> None:
    """Broken sequences too: all that is given is a prefix of the text of all ids, and no wait is
    endless."""
    rng = random.Random(seed)
    for tokenizer in (save(tmp_path, byte_level()), byte_fallback(tmp_path)):
        low, high = (0, 255) if tokenizer.bos_id is None else (3, tokenizer.vocab_size - 1)
        ids = [rng.randint(low, high) for _ in range(300)]
        detokenizer, given = Detokenizer(tokenizer), ""
        for count, id in enumerate(ids, 1):
            given += detokenizer.push([id])
            if tokenizer.bos_id is None:
                assert tokenizer.decode(ids[:count]).startswith(given)
                assert len(tokenizer.decode(ids[:count])) - len(given) <= 9
        given += detokenizer.flush()
        assert given.rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd") or tokenizer.bos_id is not None


@pytest.mark.timeout(10)
def test_endless_broken_bytes_stay_quick(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, byte_level())
    broken = tokenizer._backend.token_to_id("ÿ")  # byte 0xFF, which no UTF-8 text has
    detokenizer = Detokenizer(tokenizer)
    given = sum(len(detokenizer.push([broken])) for _ in range(5000))
    assert given >= 4990 and len(detokenizer._ids) < 100


def test_no_wait_for_an_unfinished_end(tale: MarlinTokenizer) -> None:
    fox = tale.encode("a 🦊")
    detokenizer = Detokenizer(tale)
    assert detokenizer.push(fox[:-1]) + detokenizer.flush() == "a "


# Stop strings -------------------------------------------------------------------------

STOPS = [
    ("hello world", ("wor",), "hello ", "wor"),
    ("hello world", ("xyz",), "hello world", None),
    ("hello world", ("world!",), "hello world", None),
    ("hello", ("hello",), "", "hello"),
    ("aaab", ("aab",), "a", "aab"),
    ("ababac", ("abac",), "ab", "abac"),
    ("one\n\ntwo", ("\n\n", "two"), "one", "\n\n"),
    ("abcdef", ("cd", "cdef"), "ab", "cdef"),
    ("abcdef", ("f", "bc"), "a", "bc"),
    ("a 🦊 b", ("🦊",), "a ", "🦊"),
    ("é日本", ("日",), "é", "日"),
]


@pytest.mark.parametrize(("text", "stop", "want", "met"), STOPS)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_stop_strings(
    tale: MarlinTokenizer, text: str, stop: tuple[str, ...], want: str, met: str | None, size: int
) -> None:
    ids = tale.encode(text)
    detokenizer, given = Detokenizer(tale, stop=stop), ""
    for at in range(0, len(ids), size):
        given += detokenizer.push(ids[at : at + size])
        assert want.startswith(given)
    given += detokenizer.flush()
    if size == 100 or met != "cdef":
        assert detokenizer.stopped == met
    assert (given == want and detokenizer.push(ids) == ""[: 0 if met else None]) or met is None


def test_bad_stop_strings(tale: MarlinTokenizer) -> None:
    with pytest.raises(ValueError, match="stop strings must not be empty"):
        Detokenizer(tale, stop=["a", ""])
    assert Detokenizer(tale, stop="end").push(tale.encode("the end")) == "the "


# Files --------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json"):
        MarlinTokenizer(tmp_path)


SOUND = json.loads(byte_level(AddedToken("<s>", special=True)).to_str())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        "\x00",
        "{",
        json.dumps(SOUND)[:-1],
        json.dumps(SOUND | {"model": {}}),
        json.dumps(SOUND | {"model": {"type": "X", "vocab": {}}}),
        json.dumps(SOUND | {"version": "9"}),
        json.dumps(SOUND | {"decoder": 1}),
        json.dumps(SOUND | {"pre_tokenizer": {"type": "Nope"}}),
        json.dumps(SOUND | {"model": SOUND["model"] | {"merges": ["a b c", "zz"]}}),
        json.dumps(SOUND | {"model": SOUND["model"] | {"vocab": {"a": -1}}}),
        json.dumps(SOUND | {"model": SOUND["model"] | {"vocab": {"a": 2**40}}}),
        json.dumps(SOUND | {"added_tokens": [{"id": 0}]}),
        json.dumps(
            SOUND
            | {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "("},
                    "behavior": "Isolated",
                    "invert": False,
                }
            }
        ),
    ],
)
def test_bad_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"^tokenizer\.json: "):
        MarlinTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"eos_token": 5}, "eos_token must be a string, got 5"),
        ({"eos_token": ["</s>"]}, "eos_token must be a string"),
        ({"eos_token": {"content": 1}}, "eos_token must be a string, got 1"),
        ({"bos_token": "<nope>"}, "bos_token '<nope>' is not in tokenizer.json"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true or false, got 'yes'"),
        (
            {"chat_template": 1},
            "chat_template must be a string or a list of name and template, got 1",
        ),
        ({"chat_template": [{"name": "x"}]}, "chat_template must be a string or a list"),
        ({"chat_template": {"default": "x"}}, "chat_template must be a string or a list"),
        ({"chat_template": ["x"]}, "chat_template must be a string or a list"),
    ],
)
def test_bad_tokenizer_config(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        save(tmp_path, byte_level(), config)
    assert words in str(caught.value)


def test_backend_version() -> None:
    assert tuple(map(int, tokenizers.__version__.split(".")[:2])) >= (0, 22)
