"""The exceptions of Marlin, made in C so that C can raise them, named here for people.

MarlinError
  ModelFormatError (also ValueError)    a file of a model is broken or contradicts itself
  UnsupportedModelError                 the file is sound, but asks for what Marlin does not have
  DeviceError > DeviceLostError, DeviceOutOfMemory (also MemoryError)
  CancelledError    QueueFull
"""

from marlin._C import (
    CancelledError,
    DeviceError,
    DeviceLostError,
    DeviceOutOfMemory,
    MarlinError,
    ModelFormatError,
    QueueFull,
    UnsupportedModelError,
)

__all__ = [
    "CancelledError",
    "DeviceError",
    "DeviceLostError",
    "DeviceOutOfMemory",
    "MarlinError",
    "ModelFormatError",
    "QueueFull",
    "UnsupportedModelError",
]
