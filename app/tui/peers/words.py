"""How the screen of the machines writes them: rows as wide as there is room, and all of one in a few lines. Pure."""

from __future__ import annotations

from textual.content import Content

from app.tui import format as figures
from app.tui.fit.words import memory
from pipeline_ext.peer_view import GpuView, PeersView, PeerView

# A mark and a word for each health, so that neither colour nor glyph alone has to tell.
HEALTH = {
    "alive": ("✓", "$text-success"),
    "silent": ("!", "$text-warning"),
    "lost": ("✗", "$text-error"),
    "leaving": ("→", "$text-warning"),
}
ALONE = "This machine is alone. Press i for a line that makes another one a peer: paste it there, and it takes layers."
# Column, cells, and from what width on it is shown.
_COLUMNS = (
    ("machine", 16, 0), ("state", 10, 0), ("hardware", 23, 0), ("link", 19, 0), ("memory", 24, 110),
    ("version", 10, 110), ("layers", 8, 0),
)  # fmt: skip
_MARGIN = 2


def table(view: PeersView, width: int) -> tuple[str, list[Content]]:
    """The head, and a row for each machine, the head's first."""
    columns = [(name, cells) for name, cells, least in _COLUMNS if width >= least]
    head = "".join(_cell(name, cells) for name, cells in columns).rstrip()
    return head[: max(0, width)], [_row(peer, columns, width) for peer in view.peers]


def _row(peer: PeerView, columns: list[tuple[str, int]], width: int) -> Content:
    _, colour = HEALTH[peer.health]
    texts = {
        "machine": peer.name,
        "state": state(peer),
        "hardware": hardware(peer),
        "link": link(peer),
        "memory": f"{memory(peer.memory_available)} of {memory(peer.memory_total)}",
        "version": peer.version,
        "layers": layers(peer),
    }
    parts, used = list[tuple[str, str]](), 0
    for name, cells in columns:
        # The last column takes what is left.
        room = max(0, width - used) if name == columns[-1][0] else cells
        parts.append((_cell(texts[name], room), {"state": colour, "machine": "bold"}.get(name, "")))
        used += room
    return Content.assemble(*parts)


def _cell(text: str, cells: int) -> str:
    """Cut where it does not fit, with a blank at its end."""
    room = max(0, cells - 1)
    return f"{text if len(text) <= room else text[: max(0, room - 1)] + '…':<{cells}}"[:cells]


def state(peer: PeerView) -> str:
    """`✓ alive`; the head itself is `✓ here`."""
    return f"{HEALTH[peer.health][0]} {peer.health if peer.id else 'here'}"


def hardware(peer: PeerView) -> str:
    """`2x RTX 4090, 48 GB`, or what computes where there is no GPU."""
    if not peer.gpus:
        return f"no GPU, {peer.cores} {'core' if peer.cores == 1 else 'cores'}"
    total = memory(sum(gpu.total for gpu in peer.gpus))
    alike = len({gpu.name for gpu in peer.gpus}) == 1
    name = short_name(peer.gpus[0]) if alike else "GPUs"
    return f"{len(peer.gpus)}x {name}, {total}"


def short_name(gpu: GpuView) -> str:
    """Without what all names begin with."""
    return gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def link(peer: PeerView) -> str:
    """`0.21 ms, 1.2 GB/s`: one way, as measured."""
    if not peer.id:
        return "this machine"
    if peer.latency is None or peer.bandwidth is None:
        return "not measured yet"
    return f"{milliseconds(peer.latency)}, {figures.size(round(peer.bandwidth))}/s"


def milliseconds(duration: float) -> str:
    figure = duration * 1000
    return f"{figure:.0f} ms" if figure >= 10 else f"{figure:.2g} ms"


def layers(peer: PeerView) -> str:
    """`1-15`, of each model; a spare one has none."""
    return ", ".join(f"{stage.first + 1}-{stage.stop}" for stage in peer.stages) or ("none" if peer.id else "-")


def summary(view: PeersView) -> str:
    """One line over all: how many machines, and where others reach this one."""
    count = len(view.peers)
    machines = "one machine" if count <= 1 else f"{count} machines"
    reached = f", peers reach this one at {view.address}" if view.address else ""
    away = "; the hub does not answer, this is the last known" if view.state == "away" else ""
    return f"{machines}{reached}{away}"


def details(peer: PeerView) -> list[Content]:
    """All that is known of one machine."""
    gpus = ", ".join(f"{short_name(gpu)} ({memory(gpu.free)} of {memory(gpu.total)} free)" for gpu in peer.gpus)
    stages = ", ".join(
        f"{stage.model} stage {stage.stage + 1} (layers {stage.first + 1} to {stage.stop} of {stage.of})"
        for stage in peer.stages
    )
    rows = [
        ("GPUs", gpus or "none"),
        ("memory", f"{memory(peer.memory_available)} of {memory(peer.memory_total)} free"),
        ("link", _link_in_full(peer)),
        ("holds", stages or "no layers"),
    ]
    name = ", ".join(filter(None, (peer.name, peer.address, f"version {peer.version}")))
    lines = [Content.assemble((name, "bold"), (f"  {peer.id}", "$text-muted"))]
    lines += [Content.assemble((f"{label:<9}", "$text-muted"), text) for label, text in rows]
    if peer.note:
        lines.append(Content.styled(peer.note, "$text-warning"))
    return lines


def _link_in_full(peer: PeerView) -> str:
    if not peer.id or peer.latency is None or peer.bandwidth is None:
        return link(peer)
    return f"{milliseconds(peer.latency)} one way, {figures.size(round(peer.bandwidth))} a second"
