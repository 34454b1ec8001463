"""A sample of the matrix of architectures; `python -m tests.conformance.architectures` runs all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conformance.architectures.judge import WAYS, judge
from tests.conformance.architectures.reference import answer, unnoticed
from tests.conformance.architectures.shrink import shrink, types
from tests.conformance.architectures.team import Team

WORKING = (
    "cohere",  # attention and MLP side by side, norms of heads
    "axk2",  # keys that are chosen, a gate in the projection of queries
    "deepseek_v3",  # latents, grouped experts
    "gpt_neox",  # packed query, key and value, biases
    "longcat_flash",  # experts of its own, two attention modules to a layer
    "mimo_v2_flash",  # sinks, windows, values of another size
    "hrm_text",  # layers that run several times in a pass
    "laguna",  # heads that differ by layer
    "llama",  # nine query heads to three KV heads
    "nemotron",  # layers that keep arguments to themselves
    "olmo2",  # norms over all heads
    "phi3",  # packed gate and up
    "starcoder2",  # one KV head, tied embeddings
)
SAMPLE_WAYS = tuple(way for way in WAYS if way.title in ("TP 1", "TP 3", "EP 3"))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Team(3, tmp_path_factory.mktemp("ranks")) as team:
        yield team
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", WORKING)
def test_it_works_divided_and_whole(name: str, team: Team, tmp_path: Path) -> None:
    row = judge(name, types()[name], team, tmp_path, SAMPLE_WAYS)
    assert row.works


@pytest.mark.parametrize(("name", "reason"), [("qwen3_next", "recurrent state"), ("deepseek_v4", "compressed keys")])
def test_others_are_refused_by_name(name: str, reason: str, team: Team, tmp_path: Path) -> None:
    verdict = judge(name, types()[name], team, tmp_path, SAMPLE_WAYS).verdict
    assert verdict.startswith("refused: ")
    assert reason in verdict


def test_a_part_that_does_nothing_is_noticed_to_do_nothing() -> None:
    model = AutoModelForCausalLM.from_config(shrink(types()["llama"]), attn_implementation="eager").eval()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.bias.zero_()
        left_out = unnoticed(model, answer(model), ["model.layers.1.self_attn"])
    assert left_out == ["model.layers.1.self_attn"]
