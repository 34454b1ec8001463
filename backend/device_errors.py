"""Which exceptions of torch mean that a device is gone, rather than that one request went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.executor import DeviceLostError

# A CUDA context that met one of these answers every later call with the same error, whichever library words it.
_FATAL = (
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "device-side assert",
    "uncorrectable ECC",
    "GPU is lost",
)


def is_device_lost(error: BaseException) -> bool:
    """Whether nothing can run on the device any more. Out of memory is one request's failure, not the device's."""
    if isinstance(error, DeviceLostError):
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _FATAL)


@contextmanager
def losing_devices() -> Iterator[None]:
    """Turns a dead device's errors, of whatever type, into DeviceLostError; others pass through."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DeviceLostError) or not is_device_lost(error):
            raise
        raise DeviceLostError(str(error).strip().partition("\n")[0]) from error
