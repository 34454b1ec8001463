"""Loads bitsandbytes, whose kernels multiply int8 and nf4 weights, and nothing else that it would load by itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def bits_and_bytes() -> Any:
    """bitsandbytes.functional. It takes seconds to load, so only those import it who quantize with it.

    Raises ImportError where it is not installed or does not load.
    """
    loaded = sys.modules.get("bitsandbytes.functional")
    if loaded is not None:
        return loaded
    with _without_downloads():
        return import_module("bitsandbytes.functional")


@contextmanager
def _without_downloads() -> Iterator[None]:
    """Hides the package `kernels`, by which bitsandbytes would fetch compiled code from the hub, and its complaint."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kernels = logger.level, sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType] - how Python says that it may not be imported
    try:
        yield
    finally:
        logger.setLevel(level)
        if kernels is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels
