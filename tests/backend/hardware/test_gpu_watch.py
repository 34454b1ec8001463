"""The watch over the GPUs, over a fake driver: what it warns of, and that nothing it does can hang the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from backend.hardware.gpu_watch import GpuWatch
from backend.hardware.nvml import environment, program
from tests.fakes.nvml_state import NvmlState

COMMAND = program("backend.hardware.watch_driver")
THERMAL = 0x40


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
    return NvmlState.install("dgx-h100", tmp_path, monkeypatch)


@asynccontextmanager
async def watching(**options: Any) -> AsyncIterator[tuple[GpuWatch, list[Any]]]:
    """A watch that looks often, and what it logs."""
    before = set(psutil.Process().children())
    with structlog.testing.capture_logs() as logs:
        watch = GpuWatch(**({"period": 0.05, "command": COMMAND} | options))
        await watch.start()
        try:
            yield watch, logs
        finally:
            await watch.close()
    assert set(psutil.Process().children()) <= before  # nothing is left behind


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def said(logs: list[Any]) -> list[str]:
    return [entry["what"] for entry in logs if entry["log_level"] == "warning"]


async def test_healthy_gpus_are_read_and_nothing_is_said(driver: NvmlState) -> None:
    async with watching() as (watch, logs):
        assert watch.reading is None
        await until(lambda: watch.reading)
        assert watch.reading is not None
        assert len(watch.reading.gpus) == 8
        assert watch.reading.links == ()
        assert said(logs) == []


async def test_a_warning_comes_once_and_again_after_it_was_over(driver: NvmlState) -> None:
    def temperature(watch: GpuWatch) -> int | None:
        return watch.reading.gpus[1].health.temperature if watch.reading else None

    async with watching() as (watch, logs):
        for turn, heat in enumerate((91, 92), start=1):
            driver.change(1, throttle_reasons=THERMAL, temperature=heat)
            await until(lambda heat=heat: temperature(watch) == heat)
            driver.change(1, temperature=heat + 100)  # still hot
            await until(lambda heat=heat: temperature(watch) == heat + 100)
            assert len(said(logs)) == turn
            assert f"{heat} °C" in said(logs)[-1]
            driver.change(1, throttle_reasons=0, temperature=40)
            await until(lambda: temperature(watch) == 40)


async def test_lost_broken_and_missing_gpus_are_named(driver: NvmlState) -> None:
    async with watching() as (watch, logs):
        await until(lambda: watch.reading)
        driver.change(2, fails="GPU_IS_LOST")
        await until(lambda: said(logs))
        driver.change(4, uncorrectable=2)
        await until(lambda: len(said(logs)) == 2)
        driver.change(2, fails="UNKNOWN")  # another fault of the same GPU is nothing new
        driver.remove(7)
        await until(lambda: len(said(logs)) == 3)
    assert "fallen off the bus" in said(logs)[0]
    assert "leaves it out" in said(logs)[0]
    assert "GPU 4" in said(logs)[1]
    assert said(logs)[2] in {f"GPU {number} (NVIDIA H100 80GB HBM3) is no longer there." for number in (2, 7)}


async def test_what_the_driver_reports_is_explained(driver: NvmlState) -> None:
    driver.change(xids=[[3, 79], [5, 13]])
    async with watching() as (_, logs):
        await until(lambda: len(said(logs)) >= 2)
    assert said(logs)[0] == "GPU 3 reported Xid 79: it has fallen off the bus."
    assert "Xid 13: see NVIDIA's list" in said(logs)[1]


async def test_gpus_that_report_nothing_are_watched_all_the_same(driver: NvmlState) -> None:
    driver.change(common={"name": "T", "total_mib": 1024, "capability": [8, 6]})
    async with watching() as (watch, _):
        await until(lambda: watch.reading)


async def test_a_driver_that_hangs_is_given_up_and_tried_again(driver: NvmlState) -> None:
    driver.change(hangs=True)
    async with watching(patience=0.5, pause=0.1) as (watch, logs):
        await until(lambda: said(logs))
        assert said(logs) == ["The GPUs are not watched for a while: the NVIDIA driver does not answer."]
        assert watch.reading is None


async def test_a_driver_that_comes_back_is_watched_again(driver: NvmlState) -> None:
    driver.change(hangs=True)
    async with watching(patience=5.0, pause=0.1) as (watch, logs):
        await until(lambda: said(logs))
        driver.change(hangs=False)
        await until(lambda: watch.reading)


@pytest.mark.parametrize(
    ("text", "words"), [("print('nonsense', flush=True); import time; time.sleep(60)", "nonsense"), ("", "ended")]
)
async def test_a_watch_that_fails_is_no_failure(text: str, words: str) -> None:
    async with watching(command=(sys.executable, "-c", text)) as (watch, logs):
        await until(lambda: said(logs))
        assert words in said(logs)[0]
        assert watch.reading is None


async def test_a_program_that_is_not_there_is_no_failure() -> None:
    async with watching(command=("/no/such/program",)) as (_, logs):
        await until(lambda: said(logs))
        assert "could not be started" in said(logs)[0]


async def test_closing_does_not_wait_for_a_driver_that_hangs(driver: NvmlState) -> None:
    driver.change(hangs=True)
    async with watching():
        await asyncio.sleep(0.3)


async def test_without_a_driver_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.hardware.gpu_watch.driver_installed", lambda: False)
    watch = GpuWatch()
    await watch.start()
    assert [child for child in psutil.Process().children() if "watch_driver" in str(child.cmdline())] == []
    await watch.close()


def test_the_program_ends_when_its_server_has_gone(driver: NvmlState) -> None:
    process = subprocess.Popen((*COMMAND, "0.05"), stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
