"""Card: what the Triton kernels must know of the GPU that they run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """kind: torch's name of the device type; capability: (9, 0) for Hopper; processors: streaming multiprocessors.

    interpreted: the kernels run under Triton's interpreter, whose products know no bfloat16: they get float32.
    """

    kind: str
    capability: tuple[int, int]
    processors: int
    interpreted: bool = False

    @property
    def architecture(self) -> str:
        """As configurations are filed: `sm_90`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def native_fp8(self) -> bool:
        """Whether e4m3 is a type of the hardware."""
        return self.capability >= (8, 9)


def current_card() -> Card:
    """The CUDA device of this process. Raises RuntimeError, from torch, where there is none."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card("cuda", (properties.major, properties.minor), properties.multi_processor_count)
