"""One engine's settings as those of several."""

from __future__ import annotations

from typing import Any

import pytest

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from backend.planner.replicas import replica_count, replicas
from tests.fakes.machines import cpu_machine, dgx_h100

FILES = ModelFiles(name="m", format="gguf", weights=("/w",), folder="/w", bytes=1)


def settings(**options: Any) -> EngineSettings:
    return EngineSettings(files=FILES, **options)


def test_one_is_what_was_asked() -> None:
    wanted = settings(kv_pool=100)
    assert replicas(wanted, dgx_h100(2), 1) == (wanted,)


def test_each_has_gpus_of_its_own() -> None:
    machine = dgx_h100(4)
    both = replicas(settings(kv_pool=1000), machine, 2)
    used = [uuid for one in both for uuid in one.gpus]
    assert sorted(used) == sorted(gpu.uuid for gpu in machine.gpus)
    assert [one.tensor_parallel for one in both] == [2, 2]
    assert [one.kv_pool for one in both] == [500, 500]


def test_more_than_there_are_gpus_is_refused_with_the_numbers() -> None:
    with pytest.raises(SettingError, match="--replicas 3 needs 6 GPUs here"):
        replicas(settings(tensor_parallel=2), dgx_h100(4), 3)
    with pytest.raises(SettingError, match="--replicas 3 needs 3 GPUs here"):
        replicas(settings(), dgx_h100(2), 3)


def test_a_processors_threads_are_divided() -> None:
    found = replicas(settings(device="cpu", threads=5), cpu_machine(), 2)
    assert [one.threads for one in found] == [3, 2]
    with pytest.raises(SettingError, match="needs 6 processor threads"):
        replicas(settings(device="cpu", threads=5), cpu_machine(), 6)


def test_auto_is_one_for_each_group_of_gpus() -> None:
    assert replica_count(settings(tensor_parallel=2), dgx_h100(4), None) == 2
    assert replica_count(settings(), dgx_h100(4), None) == 1
    assert replica_count(settings(), cpu_machine(), None) == 1
    assert replica_count(settings(), cpu_machine(), 3) == 3
