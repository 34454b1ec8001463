"""SimulatedLinks: what `stage_links` does, over simulated connections: one link an epoch, by Hello and Welcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline_ext.link_protocol import Frame, FrameDecoder, FrameLimits, LinkError, frame_parts
from pipeline_ext.simulator.toy_stage import COLUMNS
from pipeline_ext.simulator.wires import CLOSED, Connection, Network, Process

REDIAL_SECONDS = 0.2
JOIN_SECONDS = 60.0
# Now and then a Hello comes twice, as if somebody had dialled again.
TWICE = 0.1


@dataclass(frozen=True, slots=True)
class LinkHappening:
    """A frame came; or a link broke; or, with neither, a link stands."""

    epoch: int
    forward: bool
    frame: Frame | None = None
    broken: str | None = None


class SimulatedLinks:
    """Of one worker. `tell` gets what happens, in order for each link."""

    def __init__(
        self,
        network: Network,
        process: Process,
        stage: int,
        step_tokens: int,
        find: Callable[[str], SimulatedLinks | None],
        tell: Callable[[LinkHappening], None],
    ) -> None:
        self._network, self.process, self._stage = network, process, stage
        self._limits = FrameLimits(step_tokens, COLUMNS)
        self._find, self._tell = find, tell
        self._epoch = -1
        self._early: dict[int, Connection] = {}
        self._backward: Connection | None = None
        self._forward: Connection | None = None

    @property
    def connections(self) -> list[Connection]:
        """Those that stand, for who wants to cut them."""
        return [one for one in (self._backward, self._forward) if one is not None]

    def join(self, epoch: int, forward: str) -> None:
        """See StageLinks. What an old link still brings comes with its own epoch."""
        if self._forward is not None:
            self._forward.close(self.process)
        self._backward = self._forward = None
        self._epoch = epoch
        for number in [number for number in self._early if number < epoch]:
            self._early.pop(number).close(self.process)
        early = self._early.pop(epoch, None)
        if early is not None:
            self._take_in(early)
        if forward:
            self._dial(epoch, forward, self._network.clock.now + JOIN_SECONDS)
            if self._network.chance.random() < TWICE:
                self.process.after(0.01, lambda: self._repeat_hello(epoch, forward))

    def send(self, frame: Frame) -> None:
        if self._forward is None or frame.epoch != self._epoch:
            return
        header, data = frame_parts(frame)
        body = header + bytes(data)
        middle = self._network.chance.randrange(len(body))
        for piece in (body[:middle], body[middle:]):
            self._forward.send(self.process, piece)

    def _say_hello(self, epoch: int, place: str) -> Connection | None:
        there = self._find(place)
        if there is None or not there.process.alive or epoch != self._epoch:
            return None
        connection = Connection(self._network, self.process, there.process)
        connection.listen(there.process, lambda message: there.visit(connection, message))
        connection.send(self.process, (epoch, self._stage))
        return connection

    def _repeat_hello(self, epoch: int, place: str) -> None:
        """Whatever is answered, nobody listens."""
        self._say_hello(epoch, place)

    def _dial(self, epoch: int, place: str, deadline: float) -> None:
        if epoch != self._epoch:
            return
        if self._network.clock.now > deadline:
            return self._tell(LinkHappening(epoch, True, broken="the next stage did not answer in time"))
        connection = self._say_hello(epoch, place)
        if connection is None:
            return self.process.after(REDIAL_SECONDS, lambda: self._dial(epoch, place, deadline))
        stands = False

        def hear(message: object) -> None:
            nonlocal stands
            if message is CLOSED:
                connection.close(self.process)
                if epoch != self._epoch:
                    return
                if stands:
                    self._tell(LinkHappening(epoch, True, broken="the next stage has closed the link"))
                else:
                    self.process.after(REDIAL_SECONDS, lambda: self._dial(epoch, place, deadline))
            elif epoch == self._epoch and not stands:
                stands, self._forward = True, connection
                self._tell(LinkHappening(epoch, True))

        connection.listen(self.process, hear)

    def visit(self, connection: Connection, hello: object) -> None:
        """Somebody has dialled."""
        if not isinstance(hello, tuple):
            return connection.close(self.process)
        epoch, stage = hello
        if stage != self._stage - 1 or epoch < self._epoch or (epoch == self._epoch and self._backward is not None):
            return connection.close(self.process)
        if epoch == self._epoch:
            return self._take_in(connection)
        earlier = self._early.pop(epoch, None)
        self._early[epoch] = connection
        connection.listen(self.process, lambda message: None)
        if earlier is not None:
            earlier.close(self.process)

    def _take_in(self, connection: Connection) -> None:
        epoch, decoder = self._epoch, FrameDecoder(self._limits)
        self._backward = connection

        def hear(message: object) -> None:
            if message is CLOSED or not isinstance(message, bytes):
                connection.close(self.process)
                return self._tell(LinkHappening(epoch, False, broken="the stage before has closed the link"))
            try:
                frames = decoder.feed(message)
            except LinkError as error:
                connection.close(self.process)
                return self._tell(LinkHappening(epoch, False, broken=str(error)))
            for frame in frames:
                self._tell(LinkHappening(epoch, False, frame=frame))

        connection.listen(self.process, hear)
        connection.send(self.process, "welcome")
        self._tell(LinkHappening(epoch, False))
