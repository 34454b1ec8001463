"""The cache on the real model and real servers: overflowed tiers, a restart, formats, and keys that share nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import openai
import pytest
from openai.types import CompletionUsage

from backend.library.files import ModelFiles
from tests.fakes.processes import RunningServer, running_server
from tests.faults.cache_state import cache_statistics, conserved, settled
from tests.faults.chat_load import ChatLoad, Turn

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("cache")]

FLOAT = ("--dtype", "float32", "--max-context", "1024")
LOAD = ChatLoad(chats=8, turns=3, passage_words=120, answer_tokens=12, seed=3)
PROMPT = [200 + 7 * index % 3000 for index in range(200)]


@pytest.fixture(scope="module")
def expected(starter: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Turn, str]:
    """Answers of a server whose pool holds everything."""
    with running_server(tmp_path_factory.mktemp("unlimited"), *FLOAT, "--kv-pool", "1GiB") as server:
        return asyncio.run(LOAD.run(server.url, concurrency=8))


def test_an_overflowed_cache_answers_as_an_unlimited_one_also_after_a_restart(
    expected: Mapping[Turn, str], tmp_path: Path
) -> None:
    sizes = ("--kv-pool", "50MiB", "--host-cache", "24MiB", "--disk-cache", "400MiB")
    options = (*FLOAT, *sizes, "--cache-dir", str(tmp_path / "pages"))
    with running_server(tmp_path, *options) as server:
        given = asyncio.run(LOAD.run(server.url, concurrency=4, pause=2.5))
        statistics = cache_statistics(server.url)
        assert given == expected
        used = ("evictions", "offloaded_pages", "stored_pages", "hit_tokens", "disk_fetched_pages")
        assert {name: statistics[name] > 0 for name in used} == dict.fromkeys(used, True), statistics
        assert conserved(statistics)
        assert _usage(server, PROMPT) == 0
        assert settled(server.url, 3.0) > statistics["stored_pages"]
    with running_server(tmp_path, *options) as server:
        # All but the page of the last token.
        assert _usage(server, PROMPT) == 192
        assert cache_statistics(server.url)["disk_hit_tokens"] == 192


def test_int8_pages_hold_more_and_answer_nearly_the_same(expected: Mapping[Turn, str], tmp_path: Path) -> None:
    with running_server(tmp_path, *FLOAT, "--kv-pool", "64MiB", "--kv-format", "int8") as server:
        statistics = cache_statistics(server.url)
        plain = 30 * 3 * (64 + 64) * 4
        assert statistics["pages_total"] * 16 > 3.6 * (64 << 20) / plain
        given = asyncio.run(LOAD.run(server.url, concurrency=4))
        equal = sum(given[turn] == answer for turn, answer in expected.items())
        assert equal >= len(expected) // 2
        assert _usage(server, PROMPT) == 0
        assert _usage(server, PROMPT) == 192


def _usage(server: RunningServer, prompt: list[int]) -> int:
    """Tokens of this prompt that the server says were cached."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        usage = client.completions.create(model="starter", prompt=prompt, max_tokens=1, temperature=0).usage
    assert isinstance(usage, CompletionUsage)
    assert usage.prompt_tokens == len(prompt)
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens_details.cached_tokens or 0
