"""Every family, divided over ranks, answers as transformers' own undivided model does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from backend.parallel.division import Division, ExpertDivision
from backend.planner.shares import Shares, of_rank
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.decode import decode
from tests.fakes.thread_group import on_ranks, thread_groups
from tests.fakes.tiny_models import FAMILIES, make_checkpoint, reference_model

COUNT = 8
LENGTHS = (3, 20)
# Three ranks outnumber the KV heads, and divide nothing evenly.
RANKS: tuple[tuple[int, ExpertDivision], ...] = ((2, "tensor"), (3, "tensor"), (3, "expert"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int) -> list[int]:
    return torch.randint(1, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_divided_model_answers_as_transformers_does(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint(family, tmp_path_factory.mktemp(family))
    reference = reference_model(files)
    prompts = [prompt(length) for length in LENGTHS]
    expected = []
    for tokens in prompts:
        out = reference.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([tokens]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, eos_token_id=None
        )
        expected.append(out[0, len(tokens) :].tolist())
    with torch.no_grad():
        wanted = reference(torch.tensor(prompts[-1])[None]).logits[0]
    whole = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    for size, experts in RANKS:
        groups = thread_groups(size)
        # One after the other: building patches torch for a moment.
        models = [
            load_model(
                files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None,
                division=Division(group.rank, (1.0,) * size, (1.0,) * size, experts), group=group,
            )
            for group in groups
        ]  # fmt: skip
        assert sum(model.weights_bytes for model in models) < 1.5 * whole.weights_bytes
        for rank, model in enumerate(models):  # what the Plan counts on
            share = of_rank(whole.facts, Shares((1.0,) * size, (1.0,) * size, experts), rank)
            assert 4 * share.parameters == pytest.approx(model.weights_bytes, rel=0.02)
            assert (share.heads, share.layers) == (model.facts.heads, model.facts.layers)

        def work(rank: int, models: list[ServedModel] = models, groups: list = groups) -> tuple:
            model, tokens, every = models[rank], torch.tensor(prompts[-1]), torch.arange(LENGTHS[-1])
            context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, LENGTHS[-1])])
            logits = model.forward(tokens, every, torch.full_like(every, LENGTHS[-1]), every, context)
            return logits, decode(model, prompts, COUNT, chunk=7, group=groups[rank])

        results = on_ranks(groups, work)
        assert (results[0][0] - wanted).abs().max() < 1e-3
        assert all(tokens == expected for _, tokens in results)
