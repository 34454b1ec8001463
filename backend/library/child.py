"""Programs of the library that import torch and transformers, run as processes of their own; failures in words."""

from __future__ import annotations

import os
import subprocess
import sys

from backend.errors import BrokenModelError
from backend.library.locations import source_root


def run_child(module: str, *arguments: str, seconds: float, late: str, failed: str, given: bytes = b"") -> bytes:
    """What `python -m module` writes, given `given` on its standard input.

    late, failed: what to say where it takes over `seconds`, or ends with an error.

    Raises BrokenModelError.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        # -P: a folder named `backend` in the user's working directory must not be imported.
        "PYTHONPATH": os.pathsep.join(part for part in (str(source_root()), inherited) if part),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        child = subprocess.run(command, input=given, capture_output=True, env=environment, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokenModelError(late) from error
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise BrokenModelError(failed, lines[-1] if lines else "The reader gave no reason.")
    return child.stdout
