"""The fused stack against the very layers it stands for, over the same pages; and which models get one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.parallel.division import Division
from backend.request import Sampling
from backend.runner import Runner
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.surgery.stack import FusedStack
from kvcache.layout import build_layout
from quant.cpu.team import Team
from quant.kv_format import parse_kv_formats
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.thread_group import on_ranks, thread_groups
from tests.fakes.tiny_models import make_checkpoint

WIDE = ["llama-wide", "qwen3-wide", "mistral-wide"]
PAGES = 40


def packed(family: str, folder: Any, dtype: torch.dtype, team: Team) -> ServedModel:
    files = make_checkpoint(family, folder)
    model = load_model(files, dtype=dtype, device=torch.device("cpu"), on_progress=lambda done, total: None)
    return pack_model(model, WEIGHT_FORMATS["model"], team)


def stacks(model: ServedModel) -> list[FusedStack]:
    return [module for module in model.module.modules() if isinstance(module, FusedStack)]


class Recorder:
    """Keeps the logits that a model computed."""

    def __init__(self, model: ServedModel) -> None:
        self.logits: list[Tensor] = []
        self._forward = model.forward

    def __call__(self, *inputs: Any) -> Tensor:
        self.logits.append(self._forward(*inputs))
        return self.logits[-1]


def run(model: ServedModel, team: Team, formats: str = "model") -> list[Tensor]:
    """Logits of a mixed schedule: prompts in chunks, and decodes between them; more rows each time."""
    layout = build_layout(model.facts.layers, model.dtype.itemsize, formats=parse_kv_formats(formats))
    runner = Runner(model, layout, PAGES, team)
    recorder = Recorder(model)
    object.__setattr__(model, "forward", recorder)
    task = SampleTask(Sampling(), (1,), ())
    groups = len(layout.groups)

    def part(sequence: int, start: int, count: int) -> Slice:
        pages = range(sequence * 8, sequence * 8 + 8)
        tokens = [(7 * sequence + position) % 128 for position in range(start, start + count)]
        return Slice(sequence, start, tokens, start + count, start + count, (PageSpan(0, pages),) * groups, task)

    for step, parts in enumerate(
        [
            [part(0, 0, 5)],
            [part(0, 5, 1), part(1, 0, 17)],
            [part(1, 17, 1), part(2, 0, 40), part(0, 6, 1)],
            [part(2, 40, 30), part(3, 0, 70)],
            [part(3, 70, 1)],
        ]
    ):
        runner.execute(Batch(step, tuple(parts)))
    object.__delattr__(model, "forward")
    return recorder.logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "formats"), [*((family, "model") for family in WIDE), ("llama-wide", "int8"), ("mistral-wide", "fp8")]
)
def test_computes_what_its_layers_compute(
    family: str,
    formats: str,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = Team(2)
    model = packed(family, tmp_path_factory.mktemp(family), dtype, team)
    (stack,) = stacks(model)
    fused = run(model, team, formats)
    never: Callable[[Any], bool] = lambda context: False  # noqa: E731
    monkeypatch.setattr(stack, "_runs_in_place", never)
    plain = run(model, team, formats)
    for given, expected in zip(fused, plain, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 4e-2
        scale = expected.abs().max().item()
        torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance * scale)
    team.close()


def test_models_of_another_kind_keep_their_layers(tmp_path_factory: pytest.TempPathFactory) -> None:
    for family in ("gemma2", "mixtral", "llama"):  # more norms, experts, heads too narrow
        assert not stacks(packed(family, tmp_path_factory.mktemp(family), torch.float32, Team(1)))


@pytest.mark.parametrize("family", WIDE)
def test_ranks_stacks_add_up_to_the_whole(family: str, tmp_path: Any) -> None:
    """Each rank runs a stack of its own, in pieces that end where the ranks add up: twice a layer, and at both ends."""
    team = Team(1)
    files = make_checkpoint(family, tmp_path)
    whole = packed(family, tmp_path, torch.float32, team)
    groups = thread_groups(2)
    models = [
        pack_model(
            load_model(
                files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None,
                division=Division(group.rank, (1.0, 1.0), (1.0, 1.0)), group=group,
            ),
            WEIGHT_FORMATS["model"],
            Team(1),
        )
        for group in groups
    ]  # fmt: skip
    assert all(len(stacks(model)) == 1 for model in models)
    assert groups[0].calls == 0
    expected = run(whole, team)
    given = on_ranks(groups, lambda rank: run(models[rank], Team(1)))
    assert len(given[0]) == len(expected)
    for ours, wanted in zip(given[0], expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    layers = len(whole.facts.layers)
    # The embedding, two sums a layer, and the logits where a step has any.
    assert groups[0].calls == sum(1 + 2 * layers + (len(logits) > 0) for logits in expected)
