"""Every family through the whole engine (pages, packed weights, kernels): greedy tokens as transformers' own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from backend.engine import Engine
from backend.request import Request, Sampling
from backend.runner import Runner
from backend.scheduler import Scheduler
from backend.surgery.load import load_model
from backend.surgery.pack import pack_model
from kvcache.cache_manager import CacheManager
from kvcache.layout import build_layout
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.tiny_models import FAMILIES, make_checkpoint, reference_model

COUNT = 16
LENGTHS = (3, 15, 70)
STEP_TOKENS = 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randint(1, 128, (length,), generator=generator).tolist())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_engine_answers_as_transformers_does(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prompts are longer than a step, sequences differ in length, and the pool is too small for all of them at once."""
    files = make_checkpoint(family, tmp_path_factory.mktemp(family))
    reference = reference_model(files)
    expected = {}
    for length in LENGTHS:
        out = reference.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([prompt(length)]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        expected[str(length)] = out[0, length:].tolist()
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    model = pack_model(model, WEIGHT_FORMATS["model"], team=Team(1))
    layout = build_layout(model.facts.layers, 4)
    # The longest sequence, and a little: the others wait, and are preempted for it.
    pages = sum(-(-(max(LENGTHS) + COUNT + STEP_TOKENS) // group.page_tokens) for group in layout.groups) + 2
    scheduler = Scheduler(
        CacheManager(layout, pages), max_context=128, max_sequences=8, step_tokens=STEP_TOKENS,
        recompute_lengths=model.recompute_lengths,
    )  # fmt: skip
    engine = Engine(scheduler, Runner(model, layout, pages, team=Team(1)), time.monotonic)
    for length in LENGTHS:
        engine.submit(Request(id=str(length), prompt=prompt(length), sampling=Sampling(max_tokens=COUNT)))
    given: dict[str, list[int]] = {name: [] for name in expected}
    ends: dict[str, str] = {}
    while engine.has_work:
        output = engine.step()
        for token in output.tokens:
            given[token.request].append(token.token)
        ends.update({end.request: end.reason for end in output.ends})
    assert given == expected
    assert set(ends.values()) == {"length"}
    scheduler.check_integrity()
