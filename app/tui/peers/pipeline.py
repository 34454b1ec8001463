"""The picture of a pipeline: a model's stages in their order, each on its machine, and the way between them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from app.health_view import EngineHealth, Health
from app.text_safety import clean_line
from app.tui.fit.canvas import Canvas
from app.tui.peers.words import milliseconds
from pipeline_ext.peer_view import PeersView, PeerView, PlacedStage

_BOX, _GAP, _HEIGHT = 22, 11, 4
_COLOURS = {"ready": "$success", "being replaced": "$error", "leaving": "$warning", "silent": "$warning"}


@dataclass(frozen=True, slots=True)
class StageBox:
    """One stage as it is drawn. `latency` is of the link by which it is reached, None where that is not measured."""

    number: int
    machine: str
    layers: str
    state: str
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One model's stages, in order."""

    model: str
    boxes: tuple[StageBox, ...]


def pipelines(view: PeersView, health: Health | None) -> tuple[Pipeline, ...]:
    """Of each model that has several stages. Where they are now is `health`'s to say, which layers the view's."""
    engines = {engine.model: engine for engine in health.engines} if health else {}
    models = dict.fromkeys(stage.model for peer in view.peers for stage in peer.stages)
    found = (Pipeline(model, _boxes(model, view, engines.get(model))) for model in models)
    return tuple(each for each in found if len(each.boxes) > 1)


def _boxes(model: str, view: PeersView, engine: EngineHealth | None) -> tuple[StageBox, ...]:
    placed = sorted(
        ((stage, peer) for peer in view.peers for stage in peer.stages if stage.model == model),
        key=lambda each: each[0].stage,
    )
    peers, boxes, before = {peer.id: peer for peer in view.peers}, list[StageBox](), None
    for stage, peer in {stage.stage: (stage, peer) for stage, peer in placed}.values():
        ranks = [rank for rank in engine.ranks if rank.stage == stage.stage] if engine else []
        here = peers.get(ranks[0].peer, peer) if ranks else peer
        lost = any(rank.state != "ready" for rank in ranks)
        boxes.append(_box(stage, here, "being replaced" if lost else _state(here), before))
        before = here
    return tuple(boxes)


def _box(stage: PlacedStage, peer: PeerView, state: str, before: PeerView | None) -> StageBox:
    # Links are measured between the head and a peer; between two peers nobody has.
    link = (
        None if before is None or before.id == peer.id else peer if not before.id else before if not peer.id else None
    )
    layers = f"layers {stage.first + 1} to {stage.stop}"
    return StageBox(stage.stage + 1, peer.name, layers, state, link.latency if link else None)


def _state(peer: PeerView) -> str:
    return {"alive": "ready", "lost": "being replaced"}.get(peer.health, peer.health)


def picture(pipeline: Pipeline, width: int) -> list[Content]:
    """Lines of at most `width` cells: boxes with arrows between them, in as many rows as it takes."""
    a_row = max(1, (width + _GAP) // (_BOX + _GAP))
    canvas = Canvas(width)
    for number, box in enumerate(pipeline.boxes):
        row, place = divmod(number, a_row)
        x, y = place * (_BOX + _GAP), row * _HEIGHT
        _draw_box(canvas, x, y, box)
        if place:
            _draw_arrow(canvas, x - _GAP, y + 1, box)
        elif row:
            canvas.put(_BOX // 2, y - 1, "┬", _COLOURS.get(box.state, ""))
            canvas.put(_BOX // 2, y, "▼")
    title = f"{pipeline.model}: {len(pipeline.boxes)} stages"
    return [Content.styled(title[:width], "bold"), *canvas.lines()]


def _draw_box(canvas: Canvas, x: int, y: int, box: StageBox) -> None:
    colour, inner = _COLOURS.get(box.state, "$error"), _BOX - 4
    canvas.put(x, y, f"╭{'─' * (_BOX - 2)}╮", colour)
    canvas.put(x + 2, y, f" {clean_line(f'{box.number} {box.machine}', inner - 2)} ", "bold")
    for line, (text, style) in enumerate(((box.layers, ""), (box.state, colour)), 1):
        canvas.put(x, y + line, f"│{' ' * (_BOX - 2)}│", colour)
        canvas.put(x + 2, y + line, text[:inner], style)
    canvas.put(x, y + 3, f"╰{'─' * (_BOX - 2)}╯", colour)


def _draw_arrow(canvas: Canvas, x: int, y: int, box: StageBox) -> None:
    label = "" if box.latency is None else milliseconds(box.latency)
    canvas.put(x + 1, y, f"{label:^{_GAP - 2}}", "$text-muted")
    canvas.put(x + 1, y + 1, "─" * (_GAP - 3) + "►")
