"""The machines as a table for the terminal, one line each."""

from __future__ import annotations

from app.fit.columns import columns
from app.text_safety import clean_line
from pipeline_ext.peer_view import PeersView, PeerView

_GIB = 1024**3
_HEAD = ("name", "address", "health", "GPUs", "memory", "latency", "bandwidth", "stage", "version")


def as_table(view: PeersView, width: int = 160) -> str:
    """A line a machine, the head first; what is the matter with one stands below."""
    rows = [_row(peer) for peer in view.peers]
    lines = columns(_HEAD, rows, "<<<<>>><<", width)
    notes = [f"{clean_line(peer.name)}: {clean_line(peer.note)}" for peer in view.peers if peer.note]
    return "\n".join([*lines, *notes])


def _row(peer: PeerView) -> tuple[str, ...]:
    return (
        clean_line(peer.name, 40) + ("" if peer.id else " (head)"),
        clean_line(peer.address, 64) or "-",
        peer.health,
        gpu_words(peer),
        f"{peer.memory_available / _GIB:.1f} of {peer.memory_total / _GIB:.1f} GiB free",
        latency_words(peer.latency),
        bandwidth_words(peer.bandwidth),
        stage_words(peer),
        clean_line(peer.version, 40),
    )


def gpu_words(peer: PeerView) -> str:
    """Like "2x RTX 3090"; the processor where there is none."""
    names = [clean_line(gpu.name, 40).removeprefix("NVIDIA ") for gpu in peer.gpus]
    counted = [f"{names.count(name)}x {name}" for name in dict.fromkeys(names)]
    return ", ".join(counted) or f"none, {peer.cores} cores"


def latency_words(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def bandwidth_words(rate: float | None) -> str:
    """In units that networks are named by."""
    if rate is None:
        return "-"
    bits = rate * 8
    return f"{bits / 1e9:.1f} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.0f} Mbit/s"


def stage_words(peer: PeerView) -> str:
    """Layers as people count them, with the model where there are several."""
    models = {stage.model for stage in peer.stages}
    return (
        ", ".join(
            (f"{clean_line(stage.model, 40)} " if len(models) > 1 else "")
            + f"{stage.stage + 1}: layers {stage.first + 1}-{stage.stop} of {stage.of}"
            for stage in peer.stages
        )
        or "-"
    )
