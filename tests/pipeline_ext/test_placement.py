"""Which machines get which layers: by memory, speed and ways; what is asked by hand; what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner.decide import decide
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.stage_plan import ranks_of, stage_plan
from pipeline_ext.peer import Peer, PeerLink
from pipeline_ext.placement import Placeable, place, placeable
from tests.fakes.fit_models import FILES, known
from tests.fakes.machines import GIB, consumer, cpu_machine, dgx_h100, gpu_machine, pcie_3090, unequal
from tests.fakes.models import STARTER

LAN = PeerLink(200e-6, 1.1e9)
SLOW = PeerLink(50e-3, 2e6)
EIGHT, GEMMA = known("8b").facts, known("gemma").facts
HEAD = Placeable("", "head", cpu_machine())


def peer(name: str, machine: Machine | None = None, link: PeerLink | None = LAN) -> Placeable:
    return Placeable(name[0], name, machine or cpu_machine(), link)


def asked(**options: Any) -> EngineSettings:
    return EngineSettings(files=FILES, **options)


def placed(facts: ModelFacts, *machines: Placeable, **options: Any) -> Plan:
    return place(asked(**options), facts, machines)


def spans(plan: Plan) -> list[tuple[str, int, int]]:
    return [(stage.name, stage.span.first, stage.span.stop) for stage in plan.stages]


def check(plan: Plan, facts: ModelFacts, machines: dict[str, Machine]) -> None:
    """Every layer once, in order; ranks numbered through; nobody's memory is exceeded; sums add up."""
    edges = [0, *(stage.span.stop for stage in plan.stages)]
    assert [stage.span.first for stage in plan.stages] == edges[:-1]
    assert edges[-1] == len(facts.layers) == plan.stages[0].span.of
    slots = [(stage.span.first_slot, stage.span.stop_slot) for stage in plan.stages]
    assert [first for first, _ in slots] == [0, *(stop for _, stop in slots[:-1])]
    assert slots[-1][1] == len(facts.layers)
    assert [rank.rank for rank in plan.ranks] == list(range(len(plan.ranks)))
    assert sum(stage.ranks for stage in plan.stages) == len(plan.ranks)
    assert plan.page_bytes == sum(rank.page_bytes for rank in plan.ranks)
    held: dict[tuple[str, str], int] = {}
    for number, stage in enumerate(plan.stages):
        own = stage_plan(plan, number)
        assert [rank.rank for rank in own.ranks] == list(range(stage.ranks))
        for rank in ranks_of(plan, number):
            terms = {term.name: term.bytes for term in rank.memory}
            assert terms["kv"] == plan.pages * rank.page_bytes
            device = (stage.name, rank.device)
            assert device not in held or rank.device == "cpu"
            held[device] = held.get(device, 0) + sum(terms.values())
    for (name, device), count in held.items():
        machine = machines[name]
        cpu = device == "cpu"
        free = machine.memory.available if cpu else machine.gpus[int(device.removeprefix("cuda:"))].free
        assert count <= 0.9 * free


def test_a_model_that_fits_the_head_stays_there_as_decide_has_it() -> None:
    assert placed(STARTER, HEAD, peer("alpha")) == decide(asked(), STARTER, HEAD.machine)
    assert placed(STARTER, HEAD, peer("alpha"), pipeline_stages=1) == decide(asked(), STARTER, HEAD.machine)
    gpus = Placeable("", "head", dgx_h100())
    assert placed(EIGHT, gpus, peer("alpha", dgx_h100())) == decide(asked(), EIGHT, gpus.machine)


def test_as_few_machines_as_hold_the_model() -> None:
    head = Placeable("", "head", cpu_machine(12 * GIB))
    plan = placed(EIGHT, head, peer("alpha"), peer("beta"))
    assert plan.pipeline_stages == len(plan.stages) == 2
    assert plan.stages[0].peer == ""
    assert plan.max_context >= 8192
    assert any("do not fit head alone" in reason for reason in plan.reasons)
    assert any(reason.startswith("beta has no stage") for reason in plan.reasons)
    check(plan, EIGHT, {"head": head.machine, "alpha": cpu_machine()})


