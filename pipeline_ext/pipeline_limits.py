"""PipelineLimits: how long each thing may take, and how often it is tried again, before a pipeline does something."""

from __future__ import annotations

from dataclasses import dataclass, field

from backend.vital_signs import VitalLimits


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """In seconds, but for counts.

    Attributes:
        signs: of each worker; it beats each half second.
        arrive: from the order to spawn until a worker is at the door.
        progress: a worker that loads or warms up may say nothing new for so long.
        load: all of its loading, and all of its warming up.
        join: from a Join until all links of the epoch stand.
        stall: with batches in flight, no worker may be done with anything for so long, although all live.
        moment: how long a broken link is not acted on, because the death of a worker may turn out to be the cause.
        look: how often the machines are asked for, where that matters.
        rejoins: a link that breaks more often than this, without a batch between, is given up with a peer.
        breaks: so many times the pipeline is mended without a batch between; then there is something that kills it.
        forget: after so long without trouble, troubles are not counted together any more.
        failures: so often a stage is tried on one machine; `retry` later each time.
        wait: for a machine to come back.
    """

    signs: VitalLimits = field(
        default_factory=lambda: VitalLimits(
            tick=0.5, silence=3.0, starting_silence=20.0, step=30.0, slow_step=300.0, step_factor=10.0
        )
    )
    arrive: float = 30.0
    progress: float = 300.0
    load: float = 3600.0
    join: float = 10.0
    stall: float = 360.0
    moment: float = 0.4
    look: float = 1.0
    rejoins: int = 3
    breaks: int = 8
    forget: float = 60.0
    failures: int = 2
    retry: float = 2.0
    wait: float = 120.0
