"""GpuWatch: keeps an eye on the GPUs while a server runs: warns in the log, and has their newest state for metrics.

It looks through a program of its own, because asking a driver may hang. Whoever plans reads the machine himself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import MappingProxyType

import msgspec
import structlog

from backend.hardware.gpu import GpuReading
from backend.hardware.gpu_report import GpuReport, Xid
from backend.hardware.health import ill, warnings_of
from backend.hardware.nvml import driver_installed, environment, program

PERIOD = 10.0  # seconds between two looks
_PATIENCE, _PAUSE, _ENDING = 30.0, 60.0, 1.0
# NVIDIA's numbers ("Xid errors" in its documentation) of those that are the hardware's, not a program's, fault.
_MEANINGS = MappingProxyType(
    {
        48: "memory could not be corrected",
        63: "memory was taken out of use",
        64: "memory could not be taken out of use",
        74: "an NVLink failed",
        79: "it has fallen off the bus",
        94: "memory could not be corrected, and a program was ended for it",
        95: "memory could not be corrected, and all programs were ended for it",
        119: "its processor for the driver does not answer",
        120: "its processor for the driver failed",
    }
)

log = structlog.get_logger("shardwise.gpus")


class GpuWatch:
    """Belongs to one event loop. Does nothing where no NVIDIA driver is installed.

    Args:
        period: seconds between two looks.
        command: replaces the watching program, in tests.
        patience: seconds that a look may take beyond the period.
        pause: seconds until a program that failed is started again.
    """

    def __init__(
        self,
        period: float = PERIOD,
        command: tuple[str, ...] = (),
        patience: float = _PATIENCE,
        pause: float = _PAUSE,
    ) -> None:
        self._period, self._patience, self._pause = period, patience, pause
        self._command = (*(command or program("backend.hardware.watch_driver")), str(period))
        self._asked = bool(command)
        self._task: asyncio.Task[None] | None = None
        self._reading: GpuReading | None = None
        self._said: dict[tuple[str, str], str] = {}
        self._seen: dict[str, str] = {}

    @property
    def reading(self) -> GpuReading | None:
        """The newest, or None where none is known, or it is too old to be true."""
        return self._reading

    async def start(self) -> None:
        """Begins to look, in the background."""
        if self._asked or driver_installed():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends the program; one that hangs inside the driver is left behind, and waited for no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            why = await self._look()
            self._reading = None
            self._say("driver", "silent", f"The GPUs are not watched for a while: {why}.")
            await asyncio.sleep(self._pause)

    async def _look(self) -> str:
        """Reads one program's lines until it fails: why it did."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment(),
                limit=1 << 20,
            )
        except OSError as error:
            return f"their watch could not be started ({error.strerror})"
        try:
            return await self._read(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING):
                    await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> str:
        if process.stdout is None:
            return "their watch has no output"
        while True:
            try:
                async with asyncio.timeout(self._period + self._patience):
                    line = await process.stdout.readline()
            except TimeoutError:
                return "the NVIDIA driver does not answer"
            if not line:
                return "their watch has ended"
            try:
                self._receive(msgspec.json.decode(line, type=GpuReport))
            except msgspec.MsgspecError:
                return "their watch tells nonsense"

    def _receive(self, report: GpuReport) -> None:
        self._reading = report.reading
        current = dict(_findings(report.reading)) | self._missing(report.reading)
        for key in [key for key in self._said if key not in current]:
            del self._said[key]
        for (what, kind), sentence in current.items():
            self._say(what, kind, sentence)
        for xid in report.xids:
            log.warning("gpu error", gpu=xid.index, what=_meaning(xid))

    def _say(self, what: str, kind: str, sentence: str) -> None:
        """Once, until it is over."""
        if (what, kind) not in self._said:
            log.warning("gpu", what=sentence)
        self._said[what, kind] = sentence

    def _missing(self, reading: GpuReading) -> dict[tuple[str, str], str]:
        """GPUs that were seen before and are no longer even counted."""
        self._seen |= {gpu.uuid: f"GPU {gpu.index} ({gpu.name})" for gpu in reading.gpus}
        if reading.problem:
            return {}
        here = {gpu.uuid for gpu in reading.gpus} | {fault.uuid for fault in reading.faults}
        gone = [uuid for uuid in self._seen if uuid not in here]
        # One that fell off the bus is a fault without a uuid: then nobody is missed beside it.
        return {(uuid, "gone"): f"{self._seen[uuid]} is no longer there." for uuid in gone[len(_nameless(reading)) :]}


def _nameless(reading: GpuReading) -> list[int]:
    return [fault.index for fault in reading.faults if not fault.uuid]


def _findings(reading: GpuReading) -> Iterator[tuple[tuple[str, str], str]]:
    """What is to be said of a reading, by GPU and kind."""
    if reading.problem:
        yield ("driver", "problem"), reading.problem
    for fault in ill(reading):
        yield (str(fault.index), "fault"), f"{fault.what} The next start of the engine leaves it out."
    for gpu in reading.gpus:
        for kind, sentence in warnings_of(gpu).items():
            yield (str(gpu.index), kind), sentence


def _meaning(xid: Xid) -> str:
    meaning = _MEANINGS.get(xid.code, "see NVIDIA's list of Xid errors")
    return f"GPU {xid.index} reported Xid {xid.code}: {meaning}."
