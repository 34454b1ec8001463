"""Where compiled processor kernels are kept: a folder for each state of their sources.

numba compiles a function again when its own file has changed, but not when a function or constant that it took in from
another file has: code of two versions in one process reads each other's tables wrongly and crashes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from backend.library.locations import cache_home, source_root

_SOURCES = ("quant/cpu", "kvcache/attention", "backend/surgery")


def kernel_cache() -> Path:
    """The folder for the kernels as their sources are now; numba makes it."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted((source_root() / folder).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return cache_home() / "numba" / digest.hexdigest()[:16]
