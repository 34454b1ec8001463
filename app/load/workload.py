"""Workload: the shape of a load, and the standard ones. Its prompts are made in `prompts`, sent in `run`."""

from __future__ import annotations

from msgspec import Struct


class Workload(Struct, frozen=True, kw_only=True):
    """A closed loop: `concurrency` workers each keep one request in flight until `requests` are answered.

    Attributes:
        prompt_tokens: of each prompt's own, beside the shared prefix.
        shared_prefix_tokens: equal at the start of every prompt of one run.
        output_tokens: forced, where the server lets one.
        repeat: send the same prompts a second time, to measure the prefix cache.
    """

    name: str
    concurrency: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    shared_prefix_tokens: int = 0
    repeat: bool = False


STANDARD = (
    Workload(name="single", concurrency=1, requests=1, prompt_tokens=128, output_tokens=128),
    Workload(name="conc16", concurrency=16, requests=48, prompt_tokens=128, output_tokens=128),
    Workload(
        name="prefix16",
        concurrency=16,
        requests=48,
        prompt_tokens=64,
        output_tokens=64,
        shared_prefix_tokens=1024,
    ),
    Workload(name="ttft", concurrency=1, requests=1, prompt_tokens=2048, output_tokens=8, repeat=True),
)
WARM_UP = (
    STANDARD[0],
    Workload(name="warm-up", concurrency=16, requests=16, prompt_tokens=64, output_tokens=16),
)
