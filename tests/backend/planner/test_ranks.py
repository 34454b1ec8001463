"""Which GPUs a model gets, in which parts, and what each holds: plans for machines that are not here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backend.errors import OutOfMemoryError, SettingError, ShardwiseError
from backend.hardware.gpu import GpuFault
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from backend.parallel.division import divide_heads
from backend.planner import memory
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from tests.backend.planner.test_decide import plan_of
from tests.fakes.machines import (
    GIB,
    bridged_3090,
    consumer,
    cpu_machine,
    dgx_h100,
    gpu,
    gpu_machine,
    paired_a100,
    pcie_3090,
    unequal,
)
from tests.fakes.models import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, STARTER, dense

# Worth two GPUs over NVLink where they are slow, and not four over PCIe.
SMALL = dense(28, 1024, 16, 8, 3072, 151_936, tied=True)
ONE = gpu_machine(*consumer(1))
MACHINES = {
    "dgx": dgx_h100(),
    "seven": dgx_h100(7),
    "pairs": paired_a100(),
    "bridge": bridged_3090(),
    "three": pcie_3090(),
    "unequal": unequal(),
    "one": ONE,
    "none": cpu_machine(200 * GIB, cores=16),
}
MODELS = {"starter": STARTER, "8b": LLAMA_8B, "70b": LLAMA_70B, "30b-a3b": QWEN3_30B_A3B}


def term(plan: Plan, rank: int, name: str) -> int:
    return {one.name: one.bytes for one in plan.ranks[rank].memory}[name]


def total(plan: Plan, rank: int) -> int:
    return sum(one.bytes for one in plan.ranks[rank].memory)


@pytest.mark.parametrize(
    ("machine", "model", "ranks"),
    [
        # Of 30b-a3b a token reads 3.3 of 30 billion parameters: adding up takes longer than dividing these saves.
        ("dgx", "starter", 1), ("dgx", "8b", 8), ("dgx", "70b", 8), ("dgx", "30b-a3b", 1),
        ("seven", "70b", 7), ("seven", "8b", 7),
        ("pairs", "starter", 1), ("pairs", "70b", 4),
        ("bridge", "starter", 1), ("bridge", "8b", 2),
        ("three", "starter", 1), ("three", "8b", 3), ("three", "30b-a3b", 3),
        ("unequal", "8b", 2), ("unequal", "30b-a3b", 2),
        ("one", "8b", 1), ("none", "8b", 1),
    ],
)  # fmt: skip
def test_auto_takes_as_many_gpus_as_are_worth_it(machine: str, model: str, ranks: int) -> None:
    plan = plan_of(MACHINES[machine], MODELS[model])
    assert plan.tensor_parallel == len(plan.ranks) == ranks
    assert [rank.rank for rank in plan.ranks] == list(range(ranks))
    assert plan.reasons[0].endswith(".")
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_the_reason_names_the_link_and_the_times() -> None:
    reason = plan_of(MACHINES["dgx"], LLAMA_70B).reasons[0]
    for words in ("8 of 8 GPUs", "NVLink through a switch (450 GB/s each way)", "ms", "on 7"):
        assert words in reason
    assert "fewer do not hold" in plan_of(MACHINES["three"], QWEN3_30B_A3B).reasons[0]
    alone = plan_of(MACHINES["three"], STARTER).reasons[0]
    assert "on 2 over PCIe through main memory" in alone
    assert "as --tp asks" in plan_of(MACHINES["dgx"], STARTER, tensor_parallel=3).reasons[0]


def test_a_slow_link_is_not_crossed_where_a_smaller_group_is_faster() -> None:
    """A small model on two bridged pairs: two over NVLink would do, four over PCIe are slower."""
    slow = replace(
        paired_a100(), gpus=tuple(replace(one, bandwidth=600.0, pcie_generation=3) for one in paired_a100().gpus)
    )
    apart = replace(slow, links=tuple(replace(link, peer=link.nvlink > 0) for link in slow.links))
    plan = plan_of(apart, SMALL)
    assert [rank.device for rank in plan.ranks] == ["cuda:0", "cuda:1"]
    assert "NVLink" in plan.reasons[0]
    assert plan_of(apart, SMALL, tensor_parallel=4).tensor_parallel == 4


def test_pages_are_what_the_fullest_rank_has_room_for() -> None:
    machine = MACHINES["bridge"]
    busy = replace(machine, gpus=(machine.gpus[0], replace(machine.gpus[1], free=21 * GIB)))
    plan = plan_of(busy, LLAMA_8B)
    rooms = [
        (0.9 * free - total(plan, rank) + term(plan, rank, "kv")) / plan.ranks[rank].page_bytes
        for rank, free in enumerate((24 * GIB, 21 * GIB))
    ]
    assert plan.pages == int(min(rooms))
    assert plan.page_bytes == sum(rank.page_bytes for rank in plan.ranks)
    assert "rank 1's" in " ".join(plan.reasons)


def test_a_ranks_page_holds_its_own_kv_heads() -> None:
    plan = plan_of(MACHINES["three"], LLAMA_8B)
    shares = divide_heads(32, 8, [rank.attention for rank in plan.ranks])
    for rank, share in zip(plan.ranks, shares, strict=True):
        assert rank.page_bytes == 16 * 32 * len(share.kv_heads) * 2 * 128 * 2
        assert term(plan, rank.rank, "kv") == plan.pages * rank.page_bytes
    assert plan.token_bytes == 32 * 8 * 2 * 128 * 2


def test_unequal_cards_share_by_speed_and_by_memory_only_where_they_must() -> None:
    small, large = plan_of(unequal(), LLAMA_8B).ranks
    assert small.mlp > large.mlp  # the smaller card is the faster one
    small, large = plan_of(unequal(), QWEN3_30B_A3B).ranks
    assert large.mlp > 1.3 * small.mlp
    assert large.attention > small.attention


def test_several_ranks_have_communication_and_only_the_first_samples() -> None:
    plan = plan_of(MACHINES["dgx"], LLAMA_70B)
    assert term(plan, 0, "activations") > term(plan, 1, "activations")
    assert term(plan, 0, "communication") > 1.8 * GIB > 3 * term(plan_of(paired_a100(), LLAMA_70B), 0, "communication")
    assert "communication" not in {one.name for one in plan_of(ONE, LLAMA_8B).ranks[0].memory}


def test_weights_are_divided_by_what_each_rank_holds() -> None:
    plan = plan_of(MACHINES["dgx"], LLAMA_70B)
    held = [term(plan, rank, "weights") for rank in range(8)]
    replicated = 2 * LLAMA_70B.replicated_parameters
    assert sum(held) == pytest.approx(2 * LLAMA_70B.parameters + 7 * replicated, rel=1e-6)
    assert max(held) < 1.01 * min(held)


@pytest.mark.parametrize(("ranks", "threads"), [(2, 16), (3, 16), (9, 16)])
def test_ranks_of_a_processor_share_its_memory_and_threads(ranks: int, threads: int) -> None:
    machine = cpu_machine(available=20 * GIB, cores=16)
    plan = plan_of(machine, STARTER, tensor_parallel=ranks)
    assert {rank.device for rank in plan.ranks} == {"cpu"}
    assert (plan.tensor_parallel, plan.threads, plan.visible_gpus) == (ranks, threads, ())
    assert sum(total(plan, rank) for rank in range(ranks)) <= 0.9 * 20 * GIB
    assert all(term(plan, rank, "libraries") == memory.LIBRARIES_CPU for rank in range(ranks))
    assert any(f"{16 // ranks} in each process" in reason for reason in plan.reasons)
    assert any(f"over {ranks} processes" in reason for reason in plan.reasons)


def test_ranks_of_one_memory_have_even_mlps_and_those_of_several_even_memory() -> None:
    on_cpu = plan_of(cpu_machine(20 * GIB, cores=2), STARTER, tensor_parallel=2)
    assert [rank.attention for rank in on_cpu.ranks] == pytest.approx([4 / 3, 2 / 3], rel=1e-3)  # of 3 KV heads
    assert [rank.mlp for rank in on_cpu.ranks] == [1.0, 1.0]
    on_gpus = plan_of(MACHINES["three"], STARTER, tensor_parallel=2)
    assert on_gpus.ranks[0].mlp < 1 < on_gpus.ranks[1].mlp
    weights = [term(on_gpus, rank, "weights") for rank in range(2)]
    assert max(weights) < 1.02 * min(weights)


def test_a_processor_has_one_rank_unless_asked_and_a_host_cache_in_each() -> None:
    assert plan_of(MACHINES["none"], LLAMA_8B).tensor_parallel == 1
    plan = plan_of(MACHINES["none"], LLAMA_8B, tensor_parallel=2, host_cache=GIB)
    assert sum(term(plan, rank, "host cache") for rank in range(2)) == plan.host_pages * plan.page_bytes <= GIB


def test_a_pool_that_is_asked_for_is_all_ranks_together() -> None:
    plan = plan_of(MACHINES["dgx"], LLAMA_8B, kv_pool=8 * GIB)
    assert 8 * GIB - plan.page_bytes < plan.pages * plan.page_bytes <= 8 * GIB


def test_what_cannot_be_obeyed_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="--tp 4 is more than the GPUs of this machine"):
        plan_of(MACHINES["three"], LLAMA_8B, tensor_parallel=4)
    with pytest.raises(SettingError, match="--tp 10 is more than the model has query heads"):
        plan_of(MACHINES["none"], STARTER, tensor_parallel=10)
    with pytest.raises(SettingError, match="--tp 0"):
        plan_of(MACHINES["none"], STARTER, tensor_parallel=0)
    with pytest.raises(SettingError, match="--experts expert needs a model with experts"):
        plan_of(MACHINES["dgx"], LLAMA_8B, experts="expert")
    assert plan_of(MACHINES["three"], LLAMA_8B, tensor_parallel=4, device="cpu").tensor_parallel == 4


def test_experts_are_divided_as_asked() -> None:
    machine = MACHINES["dgx"]
    assert plan_of(machine, QWEN3_30B_A3B, experts="expert", tensor_parallel=3).experts == "expert"
    assert plan_of(machine, QWEN3_30B_A3B, experts="tensor", tensor_parallel=8).experts == "tensor"
    assert plan_of(machine, QWEN3_30B_A3B, tensor_parallel=8).experts == "expert"


def test_a_model_too_large_for_all_gpus_is_refused_over_all_of_them() -> None:
    with pytest.raises(OutOfMemoryError, match="as one of 3 ranks: its weights need") as refused:
        plan_of(MACHINES["three"], LLAMA_70B)
    assert "communication" in refused.value.why
    with pytest.raises(OutOfMemoryError, match="as all of 2 ranks: its weights need"):
        plan_of(cpu_machine(8 * GIB), LLAMA_8B, tensor_parallel=2)


def test_gpus_of_another_generation_are_used_only_when_asked() -> None:
    machine = gpu_machine(*consumer(2), gpu(2, 24 * GIB, capability=(7, 5)))
    assert {rank.device for rank in plan_of(machine, LLAMA_8B).ranks} <= {"cuda:0", "cuda:1"}
    assert plan_of(machine, LLAMA_8B).dtype == "bfloat16"
    assert plan_of(machine, LLAMA_8B, tensor_parallel=3).dtype == "float16"


def test_after_a_loss_the_plan_is_made_over_the_rest() -> None:
    whole = dgx_h100()
    before = plan_of(whole, LLAMA_70B)
    fault = GpuFault(2, "", "GPU 2 has fallen off the bus; the machine has to be restarted.")
    rest = replace(whole, gpus=(*whole.gpus[:2], *whole.gpus[3:]), left_out=(fault,))
    after = plan_of(rest, LLAMA_70B)
    assert (before.tensor_parallel, after.tensor_parallel) == (8, 7)
    assert f"Left out: {fault.what}" in after.reasons
    assert whole.gpus[2].uuid in before.visible_gpus
    assert after.visible_gpus == tuple(one.uuid for one in rest.gpus)
    # Numbers count what is still to be seen; the links are the same GPUs' as before.
    assert [rank.device for rank in after.ranks] == [f"cuda:{number}" for number in range(7)]
    assert "NVLink" in after.reasons[0]
    with pytest.raises(SettingError, match="--tp 8") as refused:
        plan_of(rest, LLAMA_70B, tensor_parallel=8)
    assert "fallen off the bus" in refused.value.why


def test_the_last_gpu_lost_leaves_the_processor() -> None:
    fault = GpuFault(0, "", "GPU 0 has fallen off the bus; the machine has to be restarted.")
    plan = plan_of(replace(ONE, gpus=(), left_out=(fault,)), STARTER)
    assert plan.ranks[0].device == "cpu"
    assert f"Left out: {fault.what}" in plan.reasons
    with pytest.raises(SettingError, match="--device cuda") as refused:
        plan_of(replace(ONE, gpus=(), left_out=(fault,)), STARTER, device="cuda")
    assert "fallen off" in refused.value.why


def test_gpus_that_do_not_write_to_each_other_are_told_to_go_through_main_memory() -> None:
    machine = bridged_3090()
    first, second = (one.uuid for one in machine.gpus)
    assert plan_of(machine, LLAMA_8B).peer_writes
    broken = replace(machine, peers=(PeerPath(first, second, problem="a copy did not end within 20 s"),))
    plan = plan_of(broken, LLAMA_8B, tensor_parallel=2)
    assert not plan.peer_writes
    assert "a copy did not end within 20 s" in plan.reasons[0]


@given(
    st.sampled_from(sorted(MACHINES)),
    st.sampled_from(sorted(MODELS)),
    st.fixed_dictionaries(
        {},
        optional={
            "tensor_parallel": st.integers(1, 9),
            "experts": st.sampled_from(["auto", "tensor", "expert"]),
            "max_context": st.integers(2, 8192),
            "kv_format": st.sampled_from(["model", "fp8", "k=int8,v=fp8"]),
            "host_cache": st.sampled_from([0, GIB]),
        },
    ),
    st.lists(st.floats(0.2, 1.0), min_size=8, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_plans_keep_their_promises(machine: str, model: str, options: dict[str, Any], free: list[float]) -> None:
    whole = MACHINES[machine]
    gpus = tuple(replace(one, free=int(one.total * part)) for one, part in zip(whole.gpus, free, strict=False))
    facts = MODELS[model]
    try:
        plan = plan_of(replace(whole, gpus=gpus), facts, **options)
    except ShardwiseError:
        return  # refused, which is a promise too
    _check_promises(plan, facts, replace(whole, gpus=gpus), options)


def _check_promises(plan: Plan, facts: ModelFacts, machine: Machine, options: dict[str, Any]) -> None:
    if "tensor_parallel" in options:
        assert plan.tensor_parallel == options["tensor_parallel"]
    if facts.experts and options.get("experts", "auto") != "auto":
        assert plan.experts == options["experts"]
    assert plan.page_bytes == sum(rank.page_bytes for rank in plan.ranks)
    for rank in plan.ranks:
        assert rank.attention > 0
        assert rank.mlp > 0
        assert term(plan, rank.rank, "kv") == plan.pages * rank.page_bytes
        if rank.device != "cpu":
            assert total(plan, rank.rank) <= 0.9 * machine.gpus[int(rank.device[5:])].free
    if plan.ranks[0].device == "cpu":
        assert sum(total(plan, rank.rank) for rank in plan.ranks) <= 0.9 * machine.memory.available
    assert len({rank.device for rank in plan.ranks}) == (1 if plan.ranks[0].device == "cpu" else len(plan.ranks))
