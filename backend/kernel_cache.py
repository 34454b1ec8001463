"""Where compiled processor kernels are kept: a folder for each state of their sources.

numba compiles a function again when its own file has changed, but not when a function or constant that it took in from
another file has: code of two versions in one process reads each other's tables wrongly and crashes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from backend.library.locations import cache_home, source_root

COMPILER = (sys.executable, "-P", "-m", "backend.compile_kernels")
_SOURCES = ("quant/cpu", "kvcache/attention", "backend/surgery")


def kernel_cache() -> Path:
    """The folder for the kernels as their sources are now; numba makes it."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted((source_root() / folder).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return cache_home() / "numba" / digest.hexdigest()[:16]


def kernels_missing(folder: Path) -> bool:
    """Whether no kernels have been compiled into this folder yet."""
    return next(folder.rglob("*.nbc"), None) is None


def compile_ahead(command: tuple[str, ...] = COMPILER) -> bool:
    """Where no kernels have been compiled yet, has a process of its own do it: whether it had to.

    The compiler keeps 118 MiB for as long as the process lives that it ran in. If this fails, whoever needs a kernel
    compiles it. Looks where numba will: in an engine's environment only, which says where that is.
    """
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder or not kernels_missing(Path(folder)):
        return False
    # Its words go to our log.
    subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    return True
