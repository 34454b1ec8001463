"""One engine's devices as two engines': like parts, nothing twice, and refusals in words."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from backend.planner.halves import LEAST_BYTES, halves
from tests.fakes.machines import GIB, cpu_machine, dgx_h100, gpu_machine, pcie_3090

FILES = ModelFiles(name="m", format="safetensors", weights=(), folder="/m", bytes=1)
SETTINGS = EngineSettings(files=FILES)


def test_gpus_are_halved_and_used_once() -> None:
    machine = dgx_h100()
    both = halves(SETTINGS, machine, "/pages", 1 << 40)
    assert (both.prefill.role, both.decode.role) == ("prefill", "decode")
    assert len(both.prefill.gpus) == len(both.decode.gpus) == 4
    assert {*both.prefill.gpus, *both.decode.gpus} == {gpu.uuid for gpu in machine.gpus}
    assert both.prefill.tensor_parallel == both.decode.tensor_parallel == 4
    assert both.prefill.cache_dir == both.decode.cache_dir == "/pages"
    assert both.prefill.disk_cache == both.decode.disk_cache > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_asked_count_of_gpus_is_each_engines(ranks: int) -> None:
    both = halves(replace(SETTINGS, tensor_parallel=ranks), dgx_h100(), "/pages", 1 << 40)
    assert len(both.prefill.gpus) == len(both.decode.gpus) == ranks
    assert not {*both.prefill.gpus} & {*both.decode.gpus}


def test_an_odd_gpu_is_left_out_so_that_pages_mean_the_same() -> None:
    both = halves(SETTINGS, gpu_machine(*pcie_3090(3).gpus), "/pages", 1 << 40)
    assert len(both.prefill.gpus) == len(both.decode.gpus) == 1


def test_a_processor_divides_its_threads() -> None:
    both = halves(replace(SETTINGS, threads=5), cpu_machine(available=64 * GIB, cores=16), "/pages", 1 << 40)
    assert (both.prefill.threads, both.decode.threads) == (2, 3)
    one = halves(replace(SETTINGS, threads=1), cpu_machine(available=64 * GIB, cores=16), "/pages", 1 << 40)
    assert (one.prefill.threads, one.decode.threads) == (1, 1)


def test_the_way_between_takes_no_more_than_its_folder_has() -> None:
    both = halves(SETTINGS, dgx_h100(), "/pages", LEAST_BYTES // 2)
    assert both.prefill.disk_cache == LEAST_BYTES // 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (replace(SETTINGS, disk_cache=1 << 30), "--disk-cache"),
        (replace(SETTINGS, pipeline_stages=2), "--pp"),
        (replace(SETTINGS, tensor_parallel=5), "10 GPUs"),
    ],
)
def test_what_two_engines_cannot_do_is_refused(settings: EngineSettings, words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        halves(settings, dgx_h100(), "/pages", 1 << 40)
    assert refused.value.hint
