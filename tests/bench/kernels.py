"""The Triton attention kernels on this machine's GPU: `python -m tests.bench.kernels`.

Prints the device's copy bandwidth; decode attention (batch 32, 32 query heads, 8 kv heads, head size 128, context 16k)
in each format; and a prefill chunk of 2,048 tokens over 16k of context, beside torch's FlashAttention. Aims: bf16
decode at 75% of the copy bandwidth, fp8 and int8 at 1.7 times its tokens/s, prefill at 60% of FlashAttention's rate.

`--compile` instead compiles every configuration for sm_90 and sm_89, which needs no GPU, and prints shared memory,
registers and spills; `--few` only those that the tests compile. Without a GPU nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.table import attention_kernels, choose_kernel
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import parse_kv_formats

BATCH, HEADS, KV_HEADS, SIZE, CONTEXT, PAGE_TOKENS, CHUNK = 32, 32, 8, 128, 16_384, 16, 2_048
ROUNDS = 30


@dataclass(frozen=True)
class Line:
    """A figure, what it is called, and its aim."""

    name: str
    figure: str
    aim: str = ""


def seconds(run: Callable[[], object]) -> float:
    """Median time on the device of some rounds, each with a cold level-two cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for turn in range(ROUNDS + 3):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes/s, read and written, of a copy within the device's memory."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def attention(sequences: int, tokens: int, formats: str) -> Callable[[], Tensor]:
    """A call of the kernel: `sequences`, each with `tokens` at the end of a full context, their pages scattered."""
    cuda = torch.device("cuda")
    stored = parse_kv_formats(formats)
    shape = AttentionShape(HEADS, KV_HEADS, SIZE, SIZE, PAGE_TOKENS, None, torch.bfloat16, cuda, formats=stored)
    layout = build_layout((LayerCache(Keeps.FULL, None, KV_HEADS, SIZE, SIZE),), 2, PAGE_TOKENS, stored)
    columns = CONTEXT // PAGE_TOKENS
    memory = PageMemory(layout, sequences * columns, torch.bfloat16, cuda)
    tables = torch.randperm(sequences * columns, device=cuda).int().view(sequences, columns)
    kernel = choose_kernel(attention_kernels(None), shape)
    if kernel.name != "triton":
        raise SystemExit("the Triton kernel does not serve this device: nothing was measured")
    everything = (tables.long()[:, :, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=cuda)).flatten()
    for slots in everything.split(32_768):
        rows = torch.randn(2, slots.shape[0], KV_HEADS, SIZE, dtype=torch.bfloat16, device=cuda)
        filling = _step(tables[:1], slots, 1, slots.shape[0], 0)
        kernel.write(rows[0], rows[1], memory.layers[0], kernel.prepare(filling, shape))
    newest = everything.view(sequences, CONTEXT)[:, -tokens:].flatten()
    prepared = kernel.prepare(_step(tables, newest, sequences, tokens, CONTEXT - tokens), shape)
    query = torch.randn(sequences * tokens, HEADS, SIZE, dtype=torch.bfloat16, device=cuda)
    return lambda: kernel.attend(query, memory.layers[0], prepared, scaling=SIZE**-0.5)


def _step(tables: Tensor, slots: Tensor, sequences: int, tokens: int, start: int) -> GroupStep:
    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    return GroupStep(
        numbers([tokens * index for index in range(sequences + 1)]), numbers([start] * sequences), tables,
        numbers([0] * sequences), slots, tokens, start + tokens,
    )  # fmt: skip


def flash_attention() -> Callable[[], Tensor]:
    """Torch's FlashAttention over the same chunk and context, contiguous; its causal mask ends at the last position."""
    from torch.nn.attention.bias import causal_lower_right

    def rows(heads: int, tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, SIZE, dtype=torch.bfloat16, device="cuda")

    query, key, value = rows(HEADS, CHUNK), rows(HEADS, CONTEXT), rows(HEADS, CONTEXT)
    mask = causal_lower_right(CHUNK, CONTEXT)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return run


def decode_lines(bandwidth: float) -> list[Line]:
    lines, plain = [], 0.0
    for formats in ("model", "fp8", "int8"):
        stored = parse_kv_formats(formats)
        read = BATCH * CONTEXT * KV_HEADS * (stored.key.row_bytes(SIZE, 2) + stored.value.row_bytes(SIZE, 2))
        time = seconds(attention(BATCH, 1, formats))
        plain = plain or time
        share = f"{read / time / bandwidth:.0%} of copy bandwidth, {time * 1e6:.0f} us, "
        lines.append(
            Line(f"decode, {'bf16' if formats == 'model' else formats}",
                 f"{share}{BATCH / time:,.0f} tokens/s, {plain / time:.2f}x bf16",
                 "75% of copy bandwidth" if formats == "model" else "1.7x bf16")
        )  # fmt: skip
    return lines


def prefill_lines() -> list[Line]:
    operations = 4 * HEADS * SIZE * CHUNK * (CONTEXT - CHUNK / 2)
    flash = seconds(flash_attention())
    lines = [Line("prefill, torch's FlashAttention", f"{operations / flash / 1e12:.0f} TFLOP/s, {flash * 1e3:.2f} ms")]
    for formats in ("model", "fp8", "int8"):
        time = seconds(attention(1, CHUNK, formats))
        lines.append(
            Line(f"prefill, {'bf16' if formats == 'model' else formats}",
                 f"{operations / time / 1e12:.0f} TFLOP/s, {time * 1e3:.2f} ms, {flash / time:.0%} of FlashAttention",
                 "60%" if formats == "model" else "")
        )  # fmt: skip
    return lines


def measure() -> None:
    bandwidth = copy_bandwidth()
    lines = [Line("copy within the device", f"{bandwidth / 1e9:,.0f} GB/s"), *decode_lines(bandwidth), *prefill_lines()]
    print(f"device: {torch.cuda.get_device_name()} · torch {torch.__version__} · python -m tests.bench.kernels")
    for line in lines:
        print(f"{line.name:<34}{line.figure:<80}{'aim: ' + line.aim if line.aim else ''}")


def compile_all(few: bool) -> int:
    """How many builds failed, or need more shared memory than the device has; all are printed."""
    from tests.bench.kernel_builds import SHARED_LIMITS, all_builds, compile_for, few_builds

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