def test_three_where_two_do_not_hold_it() -> None:
    machines = [Placeable("", "head", cpu_machine(8 * GIB)), *(peer(name, cpu_machine(8 * GIB)) for name in "abc")]
    plan = placed(EIGHT, *machines)
    assert len(plan.stages) == 3
    check(plan, EIGHT, {one.name: one.machine for one in machines})


def test_equal_machines_get_equal_work() -> None:
    plan = placed(EIGHT, HEAD, peer("alpha"), pipeline_stages=2)
    (_, _, edge), _ = spans(plan)
    # The output layer is worth more than two layers' reading.
    assert edge in (17, 18)


def test_a_machine_with_more_memory_gets_more_layers() -> None:
    head, large = Placeable("", "head", cpu_machine(8 * GIB)), peer("large", cpu_machine(40 * GIB))
    plan = placed(EIGHT, head, large)
    counts = {name: stop - first for name, first, stop in spans(plan)}
    assert counts["head"] < counts["large"]
    check(plan, EIGHT, {"head": head.machine, "large": large.machine})


def test_a_faster_machine_gets_more_layers() -> None:
    plan = placed(EIGHT, HEAD, peer("fast", cpu_machine(cores=8)), pipeline_stages=2)
    (_, _, edge), (_, first, stop) = spans(plan)
    assert edge < (stop - first) / 2


def test_a_slow_way_is_not_taken_where_another_leads_there() -> None:
    head = Placeable("", "head", cpu_machine(12 * GIB))
    near, far = peer("near", link=LAN), peer("far", link=SLOW)
    for machines in ((head, near, far), (head, far, near)):
        assert {stage.name for stage in placed(EIGHT, *machines).stages} == {"head", "near"}
    swapped = (head, changed(near, link=SLOW), changed(far, link=LAN))
    assert {stage.name for stage in placed(EIGHT, *swapped).stages} == {"head", "far"}


def test_a_slow_way_to_a_fast_machine_is_weighed_against_a_fast_way_to_a_slow_one() -> None:
    head = Placeable("", "head", cpu_machine(12 * GIB))
    strong = peer("strong", cpu_machine(40 * GIB, cores=16), SLOW)
    plan = placed(EIGHT, head, peer("weak", cpu_machine(cores=1)), strong)
    assert {stage.name for stage in plan.stages} == {"head", "strong"}
    lost = changed(strong, link=PeerLink(5.0, 2e6))
    plan = placed(EIGHT, head, peer("weak", cpu_machine(cores=1)), lost)
    assert {stage.name for stage in plan.stages} == {"head", "weak"}


def test_several_stages_share_one_processor() -> None:
    plan = placed(STARTER, HEAD, pipeline_stages=2)
    assert [(stage.peer, stage.threads) for stage in plan.stages] == [("", 1), ("", 1)]
    check(plan, STARTER, {"head": HEAD.machine})
    assert [stage.threads for stage in placed(STARTER, HEAD, pipeline_stages=2, threads=2).stages] == [1, 1]
    three = placed(STARTER, HEAD, peer("alpha"), pipeline_stages=3)
    assert sorted(stage.name for stage in three.stages) in (["alpha", "head", "head"], ["alpha", "alpha", "head"])


def test_groups_of_gpus_take_stages_on_one_machine() -> None:
    head = Placeable("", "head", pcie_3090(4))
    plan = placed(EIGHT, head, pipeline_stages=2, tensor_parallel=2)
    assert [stage.ranks for stage in plan.stages] == [2, 2]
    assert len({rank.device for rank in plan.ranks}) == 4
    assert plan.tensor_parallel == 2
    check(plan, EIGHT, {"head": head.machine})


def test_unequal_peers_divide_layers_over_their_own_gpus() -> None:
    head, other = Placeable("", "head", gpu_machine(*consumer(1))), peer("other", unequal())
    plan = placed(GEMMA, head, other)
    stages = {stage.name: stage for stage in plan.stages}
    assert (stages["head"].ranks, stages["other"].ranks) == (1, 2)
    assert stages["head"].span.stop - stages["head"].span.first < 62 / 2
    assert stages["other"].visible_gpus == tuple(gpu.uuid for gpu in other.machine.gpus)
    check(plan, GEMMA, {"head": head.machine, "other": other.machine})


