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
        layer: microseconds a layer and step, in which kernels start and end while nothing is read: at best, likely, at
            worst.
        step: seconds a step for scheduling and sampling, as far as they do not run beside it.
        sequence: seconds a sequence and step for the same.
        eager_call: seconds that an all-reduce takes longer because the host starts it (no CUDA graphs).
        own_all_reduce: whether small messages are added up by a kernel of its own rather than by NCCL's.
        most_sequences: in one step, by default.
        step_tokens: of prompts in one step, by default.
        stacked_reading: of what reading reaches elsewhere, what it reaches on GPUs with stacked memory.
        mixture_exchanges: all-reduces, or what is worth one, in a layer with experts: two, or one where each rank
            attends for its own sequences.
    """

    layer: tuple[float, float, float]
    step: float
    sequence: float = 0.0
    eager_call: float = 0.0
    own_all_reduce: bool = True
    most_sequences: int = 256
    step_tokens: int = 8192
    stacked_reading: float = 1.0
    mixture_exchanges: int = 2

    def reading(self, family: Family) -> float:
        return 1.0 if family in ("graphics", "other", "processor") else self.stacked_reading

    def layer_seconds(self, outlook: Outlook) -> float:
        return self.layer[{"best": 0, "likely": 1, "worst": 2}[outlook]] * _MICROSECOND


# Kernels of a layer start and end in about 25 us where CUDA graphs start them (gpt-fast on A100, SGLang on H100).
# TensorRT-LLM's 5 us a sequence: by what its throughput of small models on B200 and H200 stops growing at. Ours has no
# graphs: its figure is an assumption until it has been measured on a GPU.
_PACES: MappingProxyType[str, Pace] = MappingProxyType(
    {
        "shardwise": Pace((25, 60, 200), 0.3e-3, 5e-6, eager_call=20e-6, most_sequences=256, step_tokens=4096),
        "vllm": Pace((12, 25, 45), 0.5e-3, 5e-6, most_sequences=256),
        "sglang": Pace((12, 25, 45), 0.3e-3, 5e-6, most_sequences=512),
        "tensorrt-llm": Pace((12, 25, 45), 0.3e-3, 5e-6, most_sequences=2048, mixture_exchanges=1),
        "gpt-fast": Pace((12, 25, 40), 0.0, own_all_reduce=False, most_sequences=1, step_tokens=2048),
        "llama.cpp": Pace(
            (10, 25, 50), 0.1e-3, 5e-6, eager_call=10e-6, own_all_reduce=False, most_sequences=64, step_tokens=2048,
            stacked_reading=0.72,
        ),
    }
)  # fmt: skip
# On a processor: 90 us a layer (84.5 tokens/s of the starter model, of which reading takes 9.0 ms; tests/bench).
_PROCESSOR = Pace((50, 90, 150), 0.2e-3, 20e-6, 0.0, False, 64, 512)


def pace(engine: str, family: Family = "other") -> Pace:
    """The engine's, by its name in any spelling; vLLM's where it is unknown."""
    if family == "processor":
        return _PROCESSOR
    name = engine.lower().replace(" ", "").replace("_", "-")
    name = {"trt-llm": "tensorrt-llm", "trtllm": "tensorrt-llm", "tensorrtllm": "tensorrt-llm"}.get(name, name)
    return _PACES.get(name, _PACES["vllm"])
