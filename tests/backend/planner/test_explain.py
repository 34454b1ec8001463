from __future__ import annotations

import pytest

from backend.engine_settings import EngineSettings
from backend.planner.explain import explain
from backend.planner.plan import HostedLayers, MemoryTerm, Rank
from backend.planner.staged.placing import place_stages
from backend.planner.staged.site import Site
from backend.planner.units import human_bytes
from tests.fakes.fit_models import FILES
from tests.fakes.machines import cpu_machine
from tests.fakes.models import STARTER
from tests.fakes.plans import plan


def test_an_explained_plan_has_its_numbers_and_reasons() -> None:
    explained = plan(
        model="starter",
        kv_format="k=int8,v=fp8",
        ranks=(Rank(0, "cpu", (MemoryTerm("weights", 256 << 20), MemoryTerm("kv", 3 << 30))),),
        max_context=8192,
        page_bytes=368640,
        token_bytes=23_040,
        host_pages=2000,
        hosted=HostedLayers((0, 1, 3), 4, 6 << 30, 1 << 30, 5 << 30, 25.2, 1.7304),
        disk_bytes=5 << 30,
        cache_dir="/var/cache/pages",
        reasons=("Because of this.", "And of that."),
    )
    text = explain(explained)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "model starter (LlamaForCausalLM)",
        "context 8,192 tokens",
        "pages 100 of 16 tokens and 360 KiB, 35.2 MiB in all",
        "formats weights model, kv k=int8,v=fp8",
        "token 23,040 bytes of kv over all layers, scales included",
        "streamed 3 of 4 layers from host memory, 6 GiB; a step takes at least 1,730 ms at 25.2 GB/s (assumed)",
        "host cache 2,000 pages, 703 MiB",
        "disk cache 5 GiB in /var/cache/pages",
        "memory of rank 0 on cpu",
        "weights 256 MiB",
        "kv 3 GiB",
        "total 3.25 GiB",
        "- Because of this.",
        "- And of that.",
    ):
        assert expected in lines


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 << 29, "1.5 GiB"),
        (500 << 20, "500 MiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_each_of_several_ranks_is_shown_with_its_device_its_part_and_its_memory() -> None:
    ranks = (
        Rank(0, "cuda:0", (MemoryTerm("weights", 3 << 30), MemoryTerm("communication", 1 << 30)), 1.5, 1.2, 3 << 10),
        Rank(1, "cuda:2", (MemoryTerm("weights", 2 << 30),), 0.5, 0.8, 1 << 10),
    )
    lines = [" ".join(line.split()) for line in explain(plan(ranks=ranks, tensor_parallel=2)).splitlines()]
    for expected in (
        "devices cuda:0, cuda:2",
        "parallel tensor 2, stages 1, experts tensor",
        "memory of rank 0 on cuda:0, with 75.0% of attention, 60.0% of the rest, 3 KiB of a page",
        "communication 1 GiB",
        "total 4 GiB",
        "memory of rank 1 on cuda:2, with 25.0% of attention, 40.0% of the rest, 1 KiB of a page",
    ):
        assert expected in lines


def test_stages_are_told_with_their_machines_and_layers() -> None:
    sites = (Site("", "head", cpu_machine()), Site("a", "alpha", cpu_machine()))
    text = explain(place_stages(EngineSettings(files=FILES, stage_layers=(20, 10)), STARTER, sites))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "devices head: cpu; alpha: cpu" in lines
    assert any("1 layers 1 to 20 on head cpu, 2 threads" in line for line in lines)
    assert any("2 layers 21 to 30 on alpha cpu, 2 threads" in line for line in lines)
    assert "memory of rank 1 on cpu of alpha, stage 2" in lines