def test_a_head_too_small_for_the_ends_may_be_in_the_middle() -> None:
    """Gemma's embedding takes 2.6 GiB, on the first stage and, tied, on the last: a head of 3 GiB is neither."""
    head = Placeable("", "head", cpu_machine(3 * GIB))
    big = [peer(name, cpu_machine(36 * GIB)) for name in ("alpha", "beta")]
    plan = placed(GEMMA, head, *big, pipeline_stages=3)
    assert [stage.name for stage in plan.stages].index("head") == 1
    check(plan, GEMMA, {one.name: one.machine for one in (head, *big)})


def test_layers_by_hand_go_to_machines_in_their_order() -> None:
    plan = placed(STARTER, HEAD, peer("alpha"), stage_layers=(20, 10))
    assert spans(plan) == [("head", 0, 20), ("alpha", 20, 30)]
    three = placed(STARTER, HEAD, peer("alpha"), stage_layers=(5, 5, 20))
    assert spans(three) == [("head", 0, 5), ("head", 5, 10), ("alpha", 10, 30)]
    assert placed(STARTER, HEAD, stage_layers=(30,)) == decide(asked(), STARTER, HEAD.machine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stage_layers": (20, 12)}, "20 + 12 = 32"),
        ({"stage_layers": (30, 0)}, "leaves a stage empty"),
        ({"stage_layers": (20, 10), "pipeline_stages": 3}, "--layers names 2 stages"),
        ({"pipeline_stages": 31}, "It has 30"),
        ({"pipeline_stages": 2, "host_weights": GIB}, "--host-weights does not go with several stages"),
        ({"pipeline_stages": 2, "disk_cache": GIB, "cache_dir": "/x"}, "--disk-cache does not go with several stages"),
        ({"pipeline_stages": 2, "device": "cuda"}, "--device cuda needs an NVIDIA GPU"),
        ({"pipeline_stages": 2, "tensor_parallel": 16}, "--tp 16 is more than the model has query heads"),
        ({"pipeline_stages": 2, "kv_pool": 200 * GIB}, "does not fit 2 stages"),
        ({"pipeline_stages": 2, "kv_pool": 1 << 20}, "does not hold one context"),
        ({"pipeline_stages": 2, "threads": 5}, "--threads 5"),
        ({"pipeline_stages": 2, "host_cache": 5}, "--host-cache 5 is too small"),
        ({"pipeline_stages": 2, "host_cache": 100 * GIB}, "host cache does not fit"),
        ({"pipeline_stages": 2, "experts": "expert"}, "needs a model with experts"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingError, OutOfMemoryError)) as caught:
        placed(STARTER, HEAD, peer("alpha"), **options)
    error = caught.value
    assert words in f"{error.what} {error.why}"
    assert error.hint or "empty" in error.what


def test_too_few_gpus_are_counted() -> None:
    machines = Placeable("", "head", gpu_machine(*consumer(1))), peer("other", pcie_3090(2))
    with pytest.raises(SettingError) as caught:
        placed(EIGHT, *machines, pipeline_stages=5)
    assert "head has one GPU, other has 2 GPUs" in caught.value.why
    assert "--pp 3" in caught.value.hint


def test_what_is_short_of_memory_is_named_with_its_bytes() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        placed(EIGHT, HEAD, peer("alpha", cpu_machine(2 * GIB)), stage_layers=(16, 16))
    assert "CPU Test CPU of alpha (layers 17 to 32)" in caught.value.what
    assert "1.8 GiB can be used there" in caught.value.why
    with pytest.raises(OutOfMemoryError, match="Nor do stages over head, alpha"):
        placed(known("70b").facts, HEAD, peer("alpha"))


def test_int8_weights_where_others_do_not_fit_over_all_machines() -> None:
    small = [Placeable("", "head", cpu_machine(7 * GIB)), peer("alpha", cpu_machine(7 * GIB))]
    assert placed(EIGHT, *small, weights="auto", max_context=4096).weight_format == "int8"
    with pytest.raises(OutOfMemoryError):
        placed(EIGHT, *small, max_context=4096)


def test_kv_formats_that_were_not_measured_stay_the_models_own() -> None:
    plan = placed(STARTER, HEAD, peer("alpha"), pipeline_stages=2, kv_format="auto")
    assert plan.kv_format == "model"
    assert any("can only be measured" in reason for reason in plan.reasons)
    assert placed(STARTER, HEAD, peer("alpha"), pipeline_stages=2, kv_format="int8").kv_format == "int8"


