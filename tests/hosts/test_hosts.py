"""Hosts reach each other until they are cut, do not see each other's files, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, Hosts, UnsupportedError, hosts_of, why_no_namespaces
from tests.hosts.host import alive, wait_for

# Says what it hears back.
ECHO = """
import socket, socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
server = socketserver.ThreadingTCPServer((sys.argv[1], 5000), Echo)
print("up", flush=True)
server.serve_forever()
"""
# One line each: how long it took until all was answered, or that it was not in a second; on one connection.
CALL = """
import socket, sys, time
end = socket.create_connection((sys.argv[1], 5000), 3)
end.settimeout(1.0)
left = 0
for line in sys.stdin:
    began = time.monotonic()
    try:
        end.sendall(bytes(int(line)))
        left += int(line)
        while left:
            left -= len(end.recv(65536))
        print(time.monotonic() - began, flush=True)
    except TimeoutError:
        print("nothing", flush=True)
"""
needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces() or "they can be made")


@pytest.fixture(params=["namespaces", "loopback"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    if request.param == "namespaces" and why_no_namespaces():
        pytest.skip(why_no_namespaces())
    with hosts_of("one", "two", loopback=request.param == "loopback") as made:
        yield made


class Call:
    """A connection from one host to the echo on another."""

    def __init__(self, host: Host, target: Host) -> None:
        self._process = host.spawn(
            sys.executable, "-c", CALL, target.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def say(self, count: int = 1) -> float | None:
        """Seconds until so many bytes came back; None where they did not within one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % count)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return None if line == b"nothing\n" else float(line)


def echo(host: Host) -> None:
    process = host.spawn(sys.executable, "-c", ECHO, host.address, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"


def test_a_host_has_its_own_address_folders_and_processes(hosts: Hosts) -> None:
    one, two = hosts["one"], hosts["two"]
    echo(two)
    assert Call(one, two).say() is not None
    (listening,) = two.listening()
    assert (listening.address, listening.port) == (two.address, 5000)
    assert one.listening() == []
    assert [process.pid for process in two.processes()] == [listening.pid]
    shown = one.run("sh", "-c", "echo $HOME $XDG_CACHE_HOME $SHARDWISE_API_KEY")
    assert shown.stdout.split() == [str(one.folder / "home"), str(one.folder / "cache")]


def test_a_host_that_loses_its_power_takes_all_its_processes_along(hosts: Hosts) -> None:
    two = hosts["two"]
    two.run("sh", "-c", "setsid sleep 100 > /dev/null 2>&1 &")
    wait_for(two.processes, 5)
    two.signal_all(signal.SIGKILL)
    assert two.ended(5) == []


@pytest.mark.parametrize("loopback", [pytest.param(False, marks=needs_namespaces), True])
def test_nothing_is_left_behind(loopback: bool) -> None:
    with hosts_of("one", loopback=loopback) as hosts:
        one = hosts["one"]
        one.run("sh", "-c", "setsid sleep 100 > /dev/null 2>&1 &")
        left = wait_for(one.processes, 5)
        folder = one.folder
    assert not any(map(alive, left))
    assert not folder.exists()
    if not loopback:
        assert folder.parent.name.encode() not in subprocess.check_output(["ip", "netns"])


@needs_namespaces
def test_a_cut_is_silent_and_what_was_said_meanwhile_arrives_after_it() -> None:
    with hosts_of("one", "two", "three") as hosts:
        echo(hosts["two"])
        calls = {name: Call(hosts[name], hosts["two"]) for name in ("one", "three")}
        assert all(call.say() is not None for call in calls.values())
        hosts.part("one", "two")
        assert calls["one"].say() is None
        assert calls["three"].say() is not None
        hosts.heal()
        assert wait_for(calls["one"].say, 10)
        hosts.cut("two")
        assert {call.say() for call in calls.values()} == {None}
        hosts.heal()
        assert wait_for(calls["three"].say, 10)


@needs_namespaces
def test_a_link_can_be_slowed_both_ways_and_be_fast_again() -> None:
    with hosts_of("one", "two") as hosts:
        echo(hosts["two"])
        call = Call(hosts["one"], hosts["two"])
        assert call.say(1000) is not None
        hosts.shape("two", delay=0.1)
        slow = call.say(1000)
        assert slow is not None
        assert slow >= 0.2
        hosts.shape("two", bandwidth=1e6)
        narrow = call.say(200_000)
        assert narrow is not None
        # What comes back begins its way while the rest is still coming.
        assert narrow >= 0.2
        hosts.heal()
        # A call that waits for 0.2 s would be one that is still slowed.
        assert wait_for(lambda: (seconds := call.say()) is not None and seconds < 0.2, 10)


@needs_namespaces
def test_a_host_does_not_see_another_ones_files_and_has_its_own_name() -> None:
    with hosts_of("one", "two") as hosts:
        (hosts["two"].folder / "home" / "model").write_text("weights")
        assert hosts["one"].run("cat", str(hosts["two"].folder / "home" / "model")).returncode != 0
        assert hosts["one"].run("hostname").stdout == "one\n"


@needs_namespaces
def test_a_test_can_stand_inside_a_host() -> None:
    with hosts_of("one") as hosts:
        here = Path("/proc/thread-self/ns/net").readlink()
        with hosts.entered("one"):
            assert Path("/proc/thread-self/ns/net").readlink() != here
            assert hosts["one"].processes() == []
        assert Path("/proc/thread-self/ns/net").readlink() == here


def test_loopback_says_what_it_cannot_do() -> None:
    with hosts_of("one", loopback=True) as hosts, pytest.raises(UnsupportedError, match="network namespaces"):
        hosts.cut("one")


def test_time_is_not_wasted() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match="because"):
        wait_for(lambda: None, 0.1, lambda: "because")
    assert time.monotonic() - began < 5
