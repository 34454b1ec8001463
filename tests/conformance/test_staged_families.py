"""Every family in stages computes what it computes whole: logits, and greedy tokens through pages and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.batch import Batch, Sampled
from backend.errors import UnsupportedModelError
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.parallel.division import Division
from backend.runner import Runner
from backend.surgery.describe import trace_model
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.surgery.stage_probe import probe_stage
from kvcache.layout import CacheLayout, build_layout, rank_layout, stage_groups, stage_layout
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.conformance.architectures.shrink import shrink, types
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.paged_greedy import paged_greedy
from tests.fakes.stage_chain import StageChain, load_stages, spans_of
from tests.fakes.thread_group import ThreadGroup, on_ranks, thread_groups
from tests.fakes.tiny_models import FAMILIES, make_checkpoint

LENGTH = 20
# Kinds of attention, of experts and of tables; what runs several times in a pass has no stages.
PAGED = ("llama-tied", "qwen3-wide", "mistral-wide", "gpt-oss", "deepseek-v3", "phi3-longrope")
PAGES = 96


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int) -> list[int]:
    return torch.randint(1, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def answer(model: ServedModel, tokens: Tensor, hidden: Tensor | None) -> Tensor:
    """Logits of all tokens, or the hidden states for the next stage."""
    every = torch.arange(len(tokens))
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, len(tokens))])
    given = model.forward(tokens, every, torch.full_like(every, len(tokens)), every, context, hidden).clone()
    assert context.slots_called == list(range(len(model.facts.layers)))
    return given


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"hrm-text"}))
def test_stages_hand_on_what_the_whole_model_computes(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint(family, tmp_path_factory.mktemp(family))
    whole = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    tokens = torch.tensor(prompt(LENGTH))
    hidden: Tensor | None = None
    stages = load_stages(files, [0, 1, 3])
    for stage in stages:
        hidden = answer(stage, tokens, hidden)
    assert hidden is not None
    torch.testing.assert_close(hidden, answer(whole, tokens, None), rtol=1e-5, atol=1e-5)
    # A tied table is on both; nothing else is anywhere twice.
    module = whole.module
    tied = module.get_input_embeddings().weight is module.get_output_embeddings().weight  # pyright: ignore
    twice = module.get_input_embeddings().weight.nbytes if tied else 0  # pyright: ignore
    held = sum(stage.weights_bytes for stage in stages)
    assert held == pytest.approx(whole.weights_bytes + twice, rel=0.005)
    assert all(stage.weights_bytes < whole.weights_bytes for stage in stages)


@pytest.mark.parametrize("family", PAGED)
def test_stages_choose_the_same_tokens_over_pages(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint(family, tmp_path_factory.mktemp(family))
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    team = Team(1)
    whole = pack_model(model, WEIGHT_FORMATS["model"], team)
    layout = build_layout(whole.facts.layers, 4)
    prompts = [prompt(length) for length in (3, LENGTH, 40)]
    limits = whole.recompute_lengths
    expected = paged_greedy(Runner(whole, layout, PAGES, team).execute, layout, prompts, 8, 16, limits)
    for edges in ([0, 2, 3], [0, 1, 2, 3]):
        chain = StageChain(load_stages(files, edges), layout, PAGES)
        given = paged_greedy(chain.execute, layout, prompts, 8, 16, limits)
        for ours, wanted in zip(given, expected, strict=True):
            assert [one.token for one in ours] == [one.token for one in wanted]
            assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in wanted], abs=1e-5)
        chain.close()
    team.close()


@pytest.mark.parametrize("family", ["qwen3-wide", "deepseek-v3"])
def test_stages_of_two_ranks_choose_the_same_tokens(family: str, tmp_path: Path) -> None:
    """Only the first rank of a stage is given hidden states, and only its own are handed on."""
    files = make_checkpoint(family, tmp_path)
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    whole = pack_model(model, WEIGHT_FORMATS["model"], Team(1))
    layout = build_layout(whole.facts.layers, 4)
    prompts = [prompt(3), prompt(LENGTH)]
    expected = paged_greedy(Runner(whole, layout, PAGES, Team(1)).execute, layout, prompts, 6, 16)
    stages: list[tuple[list[ThreadGroup], list[Runner]]] = []
    for span in spans_of([0, 1, 3], 3):
        groups = thread_groups(2)
        # One after the other: building patches torch for a moment.
        stages.append((groups, [_rank(files, span, group, layout) for group in groups]))

    def execute(batch: Batch) -> list[Sampled | None]:
        hidden: Tensor | None = None
        for groups, runners in stages:
            answers = on_ranks(
                groups,
                lambda rank, runners=runners, given=hidden: runners[rank].run_stage(batch, None if rank else given),
            )
            if not isinstance(answers[0], Tensor):
                return answers[0]
            hidden = answers[0].clone()
        raise AssertionError("no stage had results")

    given = paged_greedy(execute, layout, prompts, 6, 16)
    assert [[one.token for one in ours] for ours in given] == [[one.token for one in wanted] for wanted in expected]


def _rank(files: ModelFiles, span: LayerSpan, group: ThreadGroup, whole: CacheLayout) -> Runner:
    model = load_model(
        files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None, span=span,
        division=Division(group.rank, (1.0, 1.0), (1.0, 1.0)), group=group,
    )  # fmt: skip
    team = Team(1)
    slots = range(span.first_slot, span.stop_slot)
    layout = rank_layout(stage_layout(whole, slots), model.facts.layers)
    packed = pack_model(model, WEIGHT_FORMATS["model"], team)
    return Runner(packed, layout, PAGES, team, rank=group.rank, groups=stage_groups(whole, slots))


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma4_text", "more than hidden states"),  # embeddings go to every layer
        ("gemma3n_text", "one row a token"),  # four streams of hidden states
    ],
)
def test_layers_that_hand_on_more_than_hidden_states_have_no_stages(name: str, reason: str) -> None:
    config = shrink(types()[name])
    facts, traced = trace_model(config)
    slots = len(facts.layers)
    with pytest.raises(UnsupportedModelError, match="not cut into stages") as refused:
        probe_stage(config, traced, spans_of([0, 2, slots], slots)[1])
    assert reason in refused.value.why


def test_layers_that_run_several_times_have_no_stages(tmp_path: Path) -> None:
    files = make_checkpoint("hrm-text", tmp_path)
    with pytest.raises(UnsupportedModelError, match="not cut into stages") as refused:
        load_stages(files, [0, 1, 2])
    assert "several times" in refused.value.why
    assert "--pp 1" in refused.value.hint
