"""Hosts: several machines on one, for tests: each has an address, folders and processes of its own, and a link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.hosts.host import Host, Hosts, Listening, UnsupportedError
from tests.hosts.loopback import LoopbackHosts
from tests.hosts.namespaces import NamespaceHosts, why_no_namespaces

__all__ = ["Host", "Hosts", "Listening", "UnsupportedError", "hosts_of", "why_no_namespaces"]


@contextmanager
def hosts_of(*names: str, loopback: bool = False) -> Iterator[Hosts]:
    """Machines with these names, as network namespaces, or as plain processes where `loopback` asks for it or nothing
    else can be had; all is gone after the block, whatever happened in it."""
    made = LoopbackHosts(names) if loopback or why_no_namespaces() else NamespaceHosts(names)
    try:
        yield made
    finally:
        made.close()
