"""Two machines with a Ray node each, joined by the printed command: what a person sees, what listens, what survives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline_ext.hub_control import HubClient, News, NoHubError
from pipeline_ext.ray_settings import port_words
from tests.hosts import Host, Hosts, hosts_of
from tests.hosts.host import alive, wait_for

SHARDWISE = (sys.executable, "-m", "app")


class Pair:
    """The head and a peer that has joined it."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.head, self.peer = hosts, hosts["head"], hosts["peer"]
        self.invited = self.head.run(*SHARDWISE, "peers", "invite", "--address", self.head.address)
        assert self.invited.returncode == 0, self.invited.stderr
        self.agent_log = self.peer.folder / "agent.log"
        self.agent = self.join(self.invited.stdout.split()[1:])
        wait_for(self.reached, 60, self.story)

    def join(self, command: list[str]) -> subprocess.Popen[bytes]:
        return self.peer.spawn(*SHARDWISE, *command, log=self.agent_log)

    def view(self) -> dict[str, Any]:
        shown = self.head.run(*SHARDWISE, "peers", "list", "--json")
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout)

    def news(self) -> News | None:
        try:
            return HubClient(self.head.folder / "run" / "shardwise" / "hub.sock", 5.0).news()
        except NoHubError:
            return None

    def health(self) -> str:
        news = self.news()
        return news.peers[1].health if news and len(news.peers) > 1 else ""

    def reached(self) -> bool:
        news = self.news()
        if news is None or news.ray or self.health() != "alive":
            return False
        return not news.notes[0].text and news.peers[1].link is not None

    def story(self) -> str:
        logs = [self.agent_log, *self.head.folder.rglob("hub.log"), *self.peer.folder.rglob("stages.log")]
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in logs if path.exists())

    def ray(self, host: Host, program: str) -> list[psutil.Process]:
        return [each for each in host.processes() if program in " ".join(each.cmdline()[:1])]


