"""Pace: what an engine adds to a step beside reading, multiplying and sending: starting kernels, scheduling."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from backend.planner.timing.device_speed import Family
from backend.planner.timing.efficiency import Outlook

_MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True)
class Pace:
    """Constants of an engine, of no model and no device.

    Attributes:
        layer: seconds a layer and step, in which kernels start and end while nothing is read: (best, likely, worst).
        step: seconds a step for scheduling and sampling, as far as they do not run beside it.
        sequence: seconds a sequence and step for the same.
        eager_call: seconds that an all-reduce takes longer because the host starts it (no CUDA graphs).
        own_all_reduce: whether small messages are added up by a kernel of its own rather than by NCCL's.
        most_sequences: in one step, by default.
        step_tokens: of prompts in one step, by default.
    """

    layer: tuple[float, float, float]
    step: float
    sequence: float = 0.0
    eager_call: float = 0.0
    own_all_reduce: bool = True
    most_sequences: int = 256
    step_tokens: int = 8192

    def layer_seconds(self, outlook: Outlook) -> float:
        return self.layer[{"best": 0, "likely": 1, "worst": 2}[outlook]] * _MICROSECOND


# Kernels of a layer start and end in about 20 us where CUDA graphs start them. Ours has no graphs: its figure is an
# assumption until it has been measured on a GPU.
_PACES: MappingProxyType[str, Pace] = MappingProxyType(
    {
        "shardwise": Pace((25, 60, 200), 0.3e-3, 2e-6, 20e-6, True, 256, 4096),
        "vllm": Pace((12, 20, 40), 0.5e-3, 3e-6, 0.0, True, 256, 8192),
        "sglang": Pace((12, 20, 40), 0.3e-3, 2e-6, 0.0, True, 512, 8192),
        "tensorrt-llm": Pace((10, 18, 35), 0.3e-3, 2e-6, 0.0, True, 2048, 8192),
        "gpt-fast": Pace((12, 20, 35), 0.0, 0.0, 0.0, False, 1, 2048),
        "llama.cpp": Pace((10, 20, 40), 0.1e-3, 5e-6, 10e-6, False, 64, 2048),
    }
)
# On a processor: 90 us a layer (84.5 tokens/s of the starter model, of which reading takes 9.0 ms; tests/bench).
_PROCESSOR = Pace((50, 90, 150), 0.2e-3, 20e-6, 0.0, False, 64, 512)


def pace(engine: str, family: Family = "other") -> Pace:
    """The engine's, by its name in any spelling; vLLM's where it is unknown."""
    if family == "processor":
        return _PROCESSOR
    name = engine.lower().replace(" ", "").replace("_", "-")
    name = {"trt-llm": "tensorrt-llm", "trtllm": "tensorrt-llm", "tensorrtllm": "tensorrt-llm"}.get(name, name)
    return _PACES.get(name, _PACES["vllm"])
