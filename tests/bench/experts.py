"""The Triton expert kernels on this machine's GPU: `python -m tests.bench.experts`.

For layers of known models and some numbers of tokens, in bfloat16: the time of a layer's experts, its ratio to
transformers' path over torch's own grouped product (`torch._grouped_mm`), and to the bound: the weights of the experts
that have tokens read at the device's copy bandwidth, or the products at the rate of torch's own dense product. Aims:
decode (16 tokens) at 60% of its bound, prefill (4,096 tokens) at 60% of its, no slower than the grouped product.

`--compile` instead compiles every configuration for sm_90 and sm_89, which needs no GPU, and prints shared memory,
registers and spills; `--few` only those that the tests compile. Without a GPU nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.bench.kernels import copy_bandwidth, seconds

TOKENS = (1, 16, 64, 512, 4096)
# experts, choices of a token, hidden, inner
LAYERS = {
    "qwen3-30b-a3b": ("qwen3-moe", 128, 8, 2048, 768),
    "mixtral-8x7b": ("mixtral", 8, 2, 4096, 14336),
    "gpt-oss-20b": ("gpt-oss", 32, 4, 2880, 2880),
}


def product_rate() -> float:
    """FLOP/s of torch's bf16 product, 8,192 square."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b)


def layer(kind: str, experts: int, hidden: int, inner: int) -> Any:
    from tests.fakes.tiny_experts import tiny_experts

    return tiny_experts(kind, experts, hidden, inner).bfloat16().cuda()


def runs(module: Any, tokens: int, experts: int, active: int, hidden: int) -> tuple[Callable[[], Tensor], ...]:
    """Our kernels and transformers' grouped product over one batch; they must agree before they are timed."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    from backend.surgery.experts import run_experts
    from tests.fakes.tiny_experts import routing

    index, weights = (part.cuda() for part in routing(tokens, experts, active))
    x = torch.randn(tokens, hidden, dtype=torch.bfloat16, device="cuda")
    ours, theirs = run_experts(module, x, index, weights), grouped_mm_experts_forward(module, x, index, weights)
    torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2)
    return (lambda: run_experts(module, x, index, weights),
            lambda: grouped_mm_experts_forward(module, x, index, weights))  # fmt: skip


def bound(size: SimpleNamespace, tokens: int, occupied: int) -> float:
    """Seconds at least: weights of the experts that have tokens, once, or all products."""
    numbers = 3 * size.hidden * size.inner
    return max(occupied * numbers * 2 / size.bandwidth, 2 * tokens * size.active * numbers / size.rate)


@torch.inference_mode()
def measure() -> None:
    from tests.fakes.tiny_experts import routing

    bandwidth, rate = copy_bandwidth(), product_rate()
    print(f"device: {torch.cuda.get_device_name()} · torch {torch.__version__} · python -m tests.bench.experts")
    print(f"copy {bandwidth / 1e9:,.0f} GB/s · dense bf16 product {rate / 1e12:,.0f} TFLOP/s")
    for name, (kind, experts, active, hidden, inner) in LAYERS.items():
        module = layer(kind, experts, hidden, inner)
        size = SimpleNamespace(active=active, hidden=hidden, inner=inner, bandwidth=bandwidth, rate=rate)
        for tokens in TOKENS:
            ours, theirs = (seconds(run) for run in runs(module, tokens, experts, active, hidden))
            occupied = routing(tokens, experts, active)[0].unique().numel()
            least = bound(size, tokens, occupied)
            print(f"{name:<16}{tokens:>6} tokens  {ours * 1e6:>9.1f} us  {theirs / ours:>6.2f}x grouped product"
                  f"  {least / ours:>6.0%} of the bound", flush=True)  # fmt: skip
        del module


def compile_all(few: bool) -> int:
    """How many builds need more shared memory than the device has; all are printed."""
    from tests.bench.expert_builds import all_builds, few_builds
    from tests.bench.kernel_builds import SHARED_LIMITS, compile_for

    bad = 0
    for build in few_builds() if few else all_builds():
        figures = compile_for(build)
        over = figures.shared > SHARED_LIMITS[build.card.architecture]
        bad += over
        remark = "  MORE SHARED MEMORY THAN THE DEVICE HAS" if over else ""
        taken = f"shared {figures.shared:>7}  registers {figures.registers:>3}  spilled {figures.stack:>4}"
        print(f"{build.name:<68}{taken}{remark}", flush=True)
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile every configuration; needs no GPU")
    parser.add_argument("--few", action="store_true", help="with --compile: only what the tests compile")
    options = parser.parse_args()
    if options.compile:
        sys.exit(compile_all(options.few))
    if not torch.cuda.is_available():
        print("not run: no CUDA device")
        return
    measure()


if __name__ == "__main__":
    main()
