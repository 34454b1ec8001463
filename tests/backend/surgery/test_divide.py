"""Dividing a model: what is cut and what stays whole, and that a cut which computes something else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backend.errors import UnsupportedModelError
from backend.parallel.division import Division
from backend.surgery import cut, safetensors_weights
from backend.surgery.batched_experts import adds_up, batched_experts
from backend.surgery.build import build
from backend.surgery.cuts import Cuts
from backend.surgery.describe import trace_model
from backend.surgery.divide import checked_cuts
from backend.surgery.load import load_model
from tests.fakes.thread_group import thread_groups
from tests.fakes.tiny_models import FAMILIES, make_checkpoint

HALVES = (1.0, 1.0)


def cuts_of(family: str, rank: int = 0, weights: tuple[float, ...] = HALVES) -> Cuts:
    config = FAMILIES[family]()
    _, traced = trace_model(config)
    return checked_cuts(config, traced, Division(rank, weights, weights))


def kept(cuts: Cuts, name: str) -> tuple[int, list[int]]:
    one = cuts.tensors[name]
    return one.dim, one.index.tolist()


def test_heads_columns_and_rows_go_together() -> None:
    cuts = cuts_of("llama", rank=1)
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    assert kept(cuts, f"{attention}.q_proj.weight") == (0, list(range(32, 64)))
    assert kept(cuts, f"{attention}.k_proj.weight") == (0, list(range(16, 32)))
    assert kept(cuts, f"{attention}.v_proj.weight") == (0, list(range(16, 32)))
    assert kept(cuts, f"{attention}.o_proj.weight") == (1, list(range(32, 64)))
    assert kept(cuts, f"{mlp}.gate_proj.weight") == (0, list(range(48, 96)))
    assert kept(cuts, f"{mlp}.down_proj.weight") == (1, list(range(48, 96)))
    assert cuts.summed == {f"model.layers.{index}.{name}" for index in range(3)
                           for name in ("self_attn.o_proj", "mlp.down_proj")}  # fmt: skip


def test_packed_projections_are_cut_in_each_of_their_parts() -> None:
    cuts = cuts_of("phi3-longrope")
    # Queries, keys and values lie one behind the other: 64, 32 and 32 rows; gate and up: 96 and 96.
    assert kept(cuts, "model.layers.0.self_attn.qkv_proj.weight") == (
        0, [*range(32), *range(64, 80), *range(96, 112)],
    )  # fmt: skip
    assert kept(cuts, "model.layers.0.mlp.gate_up_proj.weight") == (0, [*range(48), *range(96, 144)])


def test_latents_and_routers_stay_whole_and_sinks_go_with_their_heads() -> None:
    latent = cuts_of("deepseek-v3")
    assert "model.layers.0.self_attn.kv_a_proj_with_mqa.weight" not in latent.tensors
    assert "model.layers.0.self_attn.q_a_proj.weight" not in latent.tensors
    assert kept(latent, "model.layers.0.self_attn.kv_b_proj.weight") == (0, list(range(2 * (16 + 12))))
    assert kept(cuts_of("gpt-oss", rank=1), "model.layers.0.self_attn.sinks") == (0, [2, 3])
    assert not any("router" in name or "mlp.gate." in name for name in cuts_of("qwen3-moe").tensors)


def test_unequal_ranks_get_unequal_parts() -> None:
    parts = [
        len(cuts_of("llama", rank, (1.0, 2.0)).tensors["model.layers.0.mlp.up_proj.weight"].index) for rank in (0, 1)
    ]
    assert parts == [32, 64]


def test_a_cut_that_computes_something_else_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rank's own counts, a packed projection would be split in the wrong places."""
    monkeypatch.setattr(cut, "_count_own_heads", lambda *unused: None)
    with pytest.raises(UnsupportedModelError, match=r"phi3 are not divided over 2 ranks yet.\n.*\n.*--tp 1"):
        cuts_of("phi3-longrope")


def test_a_cut_of_the_wrong_rows_is_noticed() -> None:
    config = FAMILIES["llama"]()
    _, traced = trace_model(config)
    from backend.surgery.cut import check_same, cut_model
    from backend.surgery.cuts import find_cuts
    from backend.surgery.flow import FlowModel

    flow = FlowModel(build(config, torch.float32), traced)
    whole = flow.run()
    cuts = find_cuts(whole, traced, Division(0, HALVES, HALVES))
    name = "model.layers.2.self_attn.q_proj"
    wrong = replace(cuts.tensors[f"{name}.weight"], index=torch.arange(1, 33))
    cuts.tensors[f"{name}.weight"] = wrong
    cuts.outputs[name] = wrong.index
    cut_model(flow.model, traced, cuts)
    flow.kept.update(cuts.outputs)
    assert check_same(whole, flow.run(), cuts) == ["model.layers.2.self_attn"]


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="over 5 ranks"):
        cuts_of("llama", weights=(1.0,) * 5)


def test_a_rank_reads_only_its_own_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_checkpoint("qwen3-moe", tmp_path)
    read: list[int] = []
    original = safetensors_weights._Reader._tensor

    def counted(self: Any, *arguments: Any) -> torch.Tensor:
        tensor = original(self, *arguments)
        read.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(safetensors_weights._Reader, "_tensor", counted)

    def load(**division: Any) -> int:
        read.clear()
        load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda a, b: None, **division)
        return sum(read)

    whole = load()
    group = thread_groups(2)[1]
    assert load(division=Division(1, HALVES, HALVES, "expert"), group=group) < 0.55 * whole


class _Around(nn.Module):
    """Uses its experts' rows in one way or another."""

    def __init__(self, experts: nn.Module, weighted: bool) -> None:
        super().__init__()
        self.experts, self.weighted = experts, weighted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.experts(x[0].repeat(4, 1)).reshape(4, *x.shape[1:])
        return (rows * torch.arange(1.0, 5.0)[:, None, None] if self.weighted else rows).sum(0)


def test_experts_that_compute_every_token_are_divided_only_where_they_are_added_up() -> None:
    config = FAMILIES["llama4"]()
    model = build(config, torch.float32)
    (experts,) = [module for module in model.modules() if batched_experts(module)]
    assert adds_up(_Around(experts, weighted=False), experts, config.hidden_size)
    assert not adds_up(_Around(experts, weighted=True), experts, config.hidden_size)
    assert not batched_experts(nn.Linear(4, 4))
