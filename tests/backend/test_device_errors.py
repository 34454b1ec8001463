from __future__ import annotations

import pytest
import torch

from backend.device_errors import is_device_lost, losing_devices
from backend.executor import DeviceLostError


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_a_dead_device_is_a_lost_one(error: RuntimeError) -> None:
    with pytest.raises(DeviceLostError) as caught, losing_devices():
        raise error
    assert str(caught.value) == str(error).partition("\n")[0]
    assert caught.value.__cause__ is error
    assert is_device_lost(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes differ"), ValueError("CUDA error")]
)
def test_one_requests_failure_is_not_the_devices(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, losing_devices():
        raise error
    assert caught.value is error


def test_a_lost_device_stays_what_it_is() -> None:
    lost = DeviceLostError("rank 1 is gone")
    with pytest.raises(DeviceLostError) as caught, losing_devices():
        raise lost
    assert caught.value is lost
