"""speed_of: a candidate's times and throughput; the model of time is `timing`'s. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from backend.hardware.cluster import Cluster, Network
from backend.planner.fit.candidate import Candidate, Question
from backend.planner.fit.report import Speed
from backend.planner.fit.shape import Seat
from backend.planner.links import Link, pair_link
from backend.planner.timing.prediction import predict
from backend.planner.timing.work import Work


def speed_of(asked: Question, made: Candidate) -> Speed:
    """Of all replicas, each taken for the first."""
    ask = asked.ask
    return predict(
        work_of(asked, made),
        prompt=ask.prompt,
        answer=ask.answer,
        context=min(asked.context, max(2, made.largest_context(asked.context))),
        users=ask.users,
        most_sequences=max(1, made.concurrency(min(asked.context, ask.prompt + ask.answer))),
        engine=ask.engine,
    )


def work_of(asked: Question, made: Candidate) -> Work:
    """What a step of the candidate reads, multiplies and sends."""
    replica = made.replicas[0]
    if replica.staged is not None:
        return replica.staged.work
    works = [draft.work for draft in replica.drafts]
    states = sum(layers.count for layers in asked.model.states)
    stages = [work.stages[0] for work in works]
    if states:
        stages = [
            replace(
                stage,
                ranks=tuple(
                    replace(rank, state_layers=max(1, round(states * part.share)), state_bytes=replica.state_bytes)
                    for rank in stage.ranks
                ),
            )
            for stage, part in zip(stages, replica.parts, strict=True)
        ]
    return replace(
        works[0], stages=tuple(stages), between=between(asked.cluster, replica.seats), replicas=made.shape.replicas
    )


def between(cluster: Cluster, seats: Sequence[Seat]) -> Link | Network | None:
    """The slowest way from a stage to the next: the network where any two are on different machines."""
    pairs = list(pairwise(seats))
    if any(one.machine != other.machine for one, other in pairs):
        return cluster.network
    ways = [_way(cluster, one, other) for one, other in pairs if one.gpus and other.gpus]
    return min(ways, key=lambda way: way.rank, default=None)


def _way(cluster: Cluster, one: Seat, other: Seat) -> Link:
    return pair_link(cluster.machines[one.machine], one.gpus[0], other.gpus[0])
