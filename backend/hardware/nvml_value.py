"""value_or: a question to NVML that not every GPU, driver or container answers. For the asking processes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pynvml

T = TypeVar("T")

# Not answers to a question, but the end of the GPU: whoever asks has to hear of it.
_ENDS = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


def value_or(missing: T, ask: Callable[[], T]) -> T:
    """What `ask` returns, or `missing` where there is no answer.

    Raises NVMLError where the GPU is lost or waits for a reset.
    """
    try:
        return ask()
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in _ENDS:
            raise
        return missing
