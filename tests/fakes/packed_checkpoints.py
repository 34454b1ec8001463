"""Tiny checkpoints as quantizers leave them: random packed tensors, and the weights that they stand for, worked out in
plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.library.files import ModelFiles
from tests.fakes.tiny_models import make_checkpoint

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Packed:
    """One weight's tensors by their endings, and what they stand for."""

    parts: dict[str, Tensor]
    plain: Tensor


Packer = Callable[[Tensor, torch.Generator], Packed]


def fp8_blocks(weight: Tensor, random: torch.Generator) -> Packed:
    """DeepSeek-V3's way, in blocks of 32 rows and 24 columns, so that the last ones are smaller."""
    rows, columns = weight.shape
    scale = torch.rand(-(-rows // 32), -(-columns // 24), generator=random) * 0.01 + 0.001
    plain = torch.empty_like(weight)
    stored = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            place = slice(32 * i, 32 * i + 32), slice(24 * j, 24 * j + 24)
            stored[place] = (weight[place] / scale[i, j]).clamp(-448, 448).to(torch.float8_e4m3fn)
            plain[place] = stored[place].float() * scale[i, j]
    return Packed({"weight": stored, "weight_scale_inv": scale}, plain)


def fp8_whole(weight: Tensor, random: torch.Generator) -> Packed:
    """One scale for the tensor, and one for activations."""
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return Packed({"weight": stored, "weight_scale_inv": scale, "activation_scale": scale * 2}, stored.float() * scale)


def fp8_channels(weight: Tensor, random: torch.Generator) -> Packed:
    """compressed-tensors' way."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    parts = {"weight": stored, "weight_scale": scale.bfloat16(), "input_scale": torch.ones(1)}
    return Packed(parts, stored.float() * scale.bfloat16().float())


def words(numbers: list[list[int]], order: tuple[int, ...], bits: int) -> Tensor:
    """Rows of whole numbers, packed along each row: the n-th bits of a word hold column order[n]."""
    count = len(order)
    packed = []
    for row in numbers:
        line = []
        for start in range(0, len(row), count):
            word = sum(row[start + column] << (bits * n) for n, column in enumerate(order))
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        packed.append(line)
    return torch.tensor(packed, dtype=torch.int32)


def _whole(weight: Tensor, random: torch.Generator, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers [depth, columns], zero points and scales [groups, columns], all random but for the scales' size."""
    columns, depth = weight.shape
    numbers = torch.randint(0, 1 << bits, (depth, columns), generator=random)
    zeros = torch.randint(1, 1 << bits, (depth // group, columns), generator=random)
    scales = (torch.rand(depth // group, columns, generator=random) * 0.4 / (1 << bits)).half()
    return numbers, zeros, scales


def _plain(numbers: Tensor, zeros: Tensor, scales: Tensor, groups: list[int]) -> Tensor:
    depth, columns = numbers.shape
    plain = torch.empty(columns, depth)
    for i in range(depth):
        plain[:, i] = scales[groups[i]].float() * (numbers[i] - zeros[groups[i]])
    return plain


def gptq(bits: int, less: int) -> Packer:
    """Groups of 32 inputs in random order, as act-order leaves them; zero points stored less `less`."""

    def pack(weight: Tensor, random: torch.Generator) -> Packed:
        numbers, zeros, scales = _whole(weight, random, bits, 32)
        depth = numbers.shape[0]
        groups = (torch.randperm(depth, generator=random) // 32).tolist()
        order = tuple(range(32 // bits))
        parts = {
            "qweight": words(numbers.T.tolist(), order, bits).T.contiguous(),
            "qzeros": words((zeros - less).tolist(), order, bits),
            "scales": scales,
            "g_idx": torch.tensor(groups, dtype=torch.int32),
        }
        return Packed(parts, _plain(numbers, zeros, scales, groups))

    return pack


def awq(weight: Tensor, random: torch.Generator) -> Packed:
    numbers, zeros, scales = _whole(weight, random, 4, 32)
    parts = {
        "qweight": words(numbers.tolist(), AWQ_ORDER, 4),
        "qzeros": words(zeros.tolist(), AWQ_ORDER, 4),
        "scales": scales,
    }
    return Packed(parts, _plain(numbers, zeros, scales, [i // 32 for i in range(numbers.shape[0])]))


def write_packed(
    folder: Path, family: str, pack: Packer, quantization: dict[str, Any]
) -> tuple[ModelFiles, ModelFiles]:
    """The family's checkpoint with its layers' linears packed, and one with the weights that these stand for."""
    plain, packed = (make_checkpoint(family, folder / name) for name in ("plain", "packed"))
    random = torch.Generator().manual_seed(5)
    tensors, unpacked = load_file(packed.weights[0]), load_file(plain.weights[0])
    for name, weight in list(tensors.items()):
        if name.endswith("_proj.weight"):
            made = pack(weight, random)
            del tensors[name]
            start = name.removesuffix("weight")
            tensors |= {f"{start}{part}": value.contiguous() for part, value in made.parts.items()}
            unpacked[name] = made.plain.contiguous()
    save_file(tensors, packed.weights[0], {"format": "pt"})
    save_file(unpacked, plain.weights[0], {"format": "pt"})
    state_quantization(packed, quantization)
    return packed, plain


def state_quantization(files: ModelFiles, quantization: dict[str, Any]) -> None:
    path = Path(files.folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
