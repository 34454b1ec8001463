"""A short self-test of torch, run as a script of its own: prints one JSON object, and may crash without harm.

It imports nothing of ours, so that it runs whatever else is broken, and `shardwise doctor` need not load
torch. Arguments: the device and the dtype to multiply in, as torch names them, and the uuids of the GPUs among which
the device's number counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

_SIZE = 256
_SECONDS = 0.3


def describe(device: str, dtype: str) -> dict[str, Any]:
    import torch

    build = torch.version.cuda
    return {
        "torch": torch.__version__,
        "cuda_build": build,
        "cuda_available": bool(build) and torch.cuda.is_available(),
        **multiply(device, dtype),
    }


def multiply(device: str, dtype: str) -> dict[str, Any]:
    """Multiplies small matrices for a moment: the error against float64, as a share of the result, and the speed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_SIZE, _SIZE, generator=generator)
    right = torch.randn(_SIZE, _SIZE, generator=generator)
    exact = left.double() @ right.double()
    one = left.to(device, getattr(torch, dtype))
    other = right.to(device, getattr(torch, dtype))
    product = one @ other
    error = float((product.double().cpu() - exact).norm() / exact.norm())
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < _SECONDS:
        product = one @ other
        count += 1
    float(product[0, 0])  # waits for a GPU
    seconds = time.perf_counter() - begin
    return {"error": error, "gflops": 2 * _SIZE**3 * count / seconds / 1e9}


if __name__ == "__main__":
    if sys.argv[3:]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(sys.argv[3:])
    print(json.dumps(describe(sys.argv[1], sys.argv[2])))
