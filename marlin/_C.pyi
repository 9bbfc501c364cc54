"""The C extension: devices, Tensors, captured programs, weights, attention, sampling.

Tensors are dense and row-major, of 1 to 4 dimensions, each at least 1. dtypes are strings: f32 f16
bf16 i32 u32 u8 i8 u16. Operations are recorded and run later, in order; reading waits. An argument
of a wrong kind is a TypeError, one of a wrong shape or value a ValueError, both before anything is
recorded. Every call may raise DeviceError after a fork and DeviceLostError after a loss.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, TypeAlias, final, overload

from numpy.typing import NDArray
from typing_extensions import Buffer

# NumPy declares its arrays as buffers from Python 3.12 on.
_Data: TypeAlias = Buffer | NDArray[Any]

class MarlinError(Exception): ...
class ModelFormatError(MarlinError, ValueError): ...
class UnsupportedModelError(MarlinError): ...
class DeviceError(MarlinError): ...
class DeviceLostError(DeviceError): ...
class DeviceOutOfMemory(DeviceError, MemoryError): ...
class CancelledError(MarlinError): ...
class QueueFull(MarlinError): ...

# One a device, best first; [] without Vulkan. Keys: index name driver kind uuid driver_uuid (hex)
# vendor device_id driver_version api_version ("1.3.0") features (list) missing ("" when usable)
# subgroup_size subgroup_min subgroup_max shared_bytes max_workgroup max_groups memory_bytes
# max_allocation timestamp_ns.
def list_devices() -> list[dict[str, Any]]: ...
def vulkan_error() -> str | None: ...  # why list_devices() is empty, with the remedy
def fork_remedy() -> str: ...  # in a child forked from a process with Vulkan open: the end of an error text; else ""

# formats.def: name bits math scale zero default_group text
def formats() -> list[dict[str, Any]]: ...
def kernels() -> list[dict[str, Any]]: ...  # kernels.def: name source variants needs
def features() -> list[dict[str, str]]: ...  # features.def: name text

# Validation layers; MarlinError after the first use of Vulkan.
def set_vulkan_debug(on: bool, /) -> None: ...
def vulkan_messages() -> tuple[int, str]: ...  # how many so far, and the text of the last

# Copies a C-contiguous buffer. dtype says what its elements are (bfloat16 comes as uint16); bytes
# may be called anything. Without it the buffer's format says so; float64, int64 and the like:
# TypeError.
def tensor(device: Device, data: _Data, dtype: str | None = None, shape: Sequence[int] | None = None) -> Tensor: ...
def empty(device: Device, shape: Sequence[int], dtype: str = "f32") -> Tensor: ...

# Memory that repeats a 32-bit word.
def full(device: Device, shape: Sequence[int], word: int = 0, dtype: str = "f32") -> Tensor: ...

@final
class Device:
    # disable: names of features() to hide. shaders: path of shaders.bin, beside this module when
    # not given. cache: folder of the pipeline cache.
    def __init__(
        self,
        index: int = 0,
        *,
        disable: Sequence[str] = (),
        shaders: str | PathLike[str] = ...,
        cache: str | PathLike[str] | None = None,
    ) -> None: ...
    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...  # discrete integrated virtual other software
    @property
    def driver(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...]: ...  # without the disabled ones
    @property
    def lost(self) -> bool: ...
    def info(self) -> dict[str, Any]: ...  # the row of list_devices(), without disabled features
    # Bytes: device_used device_reserved host_used host_reserved device_budget device_peak.
    def memory(self) -> dict[str, int]: ...
    def sync(self) -> None: ...
    def capture(self) -> Program: ...
    def profile_start(self) -> None: ...
    def profile_stop(self) -> list[dict[str, Any]]: ...  # a dispatch: name ns bytes flops barrier
    # For tests: random order between barriers; a barrier after each dispatch; no write but where
    # declared (ValueError where the device is not host-visible).
    def set_debug(self, *, shuffle: bool = False, serial: bool = False, check: bool = False, seed: int = 0) -> None: ...
    # For tests: the nth submission ("lost"), device allocation ("memory") or host allocation
    # ("host") from now fails; 0 clears.
    def inject(self, kind: str, nth: int) -> None: ...
    def save_cache(self) -> None: ...

# Exports its memory by the buffer protocol where the host sees it (bf16 as "H"), else BufferError.
@final
class Tensor:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> Device: ...
    def __len__(self) -> int: ...
    # A view of the leading axis: a row, or rows (step 1, at least one). A row of a vector has
    # shape (1,).
    def __getitem__(self, key: int | slice) -> Tensor: ...
    def reshape(self, *shape: int) -> Tensor: ...  # a view; one size may be -1
    def astype(self, dtype: str) -> Tensor: ...  # f32 f16 bf16 among each other, on the device
    def tobytes(self) -> bytes: ...
    # an array over the same memory where the host sees it, else over a copy
    def numpy(self) -> NDArray[Any]: ...
    def write(self, data: _Data, /) -> None: ...  # nbytes of them
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]: ...
    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...  # (1, 0): host memory, if need be a copy

# A result of one row that its workgroups left in shares, for others to add up as they read it: mla, where it is q, or,
# of shares that are to be added to a base (those of MoE: the residual, read when they are), TrellisLinear.
@final
class Shares:
    @property
    def shape(self) -> tuple[int, int]: ...  # (1, columns)
    @property
    def count(self) -> int: ...
    @property
    def device(self) -> Device: ...

# `with device.capture() as program:` records what this thread calls on the device. An exception
# leaves the program empty.
@final
class Program:
    @property
    def device(self) -> Device: ...
    def __enter__(self) -> Program: ...
    def __exit__(self, *exc: object) -> None: ...
    def replay(self, wait: bool = False) -> None: ...
    # dispatches barriers submissions arena_bytes read_bytes write_bytes (declared) flops
    @property
    def stats(self) -> dict[str, Any]: ...

# Weights (n, k) in a format. group None: the format's default; 0: a scale a row. Planes are
# zero-filled.
@final
class Linear:
    def __init__(
        self,
        device: Device,
        n: int,
        k: int,
        format: str = "f16",
        *,
        group: int | None = None,
        scale: str | None = None,
        zero: bool = False,
        global_scale: float = 1.0,
        memory: str = "device",  # or "host": kernels read the weights over the bus
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def group(self) -> int: ...
    @property
    def scale(self) -> str | None: ...
    @property
    def zero(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> Device: ...
    @property
    def global_scale(self) -> float: ...
    # {"quant": ((n, row_bytes), "u8"), "scale": ((n, groups), "f16"), ...}
    @property
    def planes(self) -> dict[str, tuple[tuple[int, ...], str]]: ...
    # Dense rows (rows, k) f32 f16 bf16, quantized or converted on the device; row i becomes row
    # row_start + i * row_stride.
    def load_rows(
        self,
        path: str | PathLike[str],
        offset: int,
        nbytes: int,
        dtype: str,
        rows: int,
        *,
        row_start: int = 0,
        row_stride: int = 1,
    ) -> None: ...
    def set_rows(self, data: _Data, dtype: str, rows: int, *, row_start: int = 0, row_stride: int = 1) -> None: ...
    # Rows of a plane that is quantized already. quant: k * bits / 8 file bytes a row (padding is
    # added; int8 as "i8" is offset by 128); scale: f32 f16 bf16 e4m3 e8m0; zero: u8 (n, groups).
    def load_plane(
        self,
        plane: str,
        path: str | PathLike[str],
        offset: int,
        nbytes: int,
        dtype: str,
        rows: int,
        *,
        row_start: int = 0,
        row_stride: int = 1,
    ) -> None: ...
    def set_plane(
        self,
        plane: str,
        data: _Data,
        dtype: str,
        rows: int,
        *,
        row_start: int = 0,
        row_stride: int = 1,
    ) -> None: ...
    # The first rows over all behind them, again and again: random weights made quickly.
    def repeat_rows(self, count: int, /) -> None: ...
    def read_plane(self, plane: str, /) -> bytes: ...
    def set_bias(self, bias: Tensor | None, /) -> None: ...  # (n) f32
    # y = epilogue(norm(x) W^T + bias). x (m, k) or (k,); norm (k) f32; residual (m, n_out) f32.
    # activation: silu gelu gelu_tanh, or gated: swiglu geglu geglu_tanh (rows of W interleaved
    # gate0 up0 gate1 up1 ..., y (m, n / 2)). dtype: f32 with residual, else that of x (f16 when
    # norm is given). kernel forces a row of kernels().
    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: str | None = None,
        out: Tensor | None = None,
        kernel: str | None = None,
    ) -> Tensor: ...
    def dequantize(self, dtype: str = "f32") -> Tensor: ...  # (n, k)
    def embed(self, ids: Tensor, dtype: str = "f32") -> Tensor: ...  # ids (rows) i32 -> (rows, k)

# EXL3 trellis weights of a layer with n outputs and k inputs; zeros at first. bits: 1 .. 8, or 1.5, 2.5, 3.5
# with mul1. codebook: 3inst mcg mul1.
@final
class TrellisLinear:
    # experts: matrices of this size, one behind the other, for MoE; every method works on the one called `expert`.
    def __init__(
        self,
        device: Device,
        n: int,
        k: int,
        bits: float,
        codebook: str = "mul1",
        experts: int = 1,
        *,
        memory: str = "device",
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def bits(self) -> float: ...
    @property
    def codebook(self) -> str: ...
    @property
    def experts(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> Device: ...
    # Packed codes (k / 16, n / 16, 16 * bits) u16, of sizes rounded up to 128; repacked on the device.
    def load_trellis(self, path: str | PathLike[str], offset: int, nbytes: int, expert: int = 0) -> None: ...
    def set_trellis(self, data: _Data, expert: int = 0) -> None: ...
    def read_trellis(self, expert: int = 0) -> bytes: ...  # as they were loaded
    # (k), (n) f16, rounded up to 128; finite
    def set_scales(self, suh: _Data, svh: _Data, expert: int = 0) -> None: ...
    def set_bias(self, bias: Tensor | None, /) -> None: ...  # (n) f32
    # y = epilogue(norm(x) W + bias), as Linear. With swiglu, geglu, geglu_tanh: of act(gate) * x instead of norm(x),
    # gate like x. out may have more columns: n of them from `column` on are written. activations: f16 or int8 (mul1,
    # at most 16 rows). kernel forces trellis_gemv, trellis_gemv_coopmat (at most 64 rows), trellis_gemm or
    # trellis_gemm_coopmat.
    @overload
    def __call__(
        self,
        x: Tensor | Shares,
        *,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        activation: str | None = None,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
        dtype: str | None = None,
        out: Tensor | None = None,
        column: int = 0,
        activations: str | None = None,
        kernel: str | None = None,
        expert: int = 0,
        total: Tensor | None = None,
    ) -> Tensor: ...
    # The plain product of one row, left in Shares where that saves a wait, with the residual as base. x may be Shares
    # with a base; total (1, k) f32: where their sum goes.
    @overload
    def __call__(
        self,
        x: Tensor | Shares,
        *,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        activation: str | None = None,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
        dtype: str | None = None,
        activations: str | None = None,
        kernel: str | None = None,
        expert: int = 0,
        shares: bool,
        total: Tensor | None = None,
    ) -> Tensor | Shares: ...
    # the decoded matrix (k, n) f16, sizes rounded up to 128; exact
    def inner(self, expert: int = 0) -> Tensor: ...
    def dequantize(self, dtype: str = "f32", expert: int = 0) -> Tensor: ...  # W (k, n)

# (x * scales) P: x (rows, k), scales (k) f16, k a multiple of 128; P of orthonormal 128 x 128 Hadamard blocks. dtype
# f16: rounded as ExLlamaV3 rounds.
def hadamard(x: Tensor, scales: Tensor | None = None, dtype: str = "f32") -> Tensor: ...

# For benchmarks: sums of products of weights that are decoded from registers, as shaders/trellis/rate.comp says.
def trellis_rate(out: Tensor, bits: float, codebook: str, way: str, rounds: int = 1) -> None: ...

_GateUp: TypeAlias = Linear | tuple[TrellisLinear, TrellisLinear]
_Down: TypeAlias = Linear | TrellisLinear

@final
# y = residual + the weighted sum over the experts that the router chooses for norm(x); x (rows, hidden) or (hidden).
# router (experts [+ 1], hidden); gate_up ((experts + shared) * 2 * inner, hidden), gate and up rows alternating;
# down ((experts + shared) * hidden, inner). Of EXL3: (gate, up) and down, TrellisLinears of all experts. Experts of
# several formats: lists of those, stacks, and `stacks` says for each expert, shared ones last, in which one it lies,
# behind those of lower numbers. NaN among a row's logits makes its result NaN.
class MoE:
    def __init__(
        self,
        router: Linear,
        gate_up: _GateUp | list[_GateUp],
        down: _Down | list[_Down],
        *,
        experts: int,
        top_k: int,
        shared: int = 0,
        scoring: str = "softmax",
        normalise: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        group_best: int = 2,
        bias: Tensor | None = None,
        activation: str = "swiglu",
        stacks: Sequence[int] | None = None,
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def shared(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def inner(self) -> int: ...
    # (experts) u32: how often each was chosen.
    @property
    def usage(self) -> Tensor: ...
    def reset_usage(self) -> None: ...
    # Whether gate and up choose the experts of a single row, so that the router's workgroups wait for nobody.
    @property
    def open_choice(self) -> bool: ...
    # (rows, top_k + shared): ids i32, -1 in idle rows, and weights f32.
    def route(
        self, x: Tensor, *, norm: Tensor | None = None, eps: float = 1e-6, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...
    # dtype: of activations between the kernels, and of y without a residual. positions (rows) i32: rows with a
    # negative one are idle, nothing is computed for them. activations: f16, or int8 for trellises of mul1 (where
    # the rows of an expert do not go through matrices). kernel: "rows", "moe_gemv@tile", ... of csrc/ops/moe.h
    @overload
    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        residual: Tensor | None = None,
        dtype: str | None = None,
        out: Tensor | None = None,
        positions: Tensor | None = None,
        kernel: str | None = None,
        activations: str | None = None,
    ) -> Tensor: ...
    # With a residual: one row of experts in EXL3 may stay in Shares, which are to be added to it.
    @overload
    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        residual: Tensor | None = None,
        dtype: str | None = None,
        positions: Tensor | None = None,
        kernel: str | None = None,
        activations: str | None = None,
        shares: bool,
    ) -> Tensor | Shares: ...

class KVCache:
    def __init__(
        self,
        device: Device,
        *,
        layers: int,
        slots: int,
        context: int,
        kv_heads: int,
        dim: int,
        dtype: str = "f16",
        rank: int = 0,  # > 0: latent rows (kv_heads 1), the first rank elements are the values
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def layers(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def rank(self) -> int: ...
    # Views (slots, context, kv_heads, dim) of K and V; of a latent cache, its rows twice.
    def read(self, layer: int, /) -> tuple[Tensor, Tensor]: ...

# y, or with residual (y, x + residual); x (rows, columns), weight (columns) f32.
@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: None = None, dtype: str | None = None) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor, dtype: str | None = None
) -> tuple[Tensor, Tensor]: ...

# qkv (rows, (heads + 2 kv_heads) * dim); freq (rope_dim / 2) f32; positions, slots (rows) i32.
# Rotates q and k, writes k and v to the cache, then causal attention of each row over positions
# 0..positions[row] of its slot; a row with a negative position gives zeros and writes nothing. ->
# (rows, heads * dim). bound: upper bound of positions + 1. sequence: all rows are of one slot, at
# consecutive positions. gated: in qkv (rows, (2 heads + 2 kv_heads) * dim) a gate follows each head of q, whose sigmoid
# multiplies what the head gives.
def attention(
    qkv: Tensor,
    cache: KVCache,
    layer: int,
    positions: Tensor,
    slots: Tensor,
    freq: Tensor,
    *,
    heads: int,
    bound: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    rope_scale: float = 1.0,
    interleaved: bool = False,
    gated: bool = False,
    sequence: bool = False,
    dtype: str | None = None,
    kernel: str | None = None,
) -> Tensor: ...

# The first part of attention alone: -> rotated q (rows, heads * dim); writes the cache.
def rope(
    qkv: Tensor,
    cache: KVCache,
    layer: int,
    positions: Tensor,
    slots: Tensor,
    freq: Tensor,
    *,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    rope_scale: float = 1.0,
    interleaved: bool = False,
    gated: bool = False,
    dtype: str | None = None,
) -> Tensor: ...

# Latent attention. kv (rows, rank + rope_dim), normed by norm (rank) f32 and turned, goes to a cache with a rank; q
# (rows, heads * (nope + rope_dim)) attends over it. kv_b (heads * (nope + v_dim), rank) makes keys and values of
# latents. -> (rows, heads * v_dim). Rows may be of one slot or of several.
def mla(
    q: Tensor | Shares,
    kv: Tensor,
    norm: Tensor,
    kv_b: Linear,
    cache: KVCache,
    layer: int,
    positions: Tensor,
    slots: Tensor,
    freq: Tensor,
    *,
    heads: int,
    bound: int,
    eps: float = 1e-6,
    scale: float | None = None,
    rope_scale: float = 1.0,
    interleaved: bool = True,
    dtype: str | None = None,
    staged: bool = False,
    sequence: bool = False,
    kernel: str | None = None,
) -> Tensor: ...

# What the layers of a gated delta net remember of each slot, f32.
@final
class DeltaState:
    def __init__(
        self,
        device: Device,
        *,
        layers: int,
        slots: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        taps: int,
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def layers(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    # Views: the ring (slots, taps, channels), x at position p in entry p % taps, and S (slots, value_heads, key_dim,
    # value_dim).
    def read(self, layer: int, /) -> tuple[Tensor, Tensor]: ...

# The gated delta rule -> (rows, value_heads * value_dim). x (rows, columns): for each key head q, k, and v and z of
# the value heads that share it; ba (rows, 2 * value_heads): for each key head b and a of those. conv (channels, taps),
# a_log, dt_bias (value_heads), norm (value_dim): f32. A row at position 0 begins a text, any other takes the state of
# its slot as it is; a negative position: zeros, nothing written. sequence: rows of one slot, at consecutive positions
# from that of row 0; else no two are of the same slot.
def gated_delta(
    x: Tensor,
    ba: Tensor,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    state: DeltaState,
    layer: int,
    positions: Tensor,
    slots: Tensor,
    *,
    eps: float = 1e-6,
    sequence: bool = False,
    dtype: str | None = None,
    held: bool = False,
) -> Tensor: ...

# What changes from step to step, in GPU memory (push.h draws it). tokens, positions, slot_ids:
# (slots) i32.
@final
class StepState:
    def __init__(self, device: Device, slots: int, vocab: int) -> None: ...
    @property
    def device(self) -> Device: ...
    @property
    def slots(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def slot_ids(self) -> Tensor: ...

# logits (slots, vocab) f32: draws, advances tokens and positions, writes the ring.
def sample(logits: Tensor, state: StepState) -> None: ...

# Runs captured steps ahead of the host. programs: (bound, Program) by growing bound; each is one
# decode step of all slots.
@final
class Generator:
    def __init__(self, state: StepState, programs: Sequence[tuple[int, Program]], *, depth: int = 4) -> None: ...
    @property
    def device(self) -> Device: ...
    def admit(
        self,
        slot: int,
        *,
        token: int,
        position: int,
        limit: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        draws: int = 0,
        stop_ids: Sequence[int] = (),
        logprobs: int = 0,
        bias: Sequence[tuple[int, float]] = (),
        seen: Sequence[int] = (),
    ) -> None: ...
    def release(self, slot: int, /) -> None: ...  # its tokens in flight are dropped
    # Keeps up to depth steps in flight while slots run, waits for the oldest and returns its rows:
    # (slot, token, finish, logprob, [(id, logprob)]), finish None "stop" "length" "nan". [] when
    # no slot runs. Ctrl-C ends the wait.
    def pump(self) -> list[tuple[int, int, str | None, float, list[tuple[int, float]]]]: ...
    @property
    def running(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def depth(self) -> int: ...
