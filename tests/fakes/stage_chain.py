"""StageChain: the stages of a model one after the other in one process, as the executor of stages has them apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from backend.batch import Batch, Sampled
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.runner import Runner
from backend.surgery.describe import describe
from backend.surgery.load import load_model, read_config
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.workers.hidden_tensor import to_bytes, to_tensor
from kvcache.layout import CacheLayout, rank_layout, stage_groups, stage_layout
from kvcache.transfer import TransferDone
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS


def spans_of(edges: Sequence[int], slots: int) -> list[LayerSpan]:
    """Spans between neighbouring edges, of which the last is the count of layers; `slots` are the whole model's."""
    of = edges[-1]
    return [LayerSpan(first, stop, of, first * slots // of, stop * slots // of) for first, stop in pairwise(edges)]


def load_stages(files: ModelFiles, edges: Sequence[int], dtype: torch.dtype = torch.float32) -> list[ServedModel]:
    """Each stage's model, unpacked."""
    slots = len(describe(read_config(files)).layers)
    return [
        load_model(
            files, dtype=dtype, device=torch.device("cpu"), on_progress=lambda done, total: None, span=span
        )
        for span in spans_of(edges, slots)
    ]  # fmt: skip


class StageChain:
    """An Executor whose stages hand hidden states on as bytes."""

    def __init__(self, stages: Sequence[ServedModel], whole: CacheLayout, pages: int) -> None:
        """stages: from `load_stages`, not packed yet. whole: the whole model's layout."""
        self.models: list[ServedModel] = []
        self.runners: list[Runner] = []
        for model in stages:
            if model.stage is None:
                raise ValueError("a whole model is no stage")
            team = Team(1)
            packed = pack_model(model, WEIGHT_FORMATS["model"], team)
            slots = range(model.stage.span.first_slot, model.stage.span.stop_slot)
            layout = rank_layout(stage_layout(whole, slots), model.facts.layers)
            self.models.append(packed)
            self.runners.append(Runner(packed, layout, pages, team, groups=stage_groups(whole, slots)))

    def execute(self, batch: Batch) -> list[Sampled | None]:
        given: Tensor | None = None
        for model, runner in zip(self.models, self.runners, strict=True):
            answer = runner.run_stage(batch, given)
            if not isinstance(answer, Tensor):
                return answer
            given = to_tensor(to_bytes(answer), model.dtype, batch.token_count, model.columns)
        raise RuntimeError("no stage of the chain ends the model")

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        return []

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
