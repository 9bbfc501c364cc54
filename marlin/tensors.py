"""Tensors: arrays in the memory of a device, and their ways to and from NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marlin import _C, html
from marlin.device import Device

# Wide types of NumPy that no kernel takes, and what they become.
NARROWED: Final = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "bool": np.uint8}
DTYPES: Final[dict[str, str]] = {
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "uint32": "u32",
    "uint16": "u16", "uint8": "u8", "int8": "i8",
}  # fmt: skip


class Tensor:
    """A dense, row-major array on a device. Made by `marlin.tensor`; `raw` is the marlin._C.Tensor.

    Work is queued: reading (`numpy()`, `np.asarray`, `tolist`) waits for it. Where the host sees the device's
    memory the array that `numpy()` gives shares it, else it is a copy. dtypes: f32 f16 bf16 i32 u32 u8 i8 u16.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: _C.Tensor) -> None:
        if not isinstance(raw, _C.Tensor):
            raise TypeError(f"Tensor wraps a marlin._C.Tensor, got {type(raw).__name__}; use marlin.tensor(array)")
        self.raw = raw

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    @property
    def dtype(self) -> str:
        return self.raw.dtype

    @property
    def ndim(self) -> int:
        return self.raw.ndim

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def device(self) -> _C.Device:
        return self.raw.device

    def numpy(self) -> NDArray[Any]:
        """An array of the elements; bf16 as ml_dtypes.bfloat16. Waits."""
        return to_numpy(self.raw)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"cannot make {dtype} of {self.dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.raw.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.raw.__dlpack_device__()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.numpy().tolist()

    def item(self) -> Any:
        """The only element."""
        return self.numpy().item()

    def astype(self, dtype: str) -> Tensor:
        """A converted copy, made on the device: f32, f16 and bf16 among each other."""
        return Tensor(self.raw.astype(dtype))

    def reshape(self, *shape: int) -> Tensor:
        """A view of another shape; one size may be -1."""
        return Tensor(self.raw.reshape(*shape))

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, key: int | slice) -> Tensor:
        return Tensor(self.raw[key])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.raw)

    def _repr_html_(self) -> str:
        shape = " × ".join(map(str, self.shape))
        head = f"Tensor {shape} {self.dtype}, {html.size(self.nbytes)} on {self.device.name}"
        flat = self.raw.reshape(-1)[: min(self.size, 64)]
        with np.printoptions(threshold=64, precision=4, suppress=True):
            return html.table([], title=head) + html.mono(f"{to_numpy(flat)}{' …' * (self.size > 64)}")


def tensor(data: ArrayLike | Tensor, *, device: Device | int | str | None = None, dtype: str | None = None) -> Tensor:
    """Copy an array, a list, or anything with DLPack on the host to a device.

    dtype: f32, f16, bf16 or None for the array's own; float64 becomes f32 and int64 i32 (ValueError if a number
    does not fit). Raises TypeError for other element types.
    """
    raw = upload(host_array(data), Device(device).raw)
    return Tensor(raw if dtype is None else raw.astype(dtype))


def host_array(data: Any) -> NDArray[Any]:
    """A C-contiguous array of an element type that tensors have. TypeError, ValueError as `tensor` says."""
    if isinstance(data, Tensor):
        return data.numpy()
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray):
        array = np.from_dlpack(data)
    else:
        array = np.asarray(data)
    target = NARROWED.get(array.dtype.name)
    if target is not None:
        narrow = array.astype(target)
        if array.dtype.kind in "iu" and not np.array_equal(narrow, array):
            low, high = array.min(), array.max()
            raise ValueError(f"tensor: {array.dtype} values from {low} to {high} do not fit {narrow.dtype}")
        array = narrow
    if not array.size:
        raise ValueError("tensor: data is empty; a tensor has at least one element")
    if array.dtype.name not in DTYPES:
        raise TypeError(f"tensor: elements of type {array.dtype} have no place on a device; known: {', '.join(DTYPES)}")
    return np.ascontiguousarray(array)


def upload(array: NDArray[Any], device: _C.Device) -> _C.Tensor:
    """A host_array as a raw tensor."""
    dtype = DTYPES[array.dtype.name]
    if dtype == "bf16":
        array = array.view(np.uint16)  # the buffer protocol has no bf16
    return _C.tensor(device, array, dtype, array.shape or (1,))


def to_numpy(raw: _C.Tensor) -> NDArray[Any]:
    """The elements of a raw tensor; shares memory where the host sees it."""
    array: NDArray[Any] = np.asarray(raw)
    if raw.dtype == "bf16":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    return array
