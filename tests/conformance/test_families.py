"""Every family, after surgery and loading, answers as transformers' own model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from transformers import PreTrainedModel

from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.decode import decode
from tests.fakes.tiny_models import FAMILIES, make_checkpoint, reference_model

COUNT = 16
LENGTHS = (3, 15, 70)  # the middle one grows past longrope's switch, the last is past every window from the start


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by us and by transformers."""

    served: ServedModel
    reference: PreTrainedModel


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, 128, (length,), generator=generator).tolist()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    files = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    progress: list[tuple[int, int]] = []
    served = load_model(
        files,
        dtype=torch.float32,
        device=torch.device("cpu"),
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress[0][0] == 0
    assert progress[-1] == (files.bytes, files.bytes)
    assert progress == sorted(progress)
    return Pair(served, reference_model(files))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference_tokens(model: PreTrainedModel, tokens: list[int]) -> list[int]:
    out = model.generate(  # pyright: ignore[reportCallIssue]
        torch.tensor([tokens]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, eos_token_id=None
    )
    return out[0, len(tokens) :].tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal_those_of_transformers(pair: Pair, length: int) -> None:
    tokens = torch.tensor(prompt(length))
    every = torch.arange(length)
    context = PlainAttentionContext(pair.served.facts, [(SequenceCache(), 0, length)])
    given = pair.served.forward(tokens, every, torch.full((length,), length), every, context)
    with torch.no_grad():
        expected = pair.reference(tokens[None]).logits[0]
    assert given.dtype == torch.float32
    assert (given - expected).abs().max() < 1e-4


def test_greedy_tokens_equal_those_of_transformers_in_a_mixed_batch(pair: Pair) -> None:
    prompts = [prompt(length) for length in LENGTHS]
    expected = [reference_tokens(pair.reference, tokens) for tokens in prompts]
    assert decode(pair.served, prompts, COUNT, chunk=1000) == expected
    assert decode(pair.served, prompts, COUNT, chunk=7) == expected


def test_every_layer_s_attention_decides_the_answer(pair: Pair) -> None:
    tokens = prompt(15)
    whole = decode(pair.served, [tokens], COUNT, chunk=1000)
    for slot in range(len(pair.served.facts.layers)):
        assert decode(pair.served, [tokens], COUNT, chunk=1000, zeroed_slot=slot) != whole, slot


def test_rows_choose_which_logits_are_computed(pair: Pair) -> None:
    tokens = torch.tensor(prompt(15))
    every = torch.arange(15)

    def run(rows: torch.Tensor) -> torch.Tensor:
        context = PlainAttentionContext(pair.served.facts, [(SequenceCache(), 0, 15)])
        return pair.served.forward(tokens, every, torch.full((15,), 15), rows, context)

    picked = torch.tensor([2, 14])
    assert torch.allclose(run(picked), run(every)[picked], atol=1e-5)
