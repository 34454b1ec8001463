"""ModelRank: one rank of a real model in its worker process: its share of the weights, its pages, its group."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch
from torch import Tensor

from backend.batch import Batch, Sampled
from backend.cache_identity import namespace
from backend.compose_engine import PROCESSOR_WARM_UP, load_served
from backend.compose_tiers import open_disk, rank_folder
from backend.hidden_states import HiddenStates
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.measured_rank import MeasuredRank
from backend.memory_meter import held_on
from backend.parallel.group import Group
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.prepare import PAGE_TOKENS
from backend.runner import Runner
from backend.surgery.describe import describe
from backend.surgery.load import read_config
from backend.workers.hidden_tensor import to_bytes, to_tensor
from backend.workers.near_processors import stay_near
from backend.workers.rank_work import OnProgress
from backend.workers.worker_messages import Load, Loaded
from kvcache.layout import CacheLayout, build_layout, rank_layout, stage_groups, stage_layout
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.host import HostTier
from kvcache.transfer import TransferDone
from quant.kv_format import parse_kv_formats


class CountedGroup:
    """A group that counts the collectives it has begun."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.rank, self.size = group.rank, group.size
        self.begun = 0

    def all_reduce(self, x: Tensor) -> None:
        self.begun += 1
        self._group.all_reduce(x)

    def gather(self, x: Tensor) -> Tensor | None:
        self.begun += 1
        return self._group.gather(x)

    def close(self) -> None:
        self._group.close()


class ModelRank:
    """A RankWork, and a StageWork."""

    def __init__(self) -> None:
        self._group: CountedGroup | None = None
        self._runner: Runner | None = None
        self._warm_up_tokens = 1
        self._rank = 0
        self._hidden: tuple[torch.dtype, int] = (torch.float32, 0)
        self.groups = 0

    @property
    def collectives(self) -> int:
        return 0 if self._group is None else self._group.begun

    def describe(self, files: ModelFiles) -> ModelFacts:
        return describe(read_config(files))

    def load(self, order: Load, on_progress: OnProgress) -> Loaded:
        return self._load(order, None, on_progress)

    def load_stage(self, order: Load, span: LayerSpan, on_progress: OnProgress) -> Loaded:
        return self._load(order, span, on_progress)

    def _load(self, order: Load, span: LayerSpan | None, on_progress: OnProgress) -> Loaded:
        plan, settings = order.plan, order.settings
        device = _take_device(plan, order.rank)
        communication = None
        if len(plan.ranks) > 1:
            _load_libraries(device)
            before = held_on(device)
            self._group = CountedGroup(_open_group(order, device))
            communication = max(0, held_on(device) - before)
        model, team = load_served(settings, plan, on_progress, order.rank, self._group, span)
        whole = build_layout(order.layers, model.dtype.itemsize, PAGE_TOKENS, parse_kv_formats(plan.kv_format))
        slots = range(len(order.layers)) if span is None else range(span.first_slot, span.stop_slot)
        layout = rank_layout(stage_layout(whole, slots), model.facts.layers)
        runner = self._runner = Runner(
            model,
            layout,
            plan.pages,
            team,
            rank=order.rank,
            communication=communication,
            groups=None if len(layout.groups) == len(whole.groups) else stage_groups(whole, slots),
        )
        self.groups, self._rank, self._hidden = len(whole.groups), order.rank, (model.dtype, model.columns)
        host = HostTier(plan.host_pages, layout.page_bytes, device) if plan.host_pages else None
        runner.attach_tiers(host, _hand_over_tier(order, layout, runner))
        self._warm_up_tokens = PROCESSOR_WARM_UP if device.type == "cpu" else plan.step_tokens
        return Loaded(
            device=str(device),
            weights_bytes=model.weights_bytes,
            kernel_orders=runner.kernel_orders,
            recompute_lengths=model.recompute_lengths,
            scaled_past=model.scaled_past,
        )

    def warm_up(self, on_progress: OnProgress) -> None:
        on_progress("warm up", 0, 0)
        self._loaded.warm_up(self._warm_up_tokens)
        # A full collection over all that loading left behind would stop a request for a third of a second.
        gc.collect()
        gc.freeze()

    def measure(self) -> MeasuredRank:
        return self._loaded.measure()[0]

    def execute(self, batch: Batch) -> list[Sampled | None]:
        return self._loaded.execute(batch)

    @property
    def hidden_dtype(self) -> str:
        return str(self._hidden[0]).removeprefix("torch.")

    @property
    def hidden_columns(self) -> int:
        return self._hidden[1]

    def run_stage(self, batch: Batch, hidden: HiddenStates | None) -> HiddenStates | list[Sampled | None]:
        given = None if hidden is None else to_tensor(hidden, self._hidden[0], batch.token_count, self._hidden[1])
        answer = self._loaded.run_stage(batch, given)
        if not isinstance(answer, Tensor):
            return answer
        if self._rank == 0:
            return to_bytes(answer)
        return [None for _ in batch.slices]

    def transfers_done(self, patience: float) -> list[TransferDone]:
        return self._loaded.transfers_done(patience)

    @property
    def _loaded(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the rank has not been loaded")
        return self._runner


def _hand_over_tier(order: Load, layout: CacheLayout, runner: Runner) -> DiskTier | None:
    """Through which this rank's share of the pages goes to, or comes from, the like rank of another engine."""
    settings, plan = order.settings, order.plan
    if not plan.disk_bytes:
        return None
    own = namespace(settings.files, plan, layout, [f"{order.rank}/{len(plan.ranks)}", *runner.kernel_orders])
    return open_disk(settings, plan, layout, own, rank_folder(plan, order.rank))


def _take_device(plan: Plan, rank: int) -> torch.device:
    """Makes the rank's device this process' own, before anything on it is begun."""
    own = plan.ranks[rank]
    device = torch.device(own.device)
    if device.type == "cuda":
        # Read when CUDA and NCCL begin, which they have not yet.
        if plan.visible_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(plan.visible_gpus)
        if not plan.peer_writes:
            os.environ["NCCL_P2P_DISABLE"] = "1"
        torch.cuda.set_device(device)
    if own.numa_node is not None:
        stay_near(own.numa_node)
    return device


def _load_libraries(device: torch.device) -> None:
    """What the group and the model's kernels both load, so that it does not count as what the group takes."""
    from backend.parallel import open_group as _group

    if device.type == "cpu":
        from backend.surgery import processor_kernels as _kernels

        del _kernels
    del _group


def _open_group(order: Load, device: torch.device) -> Group:
    from backend.parallel.open_group import open_group

    settings, meeting = order.settings, order.meeting
    return open_group(
        order.rank,
        len(order.plan.ranks),
        device,
        Path(meeting.folder),
        generation=meeting.generation,
        limit=settings.collective_timeout,
        only=settings.collectives,
    )
