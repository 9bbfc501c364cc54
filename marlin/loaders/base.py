"""What every loader returns, and the guarded ways to touch the files of a model folder.

Checkpoints are untrusted: names are checked against the folder, JSON has limits, and whatever is
wrong becomes a ModelFormatError that names the file and the key.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from marlin.errors import ModelFormatError

READ_LIMIT: Final = 1 << 28  # bytes that Checkpoint.read accepts: weights go through C, not through here
ROWS_NUMBERS: Final = 1 << 21  # of an embedding that are decoded at a time
JSON_DEPTH: Final = 64
JSON_BYTES: Final = 32 << 20
JSON_VALUES: Final = 4 << 20  # separators in a JSON text: bounds the memory that parsing it can take

# dtype name -> (bits of an element, NumPy dtype of what read() returns, or the ml_dtypes name)
DTYPES: Final[dict[str, tuple[int, str]]] = {
    "f64": (64, "<f8"),
    "f32": (32, "<f4"),
    "f16": (16, "<f2"),
    "bf16": (16, "bfloat16"),
    "e4m3": (8, "float8_e4m3fn"),
    "e5m2": (8, "float8_e5m2"),
    "e8m0": (8, "float8_e8m0fnu"),
    "i64": (64, "<i8"),
    "i32": (32, "<i4"),
    "i16": (16, "<i2"),
    "i8": (8, "|i1"),
    "u64": (64, "<u8"),
    "u32": (32, "<u4"),
    "u16": (16, "<u2"),
    "u8": (8, "|u1"),
    "bool": (8, "|b1"),
}


def show(value: object, limit: int = 80) -> str:
    """repr() for error texts, shortened: keys and values come from files of any size."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    elif isinstance(value, list | tuple | dict) and len(value) > 16:
        return f"a {type(value).__name__} of {len(value)} entries"
    elif isinstance(value, int) and abs(value) >= 1 << 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes at `offset` of the file `path`, all checked against the
    file.

    dtype is a key of DTYPES; shape is row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def read(self) -> NDArray[Any]:
        """The tensor as an array (bf16 and fp8 as ml_dtypes). For small ones: ValueError over
        READ_LIMIT."""
        if self.nbytes > READ_LIMIT:
            raise ValueError(f"{self.name}: {self.nbytes} bytes are too many to read into an array")
        with open_file(self.path) as file:
            file.seek(self.offset)
            data = file.read(self.nbytes)
        if len(data) != self.nbytes:
            raise ModelFormatError(f"{self.path.name}: cut short while tensor {show(self.name)} was read")
        return np.frombuffer(bytearray(data), numpy_dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class QuantizedTensor:
    """The weight (n, k) of a linear layer in one of Marlin's formats, as planes that lie in files.

    weight   rows of k * bits / 8 bytes, little-endian, element j in bits j * bits and up;
             int8 is "i8" (signed) or "i32" words of biased bytes, like int4
    scale    (n, groups), or fewer elements that apply to all rows: `read_scale` spreads them
    zero     zero points as stored, `read_zero` gives them as (n, groups) uint8
    group    weights a scale, 0 = the whole row
    """

    name: str
    format: str
    bits: int
    group: int
    shape: tuple[int, int]
    weight: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None = None
    global_scale: float = 1.0  # w = value * scale * global_scale

    @property
    def groups(self) -> int:
        """Scales a row."""
        return -(-self.shape[1] // self.group) if self.group else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all planes in the files."""
        return self.weight.nbytes + self.scale.nbytes + (self.zero.nbytes if self.zero else 0)

    @property
    def scale_is_plane(self) -> bool:
        """True when the scale tensor is (n, groups) as it lies, so that C can stream it."""
        return self.scale.shape == (self.shape[0], self.groups)

    def read_scale(self) -> NDArray[Any]:
        """Scales (n, groups) in the dtype of the file."""
        scale = self.scale.read()
        if scale.size == 1:
            return np.full((self.shape[0], self.groups), scale.reshape(()), scale.dtype)
        return scale.reshape(self.shape[0], self.groups)

    def read_zero(self) -> NDArray[np.uint8] | None:
        """Zero points (n, groups) as uint8, biased like the codes (8 or 128 is the middle); None if
        symmetric."""
        if self.zero is None:
            return None
        stored = self.zero.read()
        if stored.dtype == np.int8:
            return (stored.astype(np.int16) + 128).astype(np.uint8).reshape(self.shape[0], self.groups)
        # (ceil(n * bits / 32), groups) words: the rows of a group lie in consecutive bits of a
        # column.
        columns = np.ascontiguousarray(stored.view(np.uint32).T)
        return np.ascontiguousarray(unpack_words(columns, self.bits)[:, : self.shape[0]].T)

    def read_codes(self) -> NDArray[np.uint8]:
        """The stored codes (n, k), one a byte; signed int8 is biased to 0 .. 255."""
        stored = self.weight.read()
        if stored.dtype == np.int8:
            return stored.view(np.uint8) ^ np.uint8(0x80)
        if stored.dtype == np.int32:
            return unpack_words(stored.view(np.uint32), self.bits)[:, : self.shape[1]]
        codes = stored.view(np.uint8)
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(self.shape[0], -1)
        return codes

    def dequantize(self) -> NDArray[np.float32]:
        """The weights (n, k) in float32; for references and tests."""
        n, k = self.shape
        codes = self.read_codes()
        scale = self.read_scale().astype(np.float32) * np.float32(self.global_scale)
        if self.format in ("int8", "int4"):
            zero = self.read_zero()
            middle = np.float32(1 << (self.bits - 1))
            offset = middle if zero is None else self._spread(zero.astype(np.float32))
            values = codes.astype(np.float32) - offset
        else:
            import ml_dtypes

            number = {
                "fp8_e4m3": ml_dtypes.float8_e4m3fn,
                "fp8_e5m2": ml_dtypes.float8_e5m2,
                "fp4_e2m1": ml_dtypes.float4_e2m1fn,
            }[self.format]
            table = np.arange(1 << self.bits, dtype=np.uint8).view(number).astype(np.float32)
            values = table[codes]
        return (values * self._spread(scale)).reshape(n, k)

    def _spread(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(plane, self.group or self.shape[1], axis=1)[:, : self.shape[1]]


@dataclass(frozen=True)
class TrellisTensor:
    """The weight of a linear layer as an EXL3 trellis (marlin.loaders.exl3 says what its tensors are).

    suh and svh are f16, or i16 with packed signs in old files.
    """

    name: str
    bits: float
    codebook: str
    trellis: TensorInfo
    suh: TensorInfo
    svh: TensorInfo

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): outputs and inputs, rounded up to multiples of 128."""
        return 16 * self.trellis.shape[1], 16 * self.trellis.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the files."""
        return self.trellis.nbytes + self.suh.nbytes + self.svh.nbytes

    def read_scales(self) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """suh (k) and svh (n)."""
        from marlin.trellis import unpack_signs

        stored = self.suh.read(), self.svh.read()
        suh, svh = (scale if scale.dtype == np.float16 else unpack_signs(scale) for scale in stored)
        return suh, svh


@dataclass(frozen=True)
class RowTrellis:
    """An embedding as EXL3 codes it: rows that can be decoded one by one (marlin.trellis.decode_rows)."""

    name: str
    bits: int
    trellis: TensorInfo
    signs: TensorInfo

    codebook = "mul1"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), columns rounded up to a multiple of 256."""
        return self.trellis.shape[0], 256 * self.signs.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the files."""
        return self.trellis.nbytes + self.signs.nbytes

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first row and the decoded rows of one block after the other. ModelFormatError for scales inf or nan."""
        from marlin.trellis import decode_rows

        signs = self.signs.read()
        rows, columns = self.shape
        row_bytes = self.trellis.nbytes // rows
        step = max(1, ROWS_NUMBERS // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            part = replace(
                self.trellis, shape=(count, self.trellis.shape[1]), nbytes=count * row_bytes,
                offset=self.trellis.offset + first * row_bytes,
            )  # fmt: skip
            try:
                yield first, decode_rows(part.read().view(np.uint16), signs)
            except ValueError as error:
                raise ModelFormatError(f"tensor {show(self.trellis.name)}: {error}") from error


def unpack_words(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """(rows, words) uint32 -> (rows, words * 32 / bits) codes; code j lies at bit j * bits % 32.
    bits 4 or 8."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(len(words), -1)


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: every tensor by name, with nothing read but headers.

    tensors     what lies in the files, planes of quantized weights included
    quantized   quantized weights, by the name of their module ("model.layers.0.mlp.up_proj"); trellis and
                row_trellis likewise
    config      config.json ({} if the folder has none); generation_config likewise
    """

    folder: Path
    loader: str
    tensors: dict[str, TensorInfo]
    config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    quantized: dict[str, QuantizedTensor] = field(default_factory=dict)
    trellis: dict[str, TrellisTensor] = field(default_factory=dict)
    row_trellis: dict[str, RowTrellis] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({tensor.path for tensor in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name. Raises ModelFormatError, naming the nearest ones, if there is
        none."""
        if name not in self.tensors:
            self._missing(name)
        return self.tensors[name]

    def linear(self, module: str) -> TensorInfo | QuantizedTensor | TrellisTensor | RowTrellis:
        """The weight of a module, in whichever form the checkpoint has it."""
        for coded in (self.quantized, self.trellis, self.row_trellis):
            if module in coded:
                return coded[module]
        return self.tensor(module + ".weight")

    def read(self, name: str) -> NDArray[Any]:
        """A small tensor as an array."""
        return self.tensor(name).read()

    def _missing(self, name: str) -> NoReturn:
        import difflib

        close = difflib.get_close_matches(name, list(self.tensors)[:20000], n=2, cutoff=0.8)
        hint = f" (it has {' and '.join(map(show, close))})" if close else ""
        raise ModelFormatError(f"{self.folder.name}: the checkpoint has no tensor {show(name)}{hint}")


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype of a name of DTYPES; bf16 and fp8 need ml_dtypes, imported here."""
    name = DTYPES[dtype][1]
    if name[0] in "<|":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * DTYPES[dtype][0] // 8


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a model folder, resolved.

    Raises ModelFormatError for a name with a folder in it, for a link that leaves the model, for
    what is no regular file. Links into `blobs` beside `snapshots` are how the Hugging Face cache
    stores files: allowed.
    """
    if not name or name in (".", "..") or len(name) > 255 or any(c in name for c in "/\\:\0"):
        raise ModelFormatError(f"{folder.name}: {show(name)} is not the plain name of a file in the model's folder")
    path = folder / name
    try:
        root = folder.resolve()
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise ModelFormatError(f"{folder.name}: file {show(name)} is missing") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFormatError(f"{folder.name}: file {show(name)} cannot be opened: {error}") from None
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if real.parent not in roots:
        raise ModelFormatError(f"{folder.name}: file {show(name)} is a link that leaves the model's folder")
    if not stat.S_ISREG(mode):
        raise ModelFormatError(f"{folder.name}: {show(name)} is not a regular file")
    return real


def open_file(path: Path) -> Any:
    """open(path, "rb"), unbuffered, with OSError turned into ModelFormatError."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ModelFormatError(f"{path.name}: cannot be opened: {error.strerror}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole small file; ModelFormatError if it is larger than `limit` bytes."""
    with open_file(path) as file:
        data: bytes = file.read(limit + 1) or b""
        while len(data) <= limit and (more := file.read(limit + 1 - len(data))):
            data += more
    if len(data) > limit:
        raise ModelFormatError(f"{path.name}: larger than {limit} bytes")
    return data


def read_json(folder: Path, name: str, *, optional: bool = False, limit: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file of the model's folder; {} if `optional` and the file does not
    exist."""
    if optional and not (folder / name).exists():
        return {}
    return parse_json(read_bytes(inside(folder, name), limit), name)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Strict JSON: an object, UTF-8, no duplicate keys, no NaN, bounded depth and size.

    `where` begins the error texts. Python's own parser takes the last of two equal keys, NaN and
    any depth.
    """
    if sum(data.count(mark) for mark in b",:[{") > JSON_VALUES:
        raise ModelFormatError(f"{where}: more than {JSON_VALUES} values")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    raise ModelFormatError(f"{where}: key {show(key)} appears twice")
                seen.add(key)
        return result

    def constant(text: str) -> NoReturn:
        raise ModelFormatError(f"{where}: {text} is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{where}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ModelFormatError(f"{where}: nested deeper than {JSON_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ModelFormatError(f"{where}: not JSON: {error.msg} at character {error.pos}") from None
    except ModelFormatError:
        raise
    except ValueError:  # int() refuses thousands of digits
        raise ModelFormatError(f"{where}: a number has too many digits") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{where}: must be a JSON object, got {show(value)}")
    _check_depth(value, where)
    return value


def _check_depth(value: Mapping[str, Any], where: str) -> None:
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ModelFormatError(f"{where}: nested deeper than {JSON_DEPTH}")
