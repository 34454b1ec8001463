"""SeedRun: one seed from start to end: a supervisor, engines, stages and faults, and what must hold afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from backend.engine import Engine
from backend.events import End, Token
from backend.executor import DeviceLostError
from backend.request import Request
from backend.scheduler import Scheduler
from backend.vital_signs import VitalLimits
from backend.workers.worker_messages import Refused
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from pipeline_ext.crew_starter import Door
from pipeline_ext.messages import LoadStage
from pipeline_ext.pipeline import PipelineMachine
from pipeline_ext.pipeline_executor import PipelineExecutor, StageRefusedError
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.simulator.clock import SimulatedClock
from pipeline_ext.simulator.scenario import Fault, Scenario
from pipeline_ext.simulator.simulated_cluster import SimulatedAgent, SimulatedCluster, SimulatedHub
from pipeline_ext.simulator.simulated_links import SimulatedLinks
from pipeline_ext.simulator.simulated_loads import MAX_CONTEXT, SimulatedLoads
from pipeline_ext.simulator.simulated_transport import SimulatedTransport
from pipeline_ext.simulator.simulated_worker import MakeMachine, SimulatedWorker
from pipeline_ext.simulator.toy_stage import POISON, ToyStage, alone
from pipeline_ext.simulator.wires import Connection, Host, Network, Process
from pipeline_ext.stage_machine import Work

BOUND_SECONDS = 400.0
RESTART_SECONDS = 1.0
# The supervisor tries so often to start an engine, so far apart.
STARTS, START_PAUSE = 14, 5.0

LIMITS = PipelineLimits(
    signs=VitalLimits(tick=0.5, silence=3.0, starting_silence=8.0, step=10.0, slow_step=10.0, step_factor=10.0),
    arrive=5.0,
    progress=10.0,
    load=30.0,
    join=4.0,
    stall=30.0,
    forget=15.0,
    wait=15.0,
)


class ViolationError(AssertionError):
    """Something does not hold that must hold under any faults."""


class SeedRun:
    """`run` raises ViolationError; `log` has what happened, for people."""

    def __init__(self, scenario: Scenario, make_machine: MakeMachine) -> None:
        self.scenario, self.make_machine = scenario, make_machine
        self.log: list[str] = []
        self.clock = SimulatedClock()
        self.network = Network(self.clock, Random(scenario.seed + 1))
        self.hosts = {plan.name: Host(plan.name, plan.capacity, plan.latency) for plan in scenario.hosts}
        self.hub = SimulatedHub(self.network, self.hosts[""])
        self.workers: dict[str, Process] = {}
        self.links: dict[str, SimulatedLinks] = {}
        self.agents: dict[str, SimulatedAgent] = {}
        self.layout = self._layout()
        self.told: dict[str, list[int]] = {}
        self.ends: dict[str, End] = {}
        self.engines = self.breaks = 0
        self.given_up = False
        self._engine: Process | None = None
        self._transport: SimulatedTransport | None = None
        self._suspended_until = 0.0
        self._loaded: dict[str, tuple[Host, int]] = {}

    def _layout(self) -> CacheLayout:
        caches = tuple(
            LayerCache(Keeps.FULL if window is None else Keeps.SLIDING, window, 1, 4, 4)
            for window in self.scenario.windows
        )
        return build_layout(caches, 2, self.scenario.page_tokens)

    def run(self) -> None:
        """From the first start until every request has ended and every worker is gone."""
        for plan in self.scenario.hosts[1:]:
            self.clock.at(plan.later, lambda host=self.hosts[plan.name]: self._join(host))
        self.clock.run(2.0, lambda: False)
        self._serve()
        self._check_ends()
        self._check_nobody_left()

    def note(self, text: str) -> None:
        self.log.append(f"{self.clock.now:9.4f} {text}")

    # The supervisor: starts engines, hands them the requests, and is told their tokens.

    def _serve(self) -> None:
        waiting = [(self.clock.now + at, request) for at, request in self.scenario.requests]
        live: list[Request] = []
        begun = False
        for attempt in range(STARTS):
            plan = self._plan()
            if plan is None:
                self.note("no plan fits the machines that are alive")
                self.clock.run(self.clock.now + START_PAUSE, lambda: False)
                continue
            executor, process = self._start_engine(plan)
            try:
                executor.start()
                if not begun:
                    begun = True
                    self._schedule_faults()
                engine, scheduler = self._make_engine(executor)
                for request in live:
                    engine.submit(request)
                self._loop(engine, scheduler, waiting)
                executor.close()
                return process.die()
            except (DeviceLostError, StageRefusedError) as error:
                self.note(f"engine {self.engines} ends: {error}")
                live = self._unfinished(waiting)
            executor.close()
            process.die()
            self.clock.run(self.clock.now + (RESTART_SECONDS if attempt < 4 else START_PAUSE), lambda: False)
        self._give_up(waiting)

    def _unfinished(self, waiting: list[tuple[float, Request]]) -> list[Request]:
        """With the tokens that they have; the rest has not been submitted yet."""
        later = {request.id for _, request in waiting}
        return [
            msgspec.structs.replace(request, prior=tuple(self.told.get(request.id, ())))
            for _, request in self.scenario.requests
            if request.id not in self.ends and request.id not in later
        ]

    def _give_up(self, waiting: list[tuple[float, Request]]) -> None:
        """All starts failed: every request ends with one typed error."""
        self.given_up = True
        for _, request in self.scenario.requests:
            if request.id not in self.ends:
                self.ends[request.id] = End(request.id, "error", "engine_unavailable")
        waiting.clear()

    def _plan(self) -> list[tuple[str, int, int]] | None:
        """The scenario's plan where its machines are alive; else layers given out greedily."""
        alive = [name for name in self.hosts if not name or self.hub.members.health(name) == "alive"]
        if self.engines == 0 and all(name in alive for name, _ in self.scenario.stages):
            sizes = list(self.scenario.stages)
        else:
            sizes, left = [], self.scenario.layers
            for name in sorted(alive, key=lambda one: -self.hosts[one].capacity):
                size = min(left, self.hosts[name].capacity)
                if size and not self.hosts[name].refuses:
                    sizes.append((name, size))
                    left -= size
            if left:
                return None
        first = 0
        stages: list[tuple[str, int, int]] = []
        for name, size in sizes:
            stages.append((name, first, first + size))
            first += size
        return stages

    def _start_engine(self, plan: list[tuple[str, int, int]]) -> tuple[PipelineExecutor, Process]:
        self.engines += 1
        self.note(f"engine {self.engines} starts with {plan}")
        process = Process(self.clock, self.hosts[""], f"engine {self.engines}")
        transport = SimulatedTransport(self.network, process, self._be_suspended)
        self._engine, self._transport = process, transport
        cluster = SimulatedCluster(self.network, self.hub, self.hosts, self._spawn)
        loads = SimulatedLoads(plan, self.scenario.ranks, self.scenario.step_tokens, self.scenario.layers)
        machine = PipelineMachine(loads, transport, cluster, Door(lambda peer: "door", b"secret"), LIMITS)
        return PipelineExecutor(machine, transport), process

    def _make_engine(self, executor: PipelineExecutor) -> tuple[Engine, Scheduler]:
        scenario = self.scenario
        pages = CacheManager(self.layout, 1).most_pages(MAX_CONTEXT, scenario.step_tokens) + scenario.spare_pages
        scheduler = Scheduler(
            CacheManager(self.layout, pages, host_pages=scenario.host_pages),
            max_context=MAX_CONTEXT,
            max_sequences=4,
            step_tokens=scenario.step_tokens,
        )
        return Engine(scheduler, executor, lambda: self.clock.now), scheduler

    def _loop(self, engine: Engine, scheduler: Scheduler, waiting: list[tuple[float, Request]]) -> None:
        """Until all requests have ended. DeviceLostError passes through."""
        began = self.clock.now
        steps = 0
        cancels = [(began + at, request) for at, request in self.scenario.cancels]
        while waiting or engine.has_work:
            if self.clock.now > BOUND_SECONDS:
                raise ViolationError(f"something waits forever: {[one for one in self.told if one not in self.ends]}")
            for at, request in [one for one in waiting if one[0] <= self.clock.now]:
                waiting.remove((at, request))
                self.told[request.id] = []
                engine.submit(request)
            for at, request in [one for one in cancels if one[0] <= self.clock.now]:
                cancels.remove((at, request))
                engine.cancel(request)
            output = engine.step() if engine.has_work else engine.idle()
            if output is not None:
                self._take_in(output.tokens, output.ends)
                # Looking at all pages takes longer than a step.
                steps += 1
                if output.ends or steps % 4 == 0:
                    scheduler.check_integrity()
            if not engine.has_work and waiting:
                self.clock.run(min(self.clock.now + 1.0, *(at for at, _ in waiting)), lambda: False)
        pages = scheduler.statistics().cache
        if pages.pages_used or pages.pages_free + pages.pages_cached != pages.pages_total:
            raise ViolationError(f"pages were lost: {pages}")

    def _take_in(self, tokens: Sequence[Token], ends: Sequence[End]) -> None:
        for token in tokens:
            told = self.told[token.request]
            if token.request in self.ends:
                raise ViolationError(f"{token.request} got a token after its end")
            if token.index != len(told):
                raise ViolationError(f"{token.request} got token {token.index} after {len(told)}")
            told.append(token.token)
        for end in ends:
            if end.request in self.ends:
                raise ViolationError(f"{end.request} ended twice")
            self.ends[end.request] = end

    # What must hold in the end.

    def _check_ends(self) -> None:
        for _, request in self.scenario.requests:
            end = self.ends.get(request.id)
            if end is None:
                raise ViolationError(f"{request.id} never ended")
            told = self.told.get(request.id, [])
            expected = alone(request, self.layout, MAX_CONTEXT) if POISON not in request.prompt else []
            if told != expected[: len(told)]:
                raise ViolationError(f"{request.id} got {told}, without faults {expected}")
            if end.reason == "error":
                if not self.given_up and POISON not in request.prompt:
                    raise ViolationError(f"{request.id} ended with an error: {end.message}")
            elif end.reason != "cancelled" and told != expected:
                raise ViolationError(f"{request.id} ended after {told}, without faults {expected}")
        if self.given_up and self._plan() is not None:
            raise ViolationError("every request was given up although the machines that are left have room")

    def _check_nobody_left(self) -> None:
        """When the network is whole and nothing is frozen, no worker stays."""
        self.network.heal()
        for process in self.workers.values():
            process.thaw()
        self.clock.run(self.clock.now + 60.0, lambda: not any(one.alive for one in self.workers.values()))
        left = [one.name for one in self.workers.values() if one.alive]
        if left:
            raise ViolationError(f"workers are left over: {left}")

    # What workers need.

    def dial_engine(self, process: Process) -> tuple[Connection, Connection] | None:
        engine, transport = self._engine, self._transport
        if engine is None or transport is None or not engine.alive:
            return None
        lines = (Connection(self.network, process, engine), Connection(self.network, process, engine))
        for line in lines:
            transport.accept(line)
        return lines

    def make_stage(self, order: LoadStage, worker: str) -> ToyStage | Refused:
        host = self.workers[worker].host
        size = order.span.stop - order.span.first
        held = sum(
            layers for name, (where, layers) in self._loaded.items() if where is host and self.workers[name].alive
        )
        if host.refuses or (order.load.rank == 0 and held + size > host.capacity):
            return Refused("out_of_memory", 1, "no room", "", "")
        if order.load.rank == 0:
            self._loaded[worker] = (host, size)
        return ToyStage(self.layout, order.span.first, order.span.stop)

    def compute_seconds(self, process: Process, work: Work) -> float:
        return (0.02 + 0.005 * len(work.step.slices)) * process.host.slow * self.network.chance.uniform(0.8, 1.2)

    def load_seconds(self, process: Process) -> float:
        return self.network.chance.uniform(0.2, 1.5) * min(process.host.slow, 3.0)

    def _spawn(self, host: Host, name: str) -> Process:
        process = Process(self.clock, host, f"{self.engines}:{name}")
        self.workers[process.name] = process
        SimulatedWorker(_Surroundings(self, process.name), process, name)
        return process

    def _join(self, host: Host) -> None:
        if host.alive:
            self.agents[host.name] = SimulatedAgent(self.hub, self.network, host)

    def _be_suspended(self) -> None:
        """The engine's process stands still now and then: its own beats too."""
        engine = self._engine
        if self._suspended_until <= self.clock.now or engine is None:
            return
        engine.freeze()
        self.clock.run(self._suspended_until, lambda: False)
        engine.thaw()

    # Faults.

    def _schedule_faults(self) -> None:
        began = self.clock.now
        for fault in self.scenario.faults:
            self.clock.at(began + fault.at, lambda fault=fault: self._happen(fault))

    def _happen(self, fault: Fault) -> None:
        alive = [process for process in self.workers.values() if process.alive]
        peers = [host for name, host in self.hosts.items() if name]
        if not peers or not alive:
            return
        process, host = alive[fault.target % len(alive)], peers[fault.target % len(peers)]
        other = self.hosts[("", *[one.name for one in peers])[fault.target // 7 % (1 + len(peers))]]
        self.note(f"fault {fault.kind}: {process.name} / {host.name} / {other.name or 'head'} for {fault.seconds} s")
        later = self.clock.now + fault.seconds
        match fault.kind:
            case "kill":
                process.die()
            case "power" if host.alive:
                self._power_off(host)
                if fault.target % 3:
                    self.clock.at(later, lambda: self._power_on(host))
            case "freeze":
                process.freeze()
                self.clock.at(later, process.thaw)
            case "slow":
                process.host.slow = (5.0, 40.0, 80.0)[fault.target % 3]
                self.clock.at(later, lambda: setattr(process.host, "slow", 1.0))
            case "partition":
                self.network.cut(self.hosts[""], host)
                self.clock.at(later, self.network.heal)
            case "part" if other is not host:
                self.network.cut(other, host)
                self.clock.at(later, self.network.heal)
            case "cut":
                links = [one for one in self.links.values() if one.process.alive and one.connections]
                if links:
                    links[fault.target % len(links)].connections[-1].cut()
            case "leave" if host.alive:
                self.hub.members.leave(host.name)
            case "refuse":
                host.refuses = True
                self.clock.at(later, lambda: setattr(host, "refuses", False))
            case "suspend":
                self._suspended_until = later
            case _:
                pass

    def _power_off(self, host: Host) -> None:
        host.alive = False
        agent = self.agents.get(host.name)
        for process in [*self.workers.values(), *([agent.process] if agent is not None else [])]:
            if process.host is host:
                process.die(silently=True)

    def _power_on(self, host: Host) -> None:
        host.alive = True
        self._join(host)


class _Surroundings:
    """What one worker sees of the run."""

    def __init__(self, run: SeedRun, process: str) -> None:
        self._run, self._process = run, process
        self.network = run.network
        self.make_machine = run.make_machine

    def dial_engine(self, process: Process) -> tuple[Connection, Connection] | None:
        return self._run.dial_engine(process)

    def links_of(self, place: str) -> SimulatedLinks | None:
        return self._run.links.get(place)

    def listen(self, place: str, links: SimulatedLinks) -> None:
        self._run.links[place] = links

    def compute_seconds(self, process: Process, work: Work) -> float:
        return self._run.compute_seconds(process, work)

    def load_seconds(self, process: Process) -> float:
        return self._run.load_seconds(process)

    def note(self, text: str) -> None:
        self._run.note(text)

    def make_stage(self, order: LoadStage) -> ToyStage | Refused:
        return self._run.make_stage(order, self._process)
