"""Looks at all GPUs again and again, a line of JSON each time: a program of its own, which hangs where the driver does.

`python -m backend.hardware.watch_driver SECONDS` ends when nobody reads what it writes. `gpu_watch` starts it.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

import msgspec
import pynvml

from backend.hardware.ask_driver import read_all
from backend.hardware.gpu import GpuReading
from backend.hardware.gpu_report import GpuReport, Xid
from backend.hardware.nvml_value import value_or


def watch(period: float) -> None:
    """Never returns; raises OSError when the reader has gone."""
    xids: tuple[Xid, ...] = ()
    while True:
        began = time.monotonic()
        try:
            pynvml.nvmlInit()
            _tell(GpuReport(read_all(links=False), xids))
            xids = _reported(period)
        except pynvml.NVMLError as error:
            _tell(GpuReport(GpuReading(problem=f"The NVIDIA driver does not answer: {error}.")))
            xids = ()
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        time.sleep(max(0.0, period - (time.monotonic() - began)))


def _reported(period: float) -> tuple[Xid, ...]:
    """Errors that are reported within `period` seconds; at once none where the driver reports nothing."""
    events = pynvml.nvmlEventSetCreate()
    try:
        if not _registered(events):
            return ()
        xids: list[Xid] = []
        deadline = time.monotonic() + period
        while (left := deadline - time.monotonic()) > 0:
            event = _next(events, left)
            if event is None:
                break
            xids.append(Xid(int(pynvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)))
        return tuple(xids)
    finally:
        pynvml.nvmlEventSetFree(events)


def _registered(events: Any) -> bool:
    """Whether any GPU will report."""
    registered = False
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        with suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
            registered = True
    return registered


def _next(events: Any, seconds: float) -> Any:
    """The next event within so many seconds; None where none comes."""
    return value_or(None, lambda: pynvml.nvmlEventSetWait_v2(events, int(seconds * 1000) + 1))


def _tell(report: GpuReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    with suppress(OSError):
        watch(float(sys.argv[1]))
