"""Part: the long or the short sequences of a step, as one launch of the Triton kernels; from host numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.triton_configuration import Configuration

# A part of a context below this many blocks is not worth its place in the merge.
LEAST_BLOCKS = 4
MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Partials:
    """Where the splits of a context leave their sums, in float32; every layer of a step uses them in turn.

    sums: [tiles, kv_heads, splits, rows, value_size]; peaks, totals: the same without the last dimension.
    """

    sums: Tensor
    peaks: Tensor
    totals: Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences of at most `short` tokens, or with `long` those of more: tiles, splits of the context, block sizes."""

    long: bool
    short: int
    tiles: int
    splits: int
    configuration: Configuration
    partials: Partials | None


def parts_of(
    step: GroupStep, shape: AttentionShape, decode: Configuration, prefill: Configuration, processors: int
) -> tuple[Part, ...]:
    """The launches that serve a step: none without tokens, two where short and long sequences may be mixed."""
    sequences, tokens = step.starts.shape[0], step.slots.shape[0]
    group = shape.heads // shape.kv_heads
    short = max(1, decode.rows // group)
    parts: list[Part] = []
    if step.max_query > short:
        tiles = tokens * group // prefill.rows + sequences
        parts.append(_part(True, short, tiles, prefill, step, shape, processors))
    if tokens and (step.max_query <= short or sequences > 1):
        tiles = sequences * -(-short * group // decode.rows)
        parts.append(_part(False, short, tiles, decode, step, shape, processors))
    return tuple(parts)


def split_count(programs: int, blocks: int, places: int) -> int:
    """Into how many parts contexts of up to `blocks` blocks are split, so that `programs` tiles fill `places` at once.

    The fewest whose last wave leaves little idle: within 85% of the best, as FlashAttention's num_splits_heuristic.
    """
    most = min(blocks // LEAST_BLOCKS, MOST_SPLITS)
    if programs >= 0.8 * places or most < 2:
        return 1
    filled = [_filled(programs * splits, places) for splits in range(1, most + 1)]
    return next(index for index, share in enumerate(filled, 1) if share >= 0.85 * max(filled))


def _filled(programs: int, places: int) -> float:
    """The share of places that programs take over their waves."""
    return programs / (-(-programs // places) * places)


def _part(
    long: bool,
    short: int,
    tiles: int,
    configuration: Configuration,
    step: GroupStep,
    shape: AttentionShape,
    processors: int,
) -> Part:
    context = step.max_length
    if shape.window is not None:
        context = min(context, shape.window + configuration.rows)
    blocks = -(-context // configuration.positions)
    splits = split_count(tiles * shape.kv_heads, blocks, processors * configuration.programs)
    partials = None if splits == 1 else _partials(shape, (tiles, shape.kv_heads, splits, configuration.rows))
    return Part(long, short, tiles, splits, configuration, partials)


def _partials(shape: AttentionShape, rows: tuple[int, ...]) -> Partials:
    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=shape.device)

    return Partials(empty(*rows, shape.value_size), empty(*rows), empty(*rows))
