"""StepInputs: a Batch as the flat index arrays that a forward pass and its attention kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.batch import Batch, Slice
from kvcache.attention.kernel import GroupStep
from kvcache.layout import CacheGroup, CacheLayout


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's inputs on the device: T tokens, flat over the batch's slices.

    tokens, positions, rope_lengths: [T] int64; rows: [R] int64, the flat index of each sampling slice's last token;
    groups: one GroupStep per cache group.
    """

    tokens: Tensor
    positions: Tensor
    rope_lengths: Tensor
    rows: Tensor
    groups: tuple[GroupStep, ...]


def step_inputs(batch: Batch, layout: CacheLayout, *, whole_length: bool, device: torch.device) -> StepInputs:
    """Flattens a batch.

    whole_length: RoPE chooses by the sequence's whole length (longrope) instead of max(prompt, position + 1).
    """
    slices = batch.slices
    counts = numpy.fromiter((len(part.tokens) for part in slices), numpy.int32, len(slices))
    starts = numpy.fromiter((part.start for part in slices), numpy.int32, len(slices))
    edges = numpy.zeros(len(slices) + 1, numpy.int32)
    numpy.cumsum(counts, out=edges[1:])
    total = int(edges[-1])
    tokens = numpy.fromiter(chain.from_iterable(part.tokens for part in slices), numpy.int64, total)
    positions = numpy.arange(total, dtype=numpy.int64) + numpy.repeat(starts - edges[:-1], counts)
    if whole_length:
        lengths = numpy.repeat(numpy.fromiter((part.length for part in slices), numpy.int64, len(slices)), counts)
    else:
        prompts = numpy.fromiter((part.prompt_length for part in slices), numpy.int64, len(slices))
        lengths = numpy.maximum(numpy.repeat(prompts, counts), positions + 1)
    sampling = [index for index, part in enumerate(slices) if part.sample is not None]

    def placed(array: NDArray[numpy.integer]) -> Tensor:
        return torch.from_numpy(array).to(device)

    groups = tuple(
        _group_step(slices, index, group, counts, starts, edges, positions, device)
        for index, group in enumerate(layout.groups)
    )
    return StepInputs(
        tokens=placed(tokens),
        positions=placed(positions),
        rope_lengths=placed(lengths),
        rows=placed(edges[1:][sampling].astype(numpy.int64) - 1),
        groups=groups,
    )


def _group_step(
    slices: tuple[Slice, ...],
    index: int,
    group: CacheGroup,
    counts: NDArray[numpy.int32],
    starts: NDArray[numpy.int32],
    edges: NDArray[numpy.int32],
    positions: NDArray[numpy.int64],
    device: torch.device,
) -> GroupStep:
    spans = [part.spans[index] for part in slices]
    tables = numpy.zeros((len(spans), max(len(span.ids) for span in spans)), numpy.int32)
    for row, span in enumerate(spans):
        tables[row, : len(span.ids)] = span.ids
    first_pages = numpy.fromiter((span.first for span in spans), numpy.int32, len(spans))
    owners = numpy.repeat(numpy.arange(len(spans)), counts)
    columns = positions // group.page_tokens - first_pages[owners]
    slots = tables[owners, columns].astype(numpy.int64) * group.page_tokens + positions % group.page_tokens
    return GroupStep(
        query_starts=torch.from_numpy(edges).to(device),
        starts=torch.from_numpy(starts).to(device),
        tables=torch.from_numpy(tables).to(device),
        first_pages=torch.from_numpy(first_pages).to(device),
        slots=torch.from_numpy(slots).to(device),
        max_query=int(counts.max()),
        max_length=int((starts + counts).max()),
    )
