"""The README's steps to add a machine, word for word, on two hosts: a chat over both, and one that outlives a peer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from backend.library.files import ModelFiles
from tests.end_to_end.answers import Expected
from tests.end_to_end.prompts import PROMPTS
from tests.faults.cluster import FaultCluster
from tests.faults.greedy import begin, client_at
from tests.hosts import hosts_of, why_no_namespaces

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_no_namespaces()), reason=f"no hosts: {why_no_namespaces()}"),
]
TOKENS = 96


@pytest.fixture(scope="module")
def cluster(starter: ModelFiles) -> Iterator[FaultCluster]:
    """A machine, and another one that was added to it; tests stand on the first."""
    with hosts_of("alpha", "beta") as hosts:
        for host in hosts:
            host.give_starter()
        with hosts.entered("alpha"):
            made = FaultCluster(hosts, ("--dtype", "float32", "--kv-pool", "256MiB", "--pp", "2"))
            made.join(hosts["beta"], made.invite())
            made.serve()
            yield made


async def test_a_chat_over_two_machines_is_what_one_machine_says(
    cluster: FaultCluster, expected: list[Expected]
) -> None:
    assert [host.name for host in cluster.holders()] == ["beta"]
    assert len(cluster.ranks()) == 2
    async with client_at(cluster.url) as client:
        given = await client.chat.completions.create(
            model="starter", messages=[{"role": "user", "content": PROMPTS[0]}], temperature=0, max_completion_tokens=24
        )
    assert given.choices[0].message.content == expected[0].text


async def test_answers_go_on_when_the_other_machine_is_lost(cluster: FaultCluster) -> None:
    async with client_at(cluster.url) as client:
        undisturbed, all_of_them = begin(client, 2, TOKENS)
        await all_of_them
        answers, all_of_them = begin(client, 2, TOKENS)
        await answers.tokens(20)
        cluster.hosts["beta"].signal_all(signal.SIGKILL)
        await all_of_them
    assert (answers.failures, answers.texts) == ([], undisturbed.texts)
    assert await asyncio.to_thread(cluster.holders) == []
