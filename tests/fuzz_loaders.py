#!/usr/bin/env python3
"""Mutation fuzzing of everything that reads a model folder.

    python tests/fuzz_loaders.py --cases 1000000 --seed 1

A sound folder is taken, one of its files damaged, the folder opened. Allowed outcomes: it opens and
its invariants hold, or MarlinError or ValueError is raised; within a second, in bounded memory.
Anything else is printed with the seed that repeats it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from marlin import tokenizer as marlin_tokenizer
from marlin.config import read_config, rope_frequencies
from marlin.detokenize import Detokenizer
from marlin.errors import MarlinError
from marlin.loaders import compressed_tensors, open_checkpoint, safetensors
from marlin.loaders.base import tensor_bytes

SECONDS = 1.0
MEMORY = 256 << 20

# Values that break readers: limits of integer types, wrong types, hostile texts.
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1,
    2**63, 2**64, 2**200, -(2**31), -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, -1.5, "", "0", "\0",
    "\ud800", "../x", "/etc/passwd", "a" * 1000, "re:(a+)+$", "re:.*", "re:[", "F32", "I8", "llama",
    "<s>", "{{ x }}", [], {}, [[]], [0], [-1], [2**62, 4], [1] * 100, {"a": {}}, ["x"], [None],
    {"rope_type": "yarn", "factor": 4.0}, [[[[[[]]]]]],
]  # fmt: skip


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or overwrite some bytes."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(buffer) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(buffer):
            buffer[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del buffer[at:]
        elif kind == 2:
            buffer[at:at] = rng.choice((b"\0", b"\xff", b"{", b"}", b"[", b'"', b",", b"9", bytes(64)))
        elif kind == 3:
            end = min(len(buffer), at + rng.randrange(1, 64))
            buffer[at:at] = buffer[at:end]
        elif kind == 4:
            del buffer[at : at + rng.randrange(1, 16)]
        else:
            buffer[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(buffer))))
    return bytes(buffer)


def spoil_json(rng: random.Random, value: Any) -> Any:
    """A copy with one node replaced, removed, renamed, doubled or exchanged with another."""
    value = copy.deepcopy(value)
    nodes: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            nodes.append((part, key))
            if isinstance(part[key], dict | list):
                waiting.append(part[key])
    for _ in range(rng.choice((1, 1, 2, 4))):
        part, key = rng.choice(nodes)
        if (isinstance(part, dict) and key not in part) or (isinstance(part, list) and key >= len(part)):
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del part[key]
        elif kind == 1 and isinstance(part, dict):
            part[rng.choice(("", "a", "type", "__metadata__", "weight", "\ud800"))] = part.pop(key)
        elif kind == 2 and isinstance(part[key], int) and not isinstance(part[key], bool):
            part[key] += rng.choice((-1, 1, 8, -8, 2**32))
        elif kind == 3:
            other, other_key = rng.choice(nodes)
            if isinstance(other, dict) and other_key in other:
                part[key] = copy.deepcopy(other[other_key])
        else:
            part[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def dump(rng: random.Random, value: Any) -> bytes:
    """JSON text, now and then damaged as text too."""
    data = json.dumps(value).encode()
    return spoil_bytes(rng, data) if rng.random() < 0.1 else data


class Folders:
    """Sound model folders to start from, and folders for what is damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        dense = {
            "x.weight": rng.normal(size=(6, 64)).astype(np.float32),
            "norm.weight": np.ones(64, np.float16),
        }
        self.config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "vocab_size": 300,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "eos_token_id": [2, 3],
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        }
        self.generation = {
            "eos_token_id": 2,
            "temperature": 0.8,
            "top_k": 40,
            "top_p": 0.95,
            "do_sample": True,
        }
        plain = root / "plain"
        plain.mkdir()
        safetensors.save(plain / "model.safetensors", dense, {"format": "pt"})
        (plain / "config.json").write_text(json.dumps(self.config))
        self.quantized = []
        forms = (("int4", 32, True, "f16"), ("int8", 0, True, "f16"), ("fp8_e4m3", 0, False, "f16"),
                 ("fp4_e2m1", 16, False, "e4m3"), ("fp4_e2m1", 32, False, "e8m0"))  # fmt: skip
        for at, (format, group, zero, scale) in enumerate(forms):
            folder = root / f"quantized{at}"
            compressed_tensors.save_quantized(plain, folder, format, group=group, zero=zero, scale=scale)
            self.quantized.append(folder)
        self.plain = plain
        self.file = (plain / "model.safetensors").read_bytes()
        trellises = root / "trellises"
        trellises.mkdir()
        self.exl3_tensors = {
            "a.trellis": rng.integers(-99, 99, (8, 16, 40), np.int16),
            "a.suh": np.ones(128, np.float16),
            "a.svh": np.ones(256, np.float16),
            "a.mul1": np.array(1, np.int32),
            "b.trellis": rng.integers(-99, 99, (8, 8, 16), np.int16),
            "b.su": np.arange(8, dtype=np.int16),
            "b.sv": np.arange(8, dtype=np.int16),
            "b.mcg": np.array(1, np.int32),
            "c.trellis": rng.integers(-99, 99, (5, 98), np.int16),
            "c.signs": np.ones((2, 256), np.float16),
            "norm.weight": np.ones(64, np.float16),
        }
        safetensors.save(trellises / "model.safetensors", self.exl3_tensors)
        self.exl3 = (trellises / "model.safetensors").read_bytes()
        self.tokenizers = [json.loads(backend.to_str()) for backend in (byte_level(), byte_fallback())]

    def work(self, name: str, files: dict[str, bytes]) -> Path:
        """A folder of these files. The same one for each name: making and removing folders is
        slow."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        return folder


def byte_level() -> Tokenizer:
    vocab = {char: id for id, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab | {"ab": 256}, [("a", "b")]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<s>", special=True), AddedToken("<think>", special=False)])
    return backend


def byte_fallback() -> Tokenizer:
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
    ]
    vocab = {word: id for id, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def check_checkpoint(folder: Path) -> None:
    """Open, and hold the reader to its word: every tensor inside its file, none over another."""
    checkpoint = open_checkpoint(folder)
    ends: dict[Path, int] = {}
    for info in sorted(checkpoint.tensors.values(), key=lambda info: (info.path, info.offset, info.nbytes)):
        assert info.nbytes == tensor_bytes(info.dtype, info.shape)
        assert info.offset >= ends.get(info.path, 8)
        ends[info.path] = info.offset + info.nbytes
        assert info.read().shape == info.shape
    for path, end in ends.items():
        assert end == path.stat().st_size and path.parent == folder.resolve()
    for t in checkpoint.trellis.values():
        n, k = t.shape
        assert n % 128 == 0 and k % 128 == 0 and t.trellis.nbytes * 8 == n * k * t.bits
        assert [scale.shape for scale in t.read_scales()] == [(k,), (n,)]
    for rows in checkpoint.row_trellis.values():
        assert sum(len(block) for _, block in rows.blocks()) == rows.shape[0] and rows.bits in range(1, 9)
    for q in checkpoint.quantized.values():
        assert q.dequantize().shape == q.shape and q.read_scale().shape == (q.shape[0], q.groups)


def fuzz_safetensors(rng: random.Random, folders: Folders) -> None:
    if rng.random() < 0.5:
        data = spoil_bytes(rng, folders.file)
    else:
        (length,) = struct.unpack("<Q", folders.file[:8])
        header = dump(rng, spoil_json(rng, json.loads(folders.file[8 : 8 + length])))
        data = struct.pack("<Q", len(header)) + header + folders.file[8 + length :]
    check_checkpoint(folders.work("single", {"model.safetensors": data}))


def fuzz_index(rng: random.Random, folders: Folders) -> None:
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"x.weight": "a.safetensors", "norm.weight": "a.safetensors"},
    }
    spoilt = dump(rng, spoil_json(rng, index))
    check_checkpoint(folders.work("sharded", {"a.safetensors": folders.file, "model.safetensors.index.json": spoilt}))


def fuzz_config(rng: random.Random, folders: Folders) -> None:
    config, generation = folders.config, folders.generation
    if rng.random() < 0.5:
        config = config | {"model_type": rng.choice(("llama", "mistral", "qwen2", "qwen3"))}
    if rng.random() < 0.5:
        scaling = {
            "rope_type": rng.choice(("linear", "yarn", "default")),
            "factor": 4.0,
            "rope_theta": 1e6,
        }
        config = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
        config = config | {"rope_parameters": scaling}
    if rng.random() < 0.8:
        config = spoil_json(rng, config)
    else:
        generation = spoil_json(rng, generation)
    parsed = read_config(config, generation)
    assert parsed.heads % parsed.kv_heads == 0 and parsed.rope.dim % 2 == 0
    inverse, scale = rope_frequencies(parsed)
    assert len(inverse) == parsed.rope.dim // 2 and np.isfinite(inverse).all() and np.isfinite(scale)


def fuzz_quantized(rng: random.Random, folders: Folders) -> None:
    source = rng.choice(folders.quantized)
    config = json.loads((source / "config.json").read_text())
    data = (source / "model.safetensors").read_bytes()
    if rng.random() < 0.6:
        config["quantization_config"] = spoil_json(rng, config["quantization_config"])
    else:
        (length,) = struct.unpack("<Q", data[:8])
        header = dump(rng, spoil_json(rng, json.loads(data[8 : 8 + length])))
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    check_checkpoint(folders.work("spoilt", {"config.json": dump(rng, config), "model.safetensors": data}))


def spoil_tensors(rng: random.Random, tensors: dict[str, Any]) -> dict[str, Any]:
    """Some of them dropped, renamed, of another shape or another dtype."""
    tensors = dict(tensors)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(sorted(tensors))
        tensor, kind = tensors.pop(name), rng.randrange(4)
        if kind == 1:
            suffix = rng.choice(
                ("trellis", "suh", "svh", "su", "sv", "signs", "mul1", "mcg", "bias", "weight", "trellis.trellis")
            )
            tensors[f"{rng.choice('abc')}.{suffix}"] = tensor
        elif kind == 2:
            sizes = (0, 1, 7, 8, 16, 24, 40, 128, 129)
            tensors[name] = np.zeros([rng.choice(sizes) for _ in range(rng.randrange(4))], tensor.dtype)
        elif kind == 3:
            tensors[name] = tensor.astype(rng.choice((np.int16, np.uint16, np.int32, np.float16, np.float32)))
    return tensors


def fuzz_exl3(rng: random.Random, folders: Folders) -> None:
    config: Any = {"quantization_config": {"quant_method": "exl3", "bits": 2.5, "out_scales": "always"}}
    data = folders.exl3
    kind = rng.random()
    if kind < 0.5:  # a sound file whose tensors do not belong together
        folder = folders.work("trellis", {"config.json": dump(rng, config)})
        safetensors.save(folder / "model.safetensors", spoil_tensors(rng, folders.exl3_tensors))
        return check_checkpoint(folder)
    if kind < 0.6:
        config = spoil_json(rng, config)
    else:
        (length,) = struct.unpack("<Q", data[:8])
        header = dump(rng, spoil_json(rng, json.loads(data[8 : 8 + length])))
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    check_checkpoint(folders.work("trellis", {"config.json": dump(rng, config), "model.safetensors": data}))


def fuzz_tokenizer(rng: random.Random, folders: Folders) -> None:
    config: Any = {
        "bos_token": "<s>",
        "eos_token": {"content": "<s>"},
        "add_bos_token": True,
        "chat_template": "x",
    }
    files = rng.choice(folders.tokenizers)
    if rng.random() < 0.7:
        files = spoil_json(rng, {**files, "model": {**files["model"]}})
    else:
        config = spoil_json(rng, config)
    folder = folders.work("words", {"tokenizer.json": dump(rng, files), "tokenizer_config.json": dump(rng, config)})
    tokenizer = marlin_tokenizer.Tokenizer(folder)
    ids = tokenizer.encode("ab a <s> <think> é🦊", bos=True)
    assert not tokenizer.control_ids & set(ids[len(tokenizer.begin_ids) :])
    Detokenizer(tokenizer, stop=["x"]).push(ids)


TARGETS: dict[str, Callable[[random.Random, Folders], None]] = {
    "safetensors": fuzz_safetensors,
    "index": fuzz_index,
    "config": fuzz_config,
    "quantized": fuzz_quantized,
    "exl3": fuzz_exl3,
    "tokenizer": fuzz_tokenizer,
}


def run(cases: int, seed: int = 0, target: str | None = None) -> list[str]:
    """Run that many cases; what went wrong, one line each, with the seed of the case."""
    failures = []
    names = [target] if target else list(TARGETS)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # three times as many cases a second
    with tempfile.TemporaryDirectory(dir=memory) as root:
        folders = Folders(Path(root))
        for case in range(seed, seed + cases):
            name = names[case % len(names)]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begin = time.monotonic()
            wrong = None
            try:
                TARGETS[name](random.Random(case), folders)
            except (MarlinError, ValueError) as error:
                if len(str(error)) > 1000:
                    wrong = f"a message of {len(str(error))} characters"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                wrong = f"{type(error).__name__}: {error}"[:300]
            if time.monotonic() - begin > SECONDS:
                wrong = f"took {time.monotonic() - begin:.1f} s"
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if grown > MEMORY:
                wrong = f"took {grown >> 20} MiB"
            if wrong:
                failures.append(f"--target {name} --seed {case} --cases 1: {wrong}")
    return failures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    options = parser.parse_args()
    failures = run(options.cases, options.seed, options.target)
    print("\n".join(failures) or f"{options.cases} cases, nothing wrong")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
