"""Runner: turns a Batch into sampled tokens on one rank. It owns the model's pages in memory and this step's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.batch import Batch, PageSpan, Sampled, SampleTask, Slice
from backend.device_errors import losing_devices
from backend.measured_rank import MeasuredRank
from backend.memory_meter import Held, MemoryMeter
from backend.one_batch import OneBatch
from backend.paged_model import PagedModel
from backend.request import Sampling
from backend.sampler import Sampler
from backend.surgery.model import ServedModel
from kvcache.attention.table import attention_kernels
from kvcache.layout import CacheLayout
from kvcache.page_memory import PageMemory
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.host import HostTier
from kvcache.tiers.mover import PageMover
from kvcache.transfer import TransferDone

if TYPE_CHECKING:
    from quant.cpu.team import Team


class Runner(OneBatch):
    """One rank's model, pages and sampler; an Executor for an engine whose only rank lives in its process.

    Of several ranks, all run the same batches, and one samples. Of several stages, all run the same batches one behind
    the other, and only the last has something to sample from.
    """

    def __init__(
        self,
        model: ServedModel,
        layout: CacheLayout,
        pages: int,
        team: Team | None,
        *,
        rank: int = 0,
        communication: int | None = None,
        groups: tuple[int, ...] | None = None,
    ) -> None:
        """team: the threads that compute, on a processor. communication: bytes that joining the other ranks took.

        groups: for a stage, which of the batches' spans are those of the layout's groups; None for all.
        """
        self._layout, self._team, self._rank = layout, team, rank
        self._meter = MemoryMeter(model.device)
        self._weights, self._streaming = model.weights_bytes - model.stream_bytes, model.stream_bytes
        self._communication, self._host = communication, None
        self._paged = PagedModel(model, layout, pages, attention_kernels(team))
        self._device, self._dtype = model.device, model.dtype
        self._begins, self._ends, self._columns = model.begins, model.ends, model.columns
        self._groups = groups
        self._sampler = Sampler(model.facts.vocabulary, model.device)
        self._mover: PageMover | None = None

    @property
    def memory(self) -> PageMemory:
        """The bytes of all pages."""
        return self._paged.memory

    @property
    def kernel_orders(self) -> tuple[str, ...]:
        """The inner order of each slot's pages, which is part of what a cached page's bytes mean."""
        return self._paged.kernel_orders

    def attach_tiers(self, host: HostTier | None, disk: DiskTier | None) -> None:
        """From now on batches may carry transfers to and from these tiers, which are the runner's own from here."""
        self._host = host
        if host is not None or disk is not None:
            self._mover = PageMover(self.memory, self._device, host, disk)

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """Begins the transfers, feeds every slice, writes its K and V, and samples where a slice asks for a token."""
        results = self.run_stage(batch, None)
        if isinstance(results, Tensor):
            raise TypeError("a stage that does not end the model has no tokens")
        return results

    @losing_devices()
    @torch.inference_mode()
    def run_stage(self, batch: Batch, hidden: Tensor | None) -> Tensor | list[Sampled | None]:
        """As `execute`, for one stage of several: hidden states [T, columns] for the next, or the last one's results.

        hidden [T, columns]: what the stage before has handed on, in the model's dtype, on any device; None for the
        first stage, and for ranks but the first. What is returned is valid until the next call. A batch without
        slices, which a stage gets that sits a step out, only begins its transfers, and gives no results.

        Raises ValueError where hidden states are missing or of another form.
        """
        if self._groups is not None:
            batch = _with_spans(batch, self._groups)
        if self._mover is not None:
            self._mover.begin(batch.transfers)
            if self._mover.holds_pages:
                self._mover.settle(written_pages(batch, self._layout))
        return self._compute(batch, hidden) if batch.slices else []

    def _compute(self, batch: Batch, hidden: Tensor | None) -> Tensor | list[Sampled | None]:
        answer = self._paged.forward(batch, hidden=hidden)
        if not self._ends:
            return answer
        # The logits of a divided model are the first rank's.
        if self._rank != 0:
            return [None for _ in batch.slices]
        tasks = [part.sample for part in batch.slices if part.sample is not None]
        sampled = iter(self._sampler.sample(answer, tasks) if tasks else [])
        return [None if part.sample is None else next(sampled) for part in batch.slices]

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        return self._mover.finished(patience) if self._mover is not None else []

    @losing_devices()
    @torch.inference_mode()
    def warm_up(self, tokens: int) -> None:
        """One prefill of at most `tokens` and one decode over free pages: compiles kernels, finds the memory peak.

        A stage that gets hidden states takes zeros for them, so that it needs no other stage. What the rank holds
        besides is the libraries' from then on, so the tiers have to be attached.
        """
        self._meter.begin()
        tokens = max(1, min([tokens, *(self.memory.pages * group.page_tokens for group in self._layout.groups)]))
        spans = tuple(PageSpan(0, range(-(-tokens // group.page_tokens))) for group in self._layout.groups)
        task = SampleTask(Sampling(), (0,), ())
        for count in (tokens, 1):
            given = None if self._begins else torch.zeros(count, self._columns, dtype=self._dtype, device=self._device)
            self._compute(Batch(0, (Slice(0, 0, (0,) * count, count, count, spans, task),)), given)
        self._meter.settle(self._held())

    @losing_devices()
    def measure(self) -> tuple[MeasuredRank, ...]:
        """This rank's memory at this moment, after the warm-up."""
        return (self._meter.measure(self._rank, self._held()),)

    def _held(self) -> Held:
        own = self._device.type == "cpu"
        return Held(
            weights=self._weights,
            pages=self.memory.all,
            host=self._host.all if self._host is not None and own else None,
            communication=self._communication,
            streaming=self._streaming,
        )

    def close(self) -> None:
        """Ends the transfers, gives the pages' memory back and ends the compute threads."""
        if self._mover is not None:
            self._mover.close()
            self._mover = None
        self._host = None
        del self._paged
        if self._team is not None:
            self._team.close()


def _with_spans(batch: Batch, groups: tuple[int, ...]) -> Batch:
    """The batch with the spans of these groups only."""
    slices = tuple(replace(part, spans=tuple(part.spans[group] for group in groups)) for part in batch.slices)
    return replace(batch, slices=slices)


def written_pages(batch: Batch, layout: CacheLayout) -> Iterator[int]:
    """The pages in which the batch's slices write: those of the positions from each slice's start on."""
    for part in batch.slices:
        for group, span in zip(layout.groups, part.spans, strict=True):
            yield from span.ids[part.start // group.page_tokens - span.first :]
