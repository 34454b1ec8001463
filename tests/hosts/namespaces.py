"""NamespaceHosts: each host is a network namespace, a switch joins them, and a wire can be put into each one's cable.

    wire's namespace:  switch ── port0   (veth) ── eth0 of the first host, 10.77.0.1
                          └──── port1           ── eth0 of the second ...
                          └──── back2 ═ a process that holds frames back (`wire`) ═ port2 ── eth0 of a slow one

A host also has its own name, and does not see the folders of the others. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hosts.host import Host, end_all
from tests.hosts.wire import Wire

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
# Sets the name, hides the other hosts' folders, becomes the command.
_ENTRY = 'hostname "$1"; shift; while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done; shift; exec "$@"'


@functools.cache
def why_no_namespaces() -> str:
    """Why hosts cannot be made here, empty where they can: tried, not guessed."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "unshare", "hostname", "mount") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    name = f"shardwise-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "switch", "type", "bridge")
            _ip("-n", name, "link", "add", "port", "type", "veth", "peer", "name", "back")
            _ip("netns", "exec", name, "unshare", "--mount", "--uts", "true")
        finally:
            _ip("netns", "del", name)
    except RuntimeError as error:
        return str(error)
    return ""


@dataclass
class NamespaceHost(Host):
    """One namespace."""

    namespace: str = ""
    hidden: tuple[Path, ...] = ()

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        hidden = [str(folder) for folder in self.hidden]
        prefix = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", _ENTRY, "sh"]
        return [*prefix, self.name, *hidden, "--", *command]

    def _candidates(self) -> list[psutil.Process]:
        found = list[psutil.Process]()
        for pid in _ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(int(pid)))
        # A process that stands in it only to look (`entered`) is no process of it.
        return [each for each in found if each.pid != os.getpid()]


class NamespaceHosts:
    """Made at once; `close` takes all away."""

    def __init__(self, names: tuple[str, ...]) -> None:
        # Short: paths of Unix sockets have at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))
        self._wires = dict[str, Wire]()
        self._parted = set[tuple[str, str]]()
        self._prefix = f"{self.folder.name}-"
        self._switch = f"{self._prefix}switch"
        self._hosts = dict[str, NamespaceHost]()
        try:
            self._make_switch()
            for number, name in enumerate(names, 1):
                others = tuple(self.folder / other for other in names if other != name)
                self._hosts[name] = NamespaceHost(
                    name, f"10.77.0.{number}", self.folder / name, namespace=f"{self._prefix}{name}", hidden=others
                )
                self._plug_in(number, self._hosts[name])
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def _make_switch(self) -> None:
        _ip("netns", "add", self._switch)
        self._on_switch("link", "add", "switch", "type", "bridge")
        self._on_switch("link", "set", "switch", "up")

    def _plug_in(self, number: int, host: NamespaceHost) -> None:
        _ip("netns", "add", host.namespace)
        port = self._port(host.name)
        self._on_switch("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", host.namespace, "link", "set", "eth0", "address", _hardware_address(number))
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", name, "up")
        _ip("-n", host.namespace, "route", "add", "default", "dev", "eth0")
        self._on_switch("link", "set", port, "master", "switch", "up")

    def _port(self, name: str) -> str:
        return f"port{list(self._hosts).index(name)}"

    @contextmanager
    def entered(self, name: str) -> Iterator[None]:
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self._hosts[name].namespace}") as inside:
            _set_namespace(inside.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def cut(self, name: str) -> None:
        self._unwire(name)
        # Its card still sees a cable, which ends nowhere.
        self._on_switch("link", "set", self._port(name), "nomaster")

    def part(self, one: str, other: str) -> None:
        self._parted.add((one, other))
        for here, there in ((one, other), (other, one)):
            # Frames go to a card that does not exist: silence, as behind a dead switch, and not an error.
            self._neighbour(here, there, "02:00:00:00:ff:ff")

    def heal(self) -> None:
        for name in self._hosts:
            self._unwire(name)
            self._on_switch("link", "set", self._port(name), "master", "switch")
        for one, other in self._parted:
            self._neighbour(one, other, None)
            self._neighbour(other, one, None)
        self._parted.clear()

    def shape(self, name: str, delay: float = 0.0, bandwidth: float | None = None) -> None:
        if name not in self._wires:
            self._wires[name] = self._wire(name)
        self._wires[name].shape(delay, bandwidth)

    def _wire(self, name: str) -> Wire:
        port, back, front = self._port(name), self._port(name).replace("port", "back"), f"{self._port(name)}b"
        self._on_switch("link", "add", back, "type", "veth", "peer", "name", front)
        self._on_switch("link", "set", front, "up")
        self._on_switch("link", "set", port, "nomaster")
        self._on_switch("link", "set", back, "master", "switch", "up")
        return Wire(["ip", "netns", "exec", self._switch], port, front)

    def _unwire(self, name: str) -> None:
        if (wire := self._wires.pop(name, None)) is not None:
            wire.close()
            self._on_switch("link", "del", f"{self._port(name)}b")

    def _on_switch(self, *arguments: str) -> None:
        _ip("-n", self._switch, *arguments)

    def _neighbour(self, here: str, there: str, address: str | None) -> None:
        host, other = self._hosts[here], self._hosts[there]
        if address is None:
            _ip("-n", host.namespace, "neighbour", "del", other.address, "dev", "eth0")
        else:
            place = (other.address, "lladdr", address, "nud", "permanent", "dev", "eth0")
            _ip("-n", host.namespace, "neighbour", "replace", *place)

    def close(self) -> None:
        end_all(self._hosts.values())
        for wire in self._wires.values():
            wire.close()
        for namespace in (*(host.namespace for host in self._hosts.values()), self._switch):
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", namespace)
        shutil.rmtree(self.folder, ignore_errors=True)


def _hardware_address(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    done = subprocess.run(command, check=False, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}`: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _set_namespace(descriptor: int) -> None:
    """Moves this thread into a network namespace; Python has `os.setns` from 3.12 on only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "setns")
