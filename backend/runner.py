"""Runner: turns a Batch into sampled tokens on one rank. It owns the model's pages in memory and this step's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from backend.batch import Batch, PageSpan, Sampled, SampleTask, Slice
from backend.device_errors import losing_devices
from backend.paged_context import PagedContext
from backend.request import Sampling
from backend.sampler import Sampler
from backend.step_inputs import step_inputs
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.table import attention_kernels, choose_kernel
from kvcache.layout import CacheLayout, Keeps
from kvcache.page_memory import PageMemory
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.host import HostTier
from kvcache.tiers.mover import PageMover
from kvcache.transfer import TransferDone

if TYPE_CHECKING:
    from quant.cpu.team import Team


class Runner:
    """One rank's model, pages and sampler; an Executor for an engine whose only rank lives in its process."""

    def __init__(self, model: ServedModel, layout: CacheLayout, pages: int, team: Team | None) -> None:
        """team: the threads that compute, on a processor."""
        self._model, self._layout, self._team = model, layout, team
        self._memory = PageMemory(layout, pages, model.dtype, model.device)
        self._sampler = Sampler(model.facts.vocabulary, model.device)
        kernels = attention_kernels(team)
        shapes = {slot: (index, self._shape(slot)) for index, group in enumerate(layout.groups) for slot in group.slots}
        self._kernels = {slot: choose_kernel(kernels, shape) for slot, (_, shape) in shapes.items()}
        # Slots of one group and shape share what their kernel prepares of a step.
        self._kinds: list[tuple[int, AttentionShape, AttentionKernel]] = []
        self._kind_of: dict[int, int] = {}
        places: dict[tuple[int, AttentionShape], int] = {}
        for slot, key in shapes.items():
            if key not in places:
                places[key] = len(self._kinds)
                self._kinds.append((*key, self._kernels[slot]))
            self._kind_of[slot] = places[key]
        self._mover: PageMover | None = None

    @property
    def kernel_orders(self) -> tuple[str, ...]:
        """The inner order of each slot's pages, which is part of what a cached page's bytes mean."""
        return tuple(self._kernels[slot].order for slot in sorted(self._kernels))

    def attach_tiers(self, host: HostTier | None, disk: DiskTier | None) -> None:
        """From now on batches may carry transfers to and from these tiers, which are the runner's own from here."""
        if host is not None or disk is not None:
            self._mover = PageMover(self._memory, self._model.device, host, disk)

    @losing_devices()
    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[Sampled | None]:
        """Begins the transfers, feeds every slice, writes its K and V, and samples where a slice asks for a token."""
        if self._mover is not None:
            self._mover.begin(batch.transfers)
            if self._mover.holds_pages:
                self._mover.settle(written_pages(batch, self._layout))
        if not batch.slices:
            return []
        whole_length = bool(self._model.recompute_lengths)
        inputs = step_inputs(batch, self._layout, whole_length=whole_length, device=self._model.device)
        prepared = tuple(kernel.prepare(inputs.groups[group], shape) for group, shape, kernel in self._kinds)
        context = PagedContext(self._memory.layers, self._kernels, self._kind_of, prepared)
        logits = self._model.forward(inputs.tokens, inputs.positions, inputs.rope_lengths, inputs.rows, context)
        tasks = [part.sample for part in batch.slices if part.sample is not None]
        sampled = iter(self._sampler.sample(logits, tasks) if tasks else [])
        return [None if part.sample is None else next(sampled) for part in batch.slices]

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        return self._mover.finished(patience) if self._mover is not None else []

    def warm_up(self, tokens: int) -> None:
        """One prefill of at most `tokens` and one decode over free pages: compiles kernels, finds the memory peak."""
        tokens = max(1, min([tokens, *(self._memory.pages * group.page_tokens for group in self._layout.groups)]))
        spans = tuple(PageSpan(0, range(-(-tokens // group.page_tokens))) for group in self._layout.groups)
        task = SampleTask(Sampling(), (0,), ())
        for count in (tokens, 1):
            self.execute(Batch(0, (Slice(0, 0, (0,) * count, count, count, spans, task),)))

    def close(self) -> None:
        """Ends the transfers, gives the pages' memory back and ends the compute threads."""
        if self._mover is not None:
            self._mover.close()
            self._mover = None
        del self._memory
        if self._team is not None:
            self._team.close()

    def _shape(self, slot: int) -> AttentionShape:
        group = next(group for group in self._layout.groups if slot in group.slots)
        layer = group.layer
        return AttentionShape(
            heads=self._model.facts.heads[slot],
            kv_heads=layer.kv_heads,
            key_size=layer.key_size,
            value_size=layer.value_size,
            page_tokens=group.page_tokens,
            window=group.window,
            dtype=self._model.dtype,
            device=self._model.device,
            chunked=group.chunked,
            latent=layer.keeps is Keeps.LATENT,
            formats=self._layout.formats,
        )


def written_pages(batch: Batch, layout: CacheLayout) -> Iterator[int]:
    """The pages in which the batch's slices write: those of the positions from each slice's start on."""
    for part in batch.slices:
        for group, span in zip(layout.groups, part.spans, strict=True):
            yield from span.ids[part.start // group.page_tokens - span.first :]
