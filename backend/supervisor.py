"""EngineSupervisor: the EngineClient over an engine process that may die: revives it and replays what was
running.

It decides nothing itself: `revival` says when to restart and whom to blame, `vital_signs` what counts as
dead.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
import structlog

from backend.engine_child import EngineChild
from backend.engine_client import EngineState, EngineStatus, RankStatus
from backend.engine_failures import gave_up, guilt, refused
from backend.engine_settings import EngineSettings
from backend.errors import EngineUnavailableError, ShardwiseError
from backend.events import End, EndReason, EngineStatistics, Start, Token
from backend.exit_status import describe_exit
from backend.lasting_statistics import begun_again, carried_on
from backend.measured_rank import MeasuredRank, differences
from backend.messages import (
    Cancel,
    FromEngine,
    Lost,
    Measure,
    Measured,
    Progress,
    Ready,
    StartFailed,
    StepOutput,
    Submit,
)
from backend.planner.plan import Plan
from backend.rank_statuses import rank_statuses
from backend.request import Request
from backend.revival import Death, RevivalPolicy, admissible, guilty, restart_delay
from backend.running_request import LostTokenError, RunningRequest
from backend.standing import Standing
from backend.start_stages import StartStages
from backend.vital_signs import VitalLimits, VitalSigns
from kvcache.statistics import CacheMap

ENGINE_COMMAND = (sys.executable, "-P", "-m", "backend.engine_process")
# A step of a long prompt on a processor may take longer; whoever asks gets the last measurement then.
MEASURE_SECONDS = 2.0

log = structlog.get_logger("shardwise.supervisor")


class EngineSupervisor:
    """One engine process after the other, seen as one engine. Its methods belong to one event loop.

    Args:
        settings: sent to each process.
        command: the program of an engine process; the number of its socket is appended.
        log_file: gets the process' own output, tracebacks included; None leaves it on ours.
        policy, limits: how patient to be.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        log_file: Path | None = None,
        policy: RevivalPolicy | None = None,
        limits: VitalLimits | None = None,
    ) -> None:
        self._settings, self._command, self._log_file = settings, command, log_file
        self._policy, self._limits = policy or RevivalPolicy(), limits or VitalLimits()
        self._state: EngineState = "starting"
        self._draining = self._stopped = False
        self._settled, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._child: EngineChild | None = None
        self._ready: Ready | None = None
        self._standing: Standing | None = None
        self._start_failed: StartFailed | None = None
        self._lost: Lost | None = None
        self._last_cause = ""
        self._failure: ShardwiseError | None = None
        self._stages = StartStages()
        self._running: dict[str, RunningRequest] = {}
        self._deaths: list[Death] = []
        self._restarts = 0
        self._statistics, self._earlier_statistics = EngineStatistics(), EngineStatistics()
        self._cache_map: CacheMap | None = None
        self._measured: tuple[MeasuredRank, ...] = ()
        self._measuring: asyncio.Future[None] | None = None

    @property
    def model(self) -> str:
        return self._settings.files.name

    @property
    def plan(self) -> Plan | None:
        return self._ready.plan if self._ready else None

    @property
    def max_context(self) -> int | None:
        return self._ready.max_context if self._ready else None

    def status(self) -> EngineStatus:
        return EngineStatus(
            model=self.model,
            state="draining" if self._draining and self._state != "failed" else self._shown_state(),
            pid=self._child.pid if self._child else None,
            ranks=self._ranks(),
            stages=self._stages.snapshot(),
            restarts=self._restarts,
            error=str(self._failure) if self._failure else self._trouble(),
            trouble=self._standing.trouble if self._standing is not None else "",
        )

    @property
    def _mending(self) -> bool:
        """Whether a rank of a living engine is being replaced: requests are taken, and their tokens come later."""
        return self._state == "ready" and self._standing is not None and self._standing.mending

    def _shown_state(self) -> EngineState:
        return "restarting" if self._mending else self._state

    def _trouble(self) -> str:
        """Why the engine is being started again, or a part of it replaced, while it is."""
        if self._mending and self._standing is not None:
            return self._standing.trouble or "A part of the engine is being replaced."
        return f"The engine died: {self._last_cause}." if self._state == "restarting" and self._last_cause else ""

    def _ranks(self) -> tuple[RankStatus, ...]:
        if self._ready is None or self._child is None:
            return ()
        return rank_statuses(self._ready, self._standing, self._state)

    def statistics(self) -> EngineStatistics:
        return carried_on(self._earlier_statistics, self._statistics)

    def cache_map(self) -> CacheMap | None:
        return self._cache_map

    async def measure(self) -> tuple[MeasuredRank, ...]:
        """See `EngineClient.measure`. Who asks while an answer is due shares it."""
        if self._state != "ready" or self._child is None:
            return self._measured
        if self._measuring is None:
            self._measuring = asyncio.get_running_loop().create_future()
            self._child.send(Measure())
        await asyncio.wait([self._measuring], timeout=MEASURE_SECONDS)
        return self._measured

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the contract has it
        try:
            async with asyncio.timeout(timeout):
                while self._state in ("starting", "restarting") and not self._stopped:
                    await self._settled.wait()
        except TimeoutError:
            return False
        return self._state == "ready" and not self._draining

    async def generate(self, request: Request) -> AsyncGenerator[Start | Token | End]:
        """See `EngineClient.generate`."""
        if self._draining or self._failure is not None:
            raise refused(self.model, self._failure)
        if request.id in self._running:
            raise ValueError(f"a request {request.id} is running already")
        running = RunningRequest(request)
        self._running[request.id] = running
        self._idle.clear()
        self._admit()
        timer = None
        if request.timeout is not None:
            timer = asyncio.get_running_loop().call_later(request.timeout, self._expire, running)
        try:
            while True:
                event = await running.next_event()
                yield event
                if isinstance(event, End):
                    return
        finally:
            if timer is not None:
                timer.cancel()
            self._cancel(running)

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name=f"supervisor of {self.model}")

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        self._draining = self._stopped = True
        self._settled.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._end_all("cancelled")

    async def _supervise(self) -> None:
        """Runs one process after the other until it is cancelled or gives up."""
        try:
            while True:
                cause = await self._live()
                if self._start_failed is not None:
                    told = self._start_failed
                    return self._fail(EngineUnavailableError(told.what, told.why, told.hint))
                delay = self._account_for(cause)
                if delay is None:
                    return self._fail(gave_up(len(self._deaths), cause, self._log_file))
                self._restarts += 1
                await asyncio.sleep(delay)
        except Exception as error:  # the edge of a task: nobody would see it otherwise
            log.exception("supervisor failed", model=self.model)
            self._fail(EngineUnavailableError("The engine could not be started", repr(error)))

    async def _live(self) -> str:
        """Spawns a process and lives with it until it has ended and is reaped: why it ended."""
        self._stages, self._lost = StartStages(), None
        try:
            child = await EngineChild.spawn(self._command, self._settings, self._log_file)
        except OSError as error:
            self._deaths.append(Death(time.monotonic(), was_ready=False))
            return f"it could not be spawned ({error.strerror})"
        self._child = child
        log.info("engine spawned", model=self.model, pid=child.pid)
        signs = VitalSigns(self._limits)
        watch = asyncio.create_task(self._watch(child, signs))
        fault = None
        try:
            async for message in child.messages():
                signs.heard(message)
                self._receive(message)
        except (LostTokenError, ValueError, msgspec.MsgspecError) as error:
            fault = f"it broke the protocol: {error}"
            child.kill()
        finally:
            self._leave_ready()
            watch.cancel()
            await asyncio.wait([watch])
            status = await child.end()
            self._child = None
        found = None if watch.cancelled() else watch.result()
        lost = self._lost.cause if self._lost is not None else None
        return fault or found or lost or f"it {describe_exit(status)}"

    async def _watch(self, child: EngineChild, signs: VitalSigns) -> str:
        """Kills a process that is frozen or hung, and says why."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._limits.tick)
            now = time.monotonic()
            if complaint := signs.check(now - last):
                child.kill()
                return complaint
            last = now

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepOutput():
                self._receive_step(message)
            case Progress():
                self._stages.report(message)
            case Ready():
                self._stages.finish()
                self._ready = message
                self._standing = message.standing
                self._statistics = message.statistics
                self._enter("ready")
                self._take_measured(message.measured)
                log.info("engine ready", model=self.model, restarts=self._restarts)
                for difference in differences(message.plan.ranks, message.measured):
                    log.warning("memory differs from the plan", model=self.model, difference=difference)
                self._admit()
            case Measured(ranks=ranks):
                self._take_measured(ranks)
            case StartFailed():
                self._start_failed = message
            case Lost():
                # Told before the process has ended and is reaped.
                self._lost, self._last_cause = message, message.cause

    def _take_measured(self, ranks: tuple[MeasuredRank, ...]) -> None:
        self._measured = ranks
        if self._measuring is not None:
            self._measuring.set_result(None)
            self._measuring = None

    def _receive_step(self, output: StepOutput) -> None:
        self._statistics = output.statistics
        self._standing = output.standing or self._standing
        if output.cache_map is not None:
            self._cache_map = output.cache_map
        for start in output.starts:
            if (admitted := self._running.get(start.request)) is not None:
                admitted.started(start)
        for token in output.tokens:
            running = self._running.get(token.request)
            if running is not None and running.deliver(token):
                self._deaths.clear()
        for end in output.ends:
            running = self._running.get(end.request)
            if running is not None:
                self._end(running, end)
        if any(not running.sent for running in self._running.values()):
            self._admit()

    def _admit(self) -> None:
        """Sends the engine what it may run now."""
        if self._state != "ready" or self._child is None:
            return
        suspicions = {name: running.suspicions for name, running in self._running.items()}
        sent = {name for name, running in self._running.items() if running.sent}
        for name in admissible(self._policy, suspicions, sent):
            self._running[name].sent = True
            self._child.send(Submit(self._running[name].replay()))

    def _leave_ready(self) -> None:
        """The process is dead or about to be: the truth is told before anything is done about it."""
        was_ready = self._state == "ready"
        self._enter("restarting" if was_ready else self._state)
        self._deaths.append(Death(time.monotonic(), was_ready))
        self._earlier_statistics = self.statistics()
        self._statistics = begun_again(self._earlier_statistics, waiting=len(self._running))
        self._cache_map = self._standing = None
        self._take_measured(())
        for running in tuple(self._running.values()):
            running.engine_died()
            if running.overdue:
                self._end(running, End(running.request.id, "deadline"))
            elif reason := running.finished():
                self._end(running, End(running.request.id, reason))

    def _account_for(self, cause: str) -> float | None:
        """After a death: ends who is to blame; seconds until the restart, or None to give up."""
        log.warning("engine died", model=self.model, cause=cause, running=len(self._running))
        self._last_cause = cause
        suspicions = {name: running.suspicions for name, running in self._running.items()}
        for name in guilty(self._policy, suspicions):
            log.error("request ended: the engine died each time it ran", request=name)
            self._end(self._running[name], End(name, "error", guilt(self._policy.suspicions, cause)))
            self._deaths.clear()
        return restart_delay(self._policy, self._deaths)

    def _fail(self, failure: ShardwiseError) -> None:
        log.error("engine failed", model=self.model, what=failure.what, why=failure.why)
        self._failure = failure
        self._enter("failed")
        self._end_all("error", str(failure))

    def _enter(self, state: EngineState) -> None:
        self._state = state
        if state in ("ready", "failed"):
            self._settled.set()
        else:
            self._settled.clear()

    def _end(self, running: RunningRequest, end: End) -> None:
        del self._running[running.request.id]
        running.end(end)
        if not self._running:
            self._idle.set()

    def _end_all(self, reason: EndReason, message: str = "") -> None:
        for running in tuple(self._running.values()):
            self._end(running, End(running.request.id, reason, message))

    def _cancel(self, running: RunningRequest) -> None:
        """The reader has gone; where the End was not delivered yet, the engine should stop too."""
        if self._running.get(running.request.id) is not running:
            return
        if running.sent and self._child is not None:
            self._child.send(Cancel(running.request.id))
        self._end(running, End(running.request.id, "cancelled"))

    def _expire(self, running: RunningRequest) -> None:
        """The deadline of a request that the engine does not have; one that it has, it ends itself."""
        if self._running.get(running.request.id) is running and not running.sent:
            self._end(running, End(running.request.id, "deadline"))