def test_a_processor_that_does_not_multiply_bfloat16_decides_for_all() -> None:
    old = peer("old", cpu_machine(features=("avx2",)))
    assert placed(STARTER, HEAD, old, pipeline_stages=2).dtype == "float32"


def test_a_host_cache_takes_from_processors_what_it_holds() -> None:
    plain = placed(EIGHT, HEAD, peer("alpha"), pipeline_stages=2, kv_pool=GIB)
    cached = placed(EIGHT, HEAD, peer("alpha"), pipeline_stages=2, kv_pool=GIB, host_cache=2 * GIB)
    assert cached.host_pages == 2 * GIB // cached.page_bytes
    for rank in cached.ranks:
        terms = {term.name: term.bytes for term in rank.memory}
        assert terms["host cache"] == cached.host_pages * rank.page_bytes
    assert plain.pages == cached.pages


def test_pages_are_alike_on_all_stages_of_a_model_with_windows() -> None:
    """A stage's page is its own part of the whole model's page, whichever groups it has layers of."""
    plan = placed(GEMMA, Placeable("", "head", dgx_h100(1)), peer("alpha", dgx_h100(1)), pipeline_stages=2)
    whole = decide(asked(), GEMMA, dgx_h100(1))
    assert plan.page_tokens == whole.page_tokens
    assert sum(rank.page_bytes for rank in plan.ranks) >= whole.page_bytes
    assert plan.token_bytes == whole.token_bytes


def test_only_living_peers_are_placed_on_the_head_first() -> None:
    one = Peer("a", "alpha", "10.0.0.2", cpu_machine(), LAN, "alive", "1")
    head = Peer("", "head", "10.0.0.1", cpu_machine(), None, "alive", "1")
    others = [changed(one, id=health, health=health) for health in ("silent", "lost", "leaving")]
    assert [found.id for found in placeable([one, *others, head])] == ["", "a"]


@settings(max_examples=20, deadline=None)
@given(
    free=st.lists(st.integers(6, 40), min_size=2, max_size=4),
    cores=st.lists(st.integers(1, 16), min_size=4, max_size=4),
    stages=st.integers(2, 5),
    model=st.sampled_from(["8b", "gemma", "gpt-oss"]),
    order=st.randoms(use_true_random=False),
)
def test_every_layer_lies_on_one_stage_that_holds_it(
    free: list[int], cores: list[int], stages: int, model: str, order: Any
) -> None:
    facts = known(model).facts
    links = [PeerLink(order.choice([1e-4, 5e-3]), order.choice([1e8, 1e9])) for _ in free]
    machines = [
        Placeable(str(n) if n else "", f"m{n}", cpu_machine(size * GIB, cores[n]), links[n] if n else None)
        for n, size in enumerate(free)
    ]
    try:
        plan = placed(facts, *machines, pipeline_stages=stages)
    except OutOfMemoryError:
        return
    assert len(plan.stages) == stages
    check(plan, facts, {one.name: one.machine for one in machines})
    assert plan == placed(facts, *machines, pipeline_stages=stages)


@settings(max_examples=30, deadline=None)
@given(free=st.integers(12, 30), more=st.integers(1, 20), edge=st.integers(10, 22), which=st.integers(0, 1))
def test_more_memory_never_means_fewer_pages(free: int, more: int, edge: int, which: int) -> None:
    """Of layers by hand all pages; of others, those that a useful context needs: beyond it, speed counts."""

    def pages(sizes: list[int], **options: Any) -> int:
        machines = [Placeable("", "head", cpu_machine(sizes[0] * GIB)), peer("alpha", cpu_machine(sizes[1] * GIB))]
        try:
            return placed(EIGHT, *machines, **options).pages
        except OutOfMemoryError:
            return 0

    before, after = [free, free], [free, free]
    after[which] += more
    assert pages(before, stage_layers=(edge, 32 - edge)) <= pages(after, stage_layers=(edge, 32 - edge))
    useful = 8192 // 16 + 1
    assert min(useful, pages(before, pipeline_stages=2)) <= min(useful, pages(after, pipeline_stages=2))


def test_layers_that_nothing_tells_apart_are_cut_evenly() -> None:
    facts = replace(STARTER, layer_parameters=())
    assert len(placed(facts, HEAD, peer("alpha"), pipeline_stages=2).stages) == 2
