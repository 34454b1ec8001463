"""bitsandbytes is loaded on demand, quietly, and brings no compiled code from elsewhere."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, types
fetched = []
fake = types.ModuleType("kernels")
fake.get_kernel = lambda *names, **options: fetched.append(names)
sys.modules["kernels"] = fake
import quant.weight_format
assert "bitsandbytes" not in sys.modules, "loaded before it was asked for"
from quant.weights.bits_and_bytes import bits_and_bytes
library = bits_and_bytes()
assert library is bits_and_bytes()
assert fetched == [], fetched
assert sys.modules["kernels"] is fake
"""


def test_it_is_loaded_only_when_asked_for_and_fetches_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
