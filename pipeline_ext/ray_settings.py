"""How Ray is started here: its environment, arguments and ports. Starting it is `ray_node`'s.

Ray's own servers (GCS, raylet, workers) listen on every address: Ray has no setting for that. They do nothing for who
does not show the token; `wildcard_ports` names them, so that people can be told, and `firewall_rule` shuts them off.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.library.locations import source_root
from pipeline_ext.addresses import own_addresses

PEER_RESOURCE = "shardwise-peer-"
HEAD_RESOURCE = "shardwise-head"
# The store is not used for anything big; Ray takes no less.
_STORE_BYTES = 80 * 1024 * 1024
_FIRST_BLOCK, _BLOCK, _BLOCKS = 7710, 40, 40
_FIXED = 7

# Measured: a killed raylet is noticed after 1.2 s and a stopped machine after 4.3 s, instead of 15 and 63.
_HEALTH = {"initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3"}


class NoPortsError(RuntimeError):
    """No block of ports is free for Ray."""


@dataclass(frozen=True, slots=True)
class RayPorts:
    """A block of ports in a row, from `first` on."""

    first: int

    @property
    def head(self) -> int:
        return self.first

    def arguments(self) -> list[str]:
        names = (
            "node-manager-port",
            "object-manager-port",
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "runtime-env-agent-port",
            "metrics-export-port",
            "min-worker-port",
        )
        fixed = [f"--{name}={self.first + 1 + place}" for place, name in enumerate(names)]
        return [*fixed, f"--max-worker-port={self.first + _BLOCK - 1}"]

    def wildcard(self, head: bool) -> tuple[int, ...]:
        """The ports that listen on every address, workers' included, which come and go."""
        own = (self.first,) if head else ()
        return (*own, self.first + 1, self.first + 2, *range(self.first + _FIXED, self.first + _BLOCK))


def free_ports(begin: int = 0) -> RayPorts:
    """A block whose fixed ports are all free now; `begin` is where to look first, so that a port that an earlier Ray
    still holds is not waited for. Raises NoPortsError."""
    for place in range(_BLOCKS):
        first = _FIRST_BLOCK + ((begin + place) % _BLOCKS) * _BLOCK
        if all(_is_free(port) for port in range(first, first + _BLOCK)):
            return RayPorts(first)
    raise NoPortsError(f"no {_BLOCK} ports in a row are free from {_FIRST_BLOCK} on")


def ray_environment(own: Mapping[str, str], token_file: Path) -> dict[str, str]:
    """The environment of every process that has to do with Ray; settings of another Ray are left out."""
    environment = {name: value for name, value in own.items() if not name.startswith("RAY_")}
    environment |= {f"RAY_health_check_{name}": value for name, value in _HEALTH.items()}
    return environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Whether a stage's process gets the memory is ours to decide, and what it started is not Ray's to kill.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_kill_child_processes_on_worker_exit": "0",
        "RAY_enable_metrics_collection": "0",
        # An actor that reserves no GPU must not hide the GPUs from the processes that it starts.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
    }


def without_ray(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that has nothing to do with Ray, started by one that has: its token least of all.

    OMP_NUM_THREADS is Ray's: it sets 1 in its workers.
    """
    return {name: value for name, value in own.items() if not name.startswith("RAY_") and name != "OMP_NUM_THREADS"}


def head_arguments(address: str, ports: RayPorts, folder: Path) -> list[str]:
    return [
        "--head",
        f"--port={ports.head}",
        "--include-dashboard=false",
        # The autoscaler's monitor has a metrics server on every address, without any token.
        "--no-monitor",
        f'--resources={{"{HEAD_RESOURCE}": 1}}',
        *_common(address, ports, folder),
    ]


def peer_arguments(head: str, peer: str, address: str, ports: RayPorts, folder: Path) -> list[str]:
    """head: HOST:PORT of its GCS; peer: our id."""
    return [f"--address={head}", f'--resources={{"{PEER_RESOURCE}{peer}": 1}}', *_common(address, ports, folder)]


def _common(address: str, ports: RayPorts, folder: Path) -> list[str]:
    return [
        "--block",
        f"--node-ip-address={address}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        # Nothing is scheduled by these numbers: our actors ask for a peer, not for a share of one.
        "--num-cpus=0",
        "--num-gpus=0",
        f"--object-store-memory={_STORE_BYTES}",
        f"--temp-dir={folder}",
        *ports.arguments(),
    ]


def port_words(ports: tuple[int, ...]) -> str:
    """Like "7710-7712, 7717-7749"."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def firewall_rule(address: str, ports: tuple[int, ...]) -> str:
    """A command that shuts these ports off on all interfaces but this address's; for people to run, or not."""
    interface = next((name for name, each in own_addresses() if each == address), "INTERFACE")
    return (
        "nft add table inet shardwise; nft 'add chain inet shardwise input { type filter hook input priority 0; }'; "
        f'nft \'add rule inet shardwise input iifname != {{ "lo", "{interface}" }} '
        f"tcp dport {min(ports)}-{max(ports)} drop'"
    )


def own_environment() -> dict[str, str]:
    """What a child of ours inherits, with the folder of our own packages first on its path."""
    paths = [str(source_root()), *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
