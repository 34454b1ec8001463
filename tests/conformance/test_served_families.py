"""Every family through the whole engine (pages, packed weights, kernels): greedy tokens as transformers' own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from backend.engine import Engine
from backend.library.files import ModelFiles
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
LENGTHS = (3, 20, 70)  # the middle one grows past longrope's switch
STEP_TOKENS = 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int) -> tuple[int, ...]:
    """Each is the beginning of the longer ones, so that they may share pages."""
    generator = torch.Generator().manual_seed(70)
    return tuple(torch.randint(1, 128, (max(LENGTHS),), generator=generator).tolist()[:length])


def served(files: ModelFiles) -> tuple[Engine, Scheduler]:
    """An engine whose pool holds the longest sequence, and a little: the others wait, and are preempted for it."""
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    model = pack_model(model, WEIGHT_FORMATS["model"], team=Team(1))
    layout = build_layout(model.facts.layers, 4)
    pages = sum(-(-(max(LENGTHS) + COUNT + STEP_TOKENS) // group.page_tokens) for group in layout.groups) + 2
    scheduler = Scheduler(
        CacheManager(layout, pages), max_context=128, max_sequences=8, step_tokens=STEP_TOKENS,
        recompute_lengths=model.recompute_lengths, scaled_past=model.scaled_past,
    )  # fmt: skip
    return Engine(scheduler, Runner(model, layout, pages, team=Team(1)), time.monotonic), scheduler


def answers(engine: Engine) -> tuple[dict[str, list[int]], int]:
    """The tokens for the prompt of each length, all submitted at once, and how many prompt tokens were cached."""
    for length in LENGTHS:
        engine.submit(Request(id=str(length), prompt=prompt(length), sampling=Sampling(max_tokens=COUNT)))
    given: dict[str, list[int]] = {str(length): [] for length in LENGTHS}
    ends: set[str] = set()
    cached = 0
    while engine.has_work:
        output = engine.step()
        for token in output.tokens:
            given[token.request].append(token.token)
        ends |= {end.reason for end in output.ends}
        cached += sum(start.cached_tokens for start in output.starts)
    assert ends == {"length"}
    return given, cached


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_engine_answers_as_transformers_does(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prompts are longer than a step, sequences differ in length and share their beginnings, and pages are scarce.

    The second time, what the first left in the cache is used again.
    """
    files = make_checkpoint(family, tmp_path_factory.mktemp(family))
    reference = reference_model(files)
    expected = {}
    for length in LENGTHS:
        out = reference.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([prompt(length)]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        expected[str(length)] = out[0, length:].tolist()
    engine, scheduler = served(files)
    assert answers(engine)[0] == expected
    again, cached = answers(engine)
    assert again == expected
    assert cached > 0
    scheduler.check_integrity()
