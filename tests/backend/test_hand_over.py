"""A real tiny model, prompts computed by one engine and answers by another, answers as one engine does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backend.compose_engine import ComposedEngine, compose_engine
from backend.engine_settings import EngineSettings
from backend.library.files import ModelFiles
from backend.request import Request, Sampling
from tests.fakes.tiny_models import make_checkpoint

LENGTHS = (80, 33, 48, 17)
PROMPTS = tuple(
    tuple((7 * number + 3 * position) % 90 + 3 for position in range(length)) for number, length in enumerate(LENGTHS)
)
FULL_PAGES = sum(length // 16 for length in LENGTHS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "home"))


def compose(files: ModelFiles, **changes: object) -> ComposedEngine:
    plain = {"device": "cpu", "dtype": "float32", "max_context": 128, "threads": 2, "host_cache": 0}
    settings = EngineSettings(files=files, **(plain | changes))  # pyright: ignore[reportArgumentType]
    return compose_engine(settings, lambda stage, done, total: None)


def pair(files: ModelFiles, folder: Path, **changes: object) -> tuple[ComposedEngine, ComposedEngine]:
    shared = {"disk_cache": 64 << 20, "cache_dir": str(folder), "cache_secret": b"s" * 32, **changes}
    return compose(files, role="prefill", **shared), compose(files, role="decode", **shared)


def requests(max_tokens: int, **changes: object) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens)
    return [
        msgspec.structs.replace(Request(id=f"r{number}", prompt=prompt, sampling=sampling), **changes)
        for number, prompt in enumerate(PROMPTS)
    ]


def run(composed: ComposedEngine, wanted: list[Request]) -> list[list[int]]:
    """Each request's new tokens; all run at once, and end once."""
    engine, found, ends = composed.engine, {request.id: [] for request in wanted}, []
    for request in wanted:
        engine.submit(request)
    for _ in range(2000):
        if not engine.has_work:
            break
        output = engine.step()
        for token in output.tokens:
            found[token.request].append(token.token)
        ends += output.ends
    assert sorted(end.request for end in ends) == sorted(found)
    assert {end.reason for end in ends} == {"length"}
    return list(found.values())


def go_on(firsts: list[list[int]]) -> list[Request]:
    """What the decode engine gets, given the prefill engine's tokens."""
    return [
        msgspec.structs.replace(request, prior=tuple(first))
        for request, first in zip(requests(12), firsts, strict=True)
    ]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_answers_are_one_engines_and_no_prompt_is_computed_twice(files: ModelFiles, tmp_path: Path, ranks: int) -> None:
    alone = compose(files, tensor_parallel=ranks)
    expected = run(alone, requests(12))
    alone.engine.close()
    prefill, decode = pair(files, tmp_path / "pages", tensor_parallel=ranks)
    try:
        firsts = run(prefill, requests(1, hand_over=True))
        rests = run(decode, go_on(firsts))
        assert [first + rest for first, rest in zip(firsts, rests, strict=True)] == expected
        cache = decode.engine.statistics().cache
        assert cache.disk_fetched_pages == FULL_PAGES
        assert cache.disk_hit_tokens == 16 * FULL_PAGES
        assert prefill.engine.statistics().cache.stored_pages == FULL_PAGES
        # The same prompts again: the first engine has them, and so does the folder.
        assert run(prefill, requests(1, hand_over=True)) == firsts
    finally:
        prefill.engine.close()
        decode.engine.close()


def test_pages_that_were_changed_or_lost_on_the_way_are_computed_again(files: ModelFiles, tmp_path: Path) -> None:
    alone = compose(files)
    expected = run(alone, requests(12))
    alone.engine.close()
    prefill, decode = pair(files, tmp_path / "pages")
    try:
        firsts = run(prefill, requests(1, hand_over=True))
        records = sorted(path for path in (tmp_path / "pages").rglob("*") if len(path.name) == 64 and path.is_file())
        records = [path for path in records if "models" not in path.parts]
        assert len(records) == FULL_PAGES
        for path in records[::3]:
            path.unlink()
        for path in records[1::3]:
            data = bytearray(path.read_bytes())
            data[-9] ^= 1
            path.write_bytes(data)
        rests = run(decode, go_on(firsts))
        assert [first + rest for first, rest in zip(firsts, rests, strict=True)] == expected
        assert decode.engine.statistics().cache.failed_transfers > 0
    finally:
        prefill.engine.close()
        decode.engine.close()


def test_a_folder_too_small_for_a_prompt_loses_pages_and_no_answer(files: ModelFiles, tmp_path: Path) -> None:
    prefill, decode = pair(files, tmp_path / "pages", disk_cache=3 * 9000)
    alone = compose(files)
    try:
        firsts = run(prefill, requests(1, hand_over=True))
        rests = run(decode, go_on(firsts))
        assert [first + rest for first, rest in zip(firsts, rests, strict=True)] == run(alone, requests(12))
        assert decode.engine.statistics().cache.disk_fetched_pages < FULL_PAGES
    finally:
        for one in (prefill, decode, alone):
            one.engine.close()
