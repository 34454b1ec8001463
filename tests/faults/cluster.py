"""FaultCluster: a head and its peers, started by the printed commands on hosts, with a server over them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

import httpx
import psutil

from tests.hosts import Host, Hosts
from tests.hosts.host import alive, wait_for

START_SECONDS = 240.0
JOIN_SECONDS = 60.0


class FaultCluster:
    """`head` is the first host; all others are its peers. Methods block."""

    def __init__(self, hosts: Hosts, options: tuple[str, ...]) -> None:
        self.hosts = hosts
        self.head, *self.peers = list(hosts)
        self._options = options
        self._agents = dict[str, subprocess.Popen[bytes]]()
        self.server: subprocess.Popen[bytes] | None = None
        self.url = ""

    # As a user would ------------------------------------------------------------------------------------------------

    def invite(self) -> str:
        """The line that the head prints for another machine."""
        # On loopback no address is private, so it has to be named.
        address = ("--address", self.head.address) if self.head.address.startswith("127.") else ()
        said = self.head.run("shardwise", "peers", "invite", *address, seconds=JOIN_SECONDS)
        found = re.search(r"^shardwise peers join \S+$", said.stdout, re.MULTILINE)
        if found is None:
            raise AssertionError(f"`shardwise peers invite` printed no line:\n{said.stdout}{said.stderr}")
        return found[0]

    def join(self, host: Host, line: str = "shardwise peers join") -> None:
        """Runs a printed line there; returns when the machine is ready for stages. Without one, it comes back."""
        log = host.folder / "join.log"
        log.write_text("")
        self._agents[host.name] = host.spawn("sh", "-c", f"exec {line}", log=log)
        wait_for(lambda: "Ready for stages" in log.read_text(), JOIN_SECONDS, log.read_text)

    def serve_alone(self) -> None:
        """One process on the head with all layers."""
        self._serve("--pp", "1")

    def serve(self) -> None:
        """The stages over the machines there are."""
        self._serve()

    def _serve(self, *more: str) -> None:
        """Starts the server on the head, and waits until it serves."""
        log = self.head.folder / "serve.log"
        with log.open("a") as file:
            began = file.tell()
        command = ("shardwise", "serve", "starter", "--port", "0", *self._options, *more)
        self.server = self.head.spawn(*command, log=log)

        def listening() -> str | None:
            found = re.search(r"Listening on (http://\S+?);", log.read_text()[began:])
            return found and found[1]

        self.url = wait_for(listening, START_SECONDS, log.read_text) or ""
        wait_for(lambda: self.health()["status"] == "ready", START_SECONDS, log.read_text)

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGKILL)
            self.server.wait()
            self.server = None

    def sent_away(self, host: Host) -> None:
        """It was removed: to come back it needs another invite."""
        self._agents.pop(host.name, None)

    def end_server(self) -> None:
        """As Ctrl+C does."""
        if self.server is not None:
            self.server.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.server.wait(30)

    def end(self) -> None:
        """Ends the server, the peers and the hub, each by its own way."""
        self.end_server()
        for agent in self._agents.values():
            agent.terminate()
        for agent in self._agents.values():
            with suppress(subprocess.TimeoutExpired):
                agent.wait(30)
        self.head.run("shardwise", "peers", "stop")

    # What it says ---------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        return self._get("/health")

    def engine(self) -> dict[str, Any]:
        return self.health()["engines"][0]

    def ranks(self) -> list[dict[str, Any]]:
        """What `/health` says of each rank: `stage`, `peer`, `pid`, `state`."""
        return self.engine()["ranks"]

    def cache(self) -> dict[str, int]:
        return self._get("/cache")["engines"][0]["statistics"]

    def machines(self) -> list[dict[str, Any]]:
        return self._get("/peers")["peers"]

    def host_of(self, peer: str) -> Host:
        """The host that has this id among peers; the head's is empty."""
        name = next(each["name"] for each in self.machines() if each["id"] == peer)
        return self.hosts[name] if peer else self.head

    def holders(self) -> list[Host]:
        """The peers that have layers, in the order of their stages."""
        return [self.host_of(peer) for peer in dict.fromkeys(rank["peer"] for rank in self.ranks()) if peer]

    def spares(self) -> list[Host]:
        """The peers that have none."""
        held = {host.name for host in self.holders()}
        return [host for host in self.peers if host.name not in held]

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=10, trust_env=False).json()

    # Whole and clean ------------------------------------------------------------------------------------------------

    def whole(self) -> bool:
        """Whether it serves, nothing is being mended, and every peer is there and can take stages."""
        with suppress(httpx.HTTPError, ValueError, KeyError, IndexError):
            engine = self.engine()
            peers = [each for each in self.machines() if each["id"]]
            return (
                engine["state"] == "ready"
                and not engine.get("trouble")
                and all(rank["state"] == "ready" for rank in engine["ranks"])
                and len(peers) == len(self.peers)
                and all(peer["health"] == "alive" for peer in peers)
            )
        return False

    def repair(self) -> None:
        """Heals links, wakes what stands still, brings machines back that went; returns when all is whole."""
        self.hosts.heal()
        for host in self.hosts:
            host.signal_all(signal.SIGCONT)
        for host in self.peers:
            agent = self._agents.get(host.name)
            if agent is None or agent.poll() is not None:
                host.signal_all(signal.SIGKILL)
                self.join(host) if agent is not None else self.join(host, self.invite())
        wait_for(self.whole, START_SECONDS, lambda: json.dumps([self.health(), self.machines()], indent=1))
        if {bool(rank["peer"]) for rank in self.ranks()} != {True, False}:
            # All layers went to the head, or from it, and stay there: what comes back is spare.
            self.end_server()
            self.serve()

    def workers(self) -> dict[int, Host]:
        """The processes that compute stages, with the host that each runs on."""
        return {rank["pid"]: self.host_of(rank["peer"]) for rank in self.ranks()}

    def orphans(self, before: dict[int, Host], seconds: float = 15.0) -> list[int]:
        """Workers of before that no engine has any more, and that still run after so many seconds."""
        gone = set(before) - set(self.workers())
        processes = [psutil.Process(pid) for pid in gone if psutil.pid_exists(pid)]
        until = time.monotonic() + seconds
        while (left := [each.pid for each in processes if alive(each)]) and time.monotonic() < until:
            time.sleep(0.1)
        return left


def processes_of(host: Host, *words: str) -> list[psutil.Process]:
    """Those of a host whose command line has all these words."""
    found = list[psutil.Process]()
    for process in host.processes():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if all(word in command for word in words):
                found.append(process)
    return found
