"""show_gpus: has CUDA number the GPUs of this process as a Plan does, whatever else the machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence


def show_gpus(uuids: Sequence[str]) -> None:
    """Shows CUDA these GPUs, in this order. Nothing may have asked CUDA for a device before.

    A GPU that has fallen off the bus, or that must not compute, would else shift the others' numbers.
    """
    if uuids:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