class Engine:
    """`hub_engine` on the head."""

    def __init__(self, pair: Pair) -> None:
        log = pair.head.folder / "engine.log"
        self._process = pair.head.spawn(
            *(sys.executable, "-m", "tests.pipeline_ext.hub_engine"),
            log=log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, *words: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with hosts_of("head", "peer") as hosts:
        yield Pair(hosts)


@pytest.fixture(scope="module")
def engine(pair: Pair) -> Iterator[Engine]:
    made = Engine(pair)
    yield made
    made.kill()


def test_the_list_shows_both_machines(pair: Pair) -> None:
    view = pair.view()
    head, peer = view["peers"]
    assert (head["id"], head["address"]) == ("", pair.head.address)
    assert peer["address"] == pair.peer.address
    assert peer["version"] == head["version"]
    assert 0 < peer["latency"] < 0.1
    assert peer["bandwidth"] > 1e6
    assert peer["memory_total"] == head["memory_total"]
    shown = pair.head.run(*SHARDWISE, "peers", "list")
    assert peer["name"] in shown.stdout
    assert "alive" in shown.stdout


def test_the_invite_says_what_who_holds_it_can_do(pair: Pair) -> None:
    assert "run programs as you on this machine and on every peer" in pair.invited.stderr
    assert len(pair.invited.stdout.splitlines()) == 1


def test_only_rays_named_ports_listen_on_every_address(pair: Pair) -> None:
    """All the listening sockets of both machines, whosever they are."""
    named = {"head": set(pair.view()["open_ports"])}
    (said,) = [line for line in pair.agent_log.read_text().splitlines() if "Ray listens" in line]
    for host in (pair.head, pair.peer):
        found = host.listening()
        assert len(found) >= 3
        for each in found:
            if each.address in ("0.0.0.0", "::"):
                ray = each.program.startswith("ray::") or "/ray/" in each.program or "ray_driver" in each.program
                assert ray, each
                if host is pair.head:
                    assert each.port in named["head"], each
                    assert port_words(tuple(named["head"])) in pair.invited.stderr
                else:
                    words = said.partition("ports ")[2].partition(", and answers")[0]
                    ranges = [part.split("-") for part in words.split(", ")]
                    assert any(int(part[0]) <= each.port <= int(part[-1]) for part in ranges), each
            else:
                assert each.address == host.address, each


def test_ray_answers_only_to_the_clusters_token(pair: Pair) -> None:
    for host, programs in ((pair.head, ("gcs_server", "raylet")), (pair.peer, ("raylet", "ray::Spawner"))):
        for program in programs:
            (process,) = pair.ray(host, program)
            environment = process.environ()
            assert environment["RAY_AUTH_MODE"] == "token"
            token = Path(environment["RAY_AUTH_TOKEN_PATH"])
            assert token.stat().st_mode & 0o777 == 0o600
            assert len(token.read_text()) == 64
    # And one that can be asked by hand: without the token it says nothing but no.
    agent = next(each for each in pair.head.listening() if "RuntimeEnv" in each.program)
    script = (
        "import sys, urllib.request, urllib.error\n"
        "try: urllib.request.urlopen(sys.argv[1], timeout=5)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    asked = pair.peer.run(sys.executable, "-c", script, f"http://{agent.address}:{agent.port}/")
    assert asked.stdout.strip() == "401"


def test_a_used_invite_gets_nothing(pair: Pair) -> None:
    again = pair.head.run(*SHARDWISE, *pair.invited.stdout.split()[1:], environment={"XDG_DATA_HOME": "/nowhere"})
    assert again.returncode != 0
    other = str(pair.head.folder / "other")
    again = pair.head.run(*SHARDWISE, *pair.invited.stdout.split()[1:], environment={"XDG_DATA_HOME": other})
    assert again.returncode == 2
    assert "did not accept this machine" in again.stderr


def test_a_machine_is_a_peer_only_once(pair: Pair) -> None:
    again = pair.peer.run(*SHARDWISE, "peers", "join")
    assert again.returncode == 2
    assert "is a peer already" in again.stderr


def test_a_process_runs_on_the_peer_and_outlives_rays_head_and_the_hub(pair: Pair, engine: Engine) -> None:
    pid = engine.ask("spawn", "-", "first")
    assert pid.isdigit(), pid + pair.story()
    process = psutil.Process(int(pid))
    assert process in pair.peer.processes()
    assert not any(name.startswith("RAY_") for name in process.environ())

    (gcs,) = pair.ray(pair.head, "gcs_server")
    gcs.kill()
    wait_for(lambda: not pair.reached(), 20, pair.story)
    assert engine.ask("spawn", "-", "early").startswith("not spawned")
    assert engine.ask("lives", "first") == "yes"
    # A new head, to which the peer's node comes by itself.
    wait_for(pair.reached, 60, pair.story)
    second = engine.ask("spawn", "-", "second")
    assert second.isdigit(), second
    assert engine.ask("lives", "first") == "yes"

    # What an earlier actor started is known by its name to the next.
    assert engine.ask("kill", "-", "first") == "killed"
    wait_for(lambda: not alive(process), 10)

    (hub,) = [each for each in pair.head.processes() if "pipeline_ext.hub_process" in each.cmdline()]
    hub.kill()
    wait_for(lambda: not [each for each in pair.head.processes() if "gcs_server" in each.name()], 20, pair.story)
    assert engine.ask("peers") == "alive"  # the last known
    assert engine.ask("lives", "second") == "yes"
    assert pair.head.run(*SHARDWISE, "peers", "invite").returncode == 0
    wait_for(lambda: pair.health() == "alive", 60, pair.story)
    assert engine.ask("lives", "second") == "yes"


def test_a_peer_leaves_when_nothing_needs_it_and_comes_back_without_an_invite(pair: Pair, engine: Engine) -> None:
    # The hub was started anew meanwhile, and was told by the engine what it uses.
    pair.agent.send_signal(signal.SIGINT)
    wait_for(lambda: pair.health() == "leaving", 10, pair.story)
    assert pair.agent.poll() is None
    assert engine.ask("drop", "second") == "dropped"
    assert engine.ask("released", "-") == "released"
    assert pair.agent.wait(20) == 0
    assert "Left." in pair.agent_log.read_text()
    assert pair.peer.ended(10) == []
    pair.agent = pair.join(["peers", "join"])
    wait_for(pair.reached, 60, pair.story)


def test_a_removed_peer_is_gone_for_good(pair: Pair) -> None:
    name = pair.view()["peers"][1]["name"]
    assert pair.head.run(*SHARDWISE, "peers", "remove", name).returncode == 0
    assert pair.agent.wait(20) != 0
    assert "not a peer any more" in pair.agent_log.read_text()
    assert len(pair.view()["peers"]) == 1
    again = pair.peer.run(*SHARDWISE, "peers", "join")
    assert again.returncode != 0
    assert "not a peer any more" in again.stderr


def test_stopping_the_hub_leaves_nothing(pair: Pair, engine: Engine) -> None:
    engine.kill()
    assert pair.head.run(*SHARDWISE, "peers", "stop").returncode == 0
    assert pair.head.ended(10) == []
    assert pair.view()["state"] == "none"
