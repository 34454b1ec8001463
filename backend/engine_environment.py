"""The environment an engine process is spawned with: thread counts, caches and where its modules lie."""

from __future__ import annotations

import os
from collections.abc import Mapping

from backend.engine_settings import EngineSettings
from backend.hardware.cpu import read_cpu
from backend.kernel_cache import kernel_cache
from backend.library.locations import source_root

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def most_threads(settings: EngineSettings) -> int:
    """Threads that the libraries may start: as set, else one per physical core; the Plan may choose fewer."""
    return settings.threads if settings.threads is not None else read_cpu().cores


def engine_environment(settings: EngineSettings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment. See `process_environment`."""
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(settings.gpus)} if settings.gpus else {}
    return process_environment(most_threads(settings), {**inherited, **shown})


def process_environment(threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a process that computes with at most so many threads.

    Thread counts are read by the libraries when they load, so only the parent can set them.
    NUMBA_NUM_THREADS is an upper bound that numba refuses to raise later. Our own root leads PYTHONPATH,
    because the child starts with python's -P: a folder named `backend` in the user's working directory must
    not be imported.
    """
    paths = [str(source_root()), *(part for part in inherited.get("PYTHONPATH", "").split(os.pathsep) if part)]
    return {
        **inherited,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        # A thread that spins at a barrier takes the processor from the one it waits for as soon as anything else
        # runs here, our own server included: with 2 threads on 2 busy cores, a step took 25 ms waiting, 300 spinning.
        "OMP_WAIT_POLICY": inherited.get("OMP_WAIT_POLICY") or "passive",
        "NUMBA_CACHE_DIR": inherited.get("NUMBA_CACHE_DIR") or str(kernel_cache()),
        # GPUs in the order that nvidia-smi and NVML count them, so that every part means the same one by a number.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        # All that an engine reads is on disk: no library may ask the hub behind our back.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def worker_environment(settings: EngineSettings, ranks: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """A worker's whole environment: the engine's, with its part of the threads, at least one."""
    threads = str(max(1, most_threads(settings) // ranks))
    return {**engine_environment(settings, inherited), **dict.fromkeys(THREAD_VARIABLES, threads)}
