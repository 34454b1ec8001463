"""Addresses: where the hub may listen: at the address of this machine that is named, or at its only private one."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from backend.errors import SettingError

# Bridges and pairs that containers and virtual machines make: no other machine is reached by them.
_INNER = ("docker", "br-", "virbr", "veth", "cni", "flannel", "lxc", "podman")


def chosen_address(wished: str | None) -> str:
    """Raises SettingError where the choice is a person's, or what was named is none of this machine's addresses."""
    found = candidates()
    if wished is not None:
        own = [address for _, address in own_addresses()]
        if wished not in own:
            raise SettingError(
                f"--address {wished} is not an address of this machine",
                f"It has {_named(own_addresses()) or 'none'}.",
                "Name the address by which the other machine reaches this one.",
            )
        return wished
    if len(found) != 1:
        raise SettingError(
            "Which address should peers come to?",
            f"This machine has {_named(found)}." if found else "No private address was found.",
            "Name it: shardwise peers invite --address ADDRESS",
        )
    return found[0][1]


def own_addresses() -> list[tuple[str, str]]:
    """Interfaces that are up, each with an IPv4 address."""
    states = psutil.net_if_stats()
    return [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family == socket.AF_INET and name in states and states[name].isup
    ]


def candidates() -> list[tuple[str, str]]:
    """Private addresses that are not loopback, nor containers'."""
    return [
        (name, address)
        for name, address in own_addresses()
        if ipaddress.ip_address(address).is_private
        and not ipaddress.ip_address(address).is_loopback
        and not ipaddress.ip_address(address).is_link_local
        and not name.startswith(_INNER)
    ]


def _named(found: list[tuple[str, str]]) -> str:
    return ", ".join(f"{address} ({name})" for name, address in found)
