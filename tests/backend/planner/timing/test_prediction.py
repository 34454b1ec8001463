"""Predicted times beside published ones, what they depend on, and in which direction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.hardware.cluster import Network
from backend.planner.fit.report import Interval, Speed
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.timing.device_speed import DeviceSpeed, NumberKind
from backend.planner.timing.forecast import Forecast
from backend.planner.timing.prediction import answer_seconds, predict
from backend.planner.timing.work import Work
from tests.fakes.models import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, STARTER, dense
from tests.fakes.works import A100, H100, L40S, NVLINK, PCIE_4, RTX_3090, STAGED, work_of

LLAMA2_7B = dense(32, 4096, 32, 32, 11008, 32_000)
MODELS = (STARTER, LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B)
DEVICES = (H100, A100, L40S, RTX_3090)
ENGINES = ("shardwise", "vllm", "TensorRT-LLM", "llama.cpp")


def alone(work: Work, engine: str = "vllm", positions: int = 256) -> float:
    """Tokens a second of one answer."""
    return 1 / Forecast(work, engine).token(1, positions)


@pytest.mark.parametrize(
    ("facts", "devices", "number", "engine", "published"),
    # SGLang on H100; gpt-fast on A100: 7B in bfloat16 on one and four, 70B in int8 on eight.
    [
        (LLAMA_8B, (H100,), "bf16", "SGLang", 158.0),
        (LLAMA2_7B, (A100,), "bf16", "gpt-fast", 104.9),
        (LLAMA2_7B, (A100,) * 4, "bf16", "gpt-fast", 254.0),
        (LLAMA_70B, (A100,) * 8, "int8", "gpt-fast", 80.4),
    ],
)
def test_one_answers_speed_is_near_the_published(
    facts: ModelFacts, devices: tuple[DeviceSpeed, ...], number: NumberKind, engine: str, published: float
) -> None:
    link = Link("nvlink", 300.0, True, "NVLink") if len(devices) > 1 else None
    assert alone(work_of(facts, devices, link, number), engine) == pytest.approx(published, rel=0.2)


def test_a_mixture_reads_its_active_experts() -> None:
    dense_too = LLAMA_8B.parameters / QWEN3_30B_A3B.parameters  # if all of it were read
    ratio = alone(work_of(QWEN3_30B_A3B, (H100,))) / alone(work_of(LLAMA_8B, (H100,)))
    assert 1 < ratio < 4
    assert ratio > 4 * dense_too


def test_many_sequences_pass_most_experts() -> None:
    work = work_of(QWEN3_30B_A3B, (H100,))
    few, many = Forecast(work, "vllm").token(1, 0), Forecast(work, "vllm").token(64, 0)
    assert many > 3 * few


def test_ranks_wait_for_the_one_with_most_heads() -> None:
    eight, seven = (alone(work_of(LLAMA_70B, (H100,) * ranks, NVLINK)) for ranks in (8, 7))
    assert eight > 1.1 * seven


def test_a_slow_card_is_waited_for() -> None:
    quick = work_of(LLAMA_70B, (H100,) * 4, NVLINK)
    mixed = work_of(LLAMA_70B, (H100, H100, H100, A100), NVLINK)
    assert Forecast(mixed).token(1, 256) > 1.3 * Forecast(quick).token(1, 256)


def test_a_slow_link_costs_prompts_too() -> None:
    direct, staged = (work_of(LLAMA_8B, (RTX_3090,) * 3, link) for link in (PCIE_4, STAGED))
    assert answer_seconds(direct) < answer_seconds(staged)
    assert Forecast(direct).first_token(1024) < Forecast(staged).first_token(1024)


def test_a_prompts_communication_is_small_over_nvlink_and_most_of_it_over_pcie() -> None:
    """An 8,192-token prefill of 70B on four: H100 92 ms beside 0.42 s of computing, L40S 6.2 s beside 1.1 s."""
    for device, link, computing, adding in ((H100, NVLINK, 0.42, 0.092), (L40S, PCIE_4, 1.1, 6.2)):
        lone = work_of(LLAMA_70B, (device,) * 4)
        joined = work_of(LLAMA_70B, (device,) * 4, link)
        computed = Forecast(lone, "vllm").first_token(8192)
        assert computed == pytest.approx(computing, rel=0.35)
        assert Forecast(joined, "vllm").first_token(8192) - computed == pytest.approx(adding, rel=0.15)


def staged(work: Work, stages: int, between: Link | Network | None) -> Work:
    """As many stages, each with all of the work's layers."""
    return replace(work, stages=work.stages * stages, between=between)


def test_one_user_waits_for_all_stages_and_many_keep_them_busy() -> None:
    one = work_of(LLAMA_8B, (RTX_3090,))
    two = staged(one, 2, PCIE_4)
    assert Forecast(two).token(1, 256) > 1.9 * Forecast(one).token(1, 256)
    assert Forecast(two).token(64, 256) < 1.3 * 2 * Forecast(one).token(32, 256)
    assert Forecast(two).throughput(64, 512, 128) > 0.8 * Forecast(one).throughput(32, 512, 128)


def test_a_long_prompt_fills_stages_one_after_another() -> None:
    """Of m + p - 1 turns, p - 1 are bubbles."""
    one = work_of(LLAMA_8B, (RTX_3090,))
    two = staged(one, 2, PCIE_4)
    short, long = (Forecast(two).first_token(count) / Forecast(one).first_token(count) for count in (4096, 32_768))
    assert short == pytest.approx(2.0, rel=0.05)
    assert long == pytest.approx(9 / 8, rel=0.05)


def test_a_network_costs_what_it_takes_to_hand_on() -> None:
    slow = Network("tcp-100g", "100 GbE", 12.5, 5.0, 40e-6)
    quick = Network("ib-ndr400", "InfiniBand", 50.0, 44.0, 10e-6)
    one = work_of(LLAMA_8B, (H100,))
    times = [Forecast(staged(one, 2, way)).first_token(2048) for way in (quick, slow)]
    sent = 2048 * 4096 * 2
    assert times[1] - times[0] == pytest.approx(30e-6 + sent / 5e9 - sent / 44e9, rel=0.01)


def test_layers_in_host_memory_are_waited_for() -> None:
    work = work_of(LLAMA_8B, (RTX_3090,))
    rank = replace(work.stages[0].ranks[0], hosted_bytes=4 << 30, host_rate=25.0)
    streaming = replace(work, stages=(replace(work.stages[0], ranks=(rank,)),))
    assert Forecast(streaming).token(1, 256) >= (4 << 30) / 25e9
    assert predict(streaming).bound == "link"
    assert Forecast(streaming).token(1, 256) > Forecast(work).token(1, 256)


def test_what_a_step_waits_for_is_named() -> None:
    assert predict(work_of(LLAMA_70B, (H100,) * 4, NVLINK)).bound == "memory"
    assert predict(work_of(LLAMA_8B, (L40S,) * 8, STAGED), users=16, most_sequences=16).bound == "link"
    assert predict(work_of(STARTER, (H100,))).bound == "launch"
    busy = predict(work_of(LLAMA_8B, (L40S,), number="int8"), prompt=16, answer=16, users=2048, most_sequences=2048,
                   engine="TensorRT-LLM")  # fmt: skip
    assert busy.bound == "compute"


def test_replicas_multiply_throughput_and_nothing_else() -> None:
    one = predict(work_of(LLAMA_8B, (H100,)), users=8, most_sequences=64, engine="vllm")
    four = predict(work_of(LLAMA_8B, (H100,), replicas=4), users=32, most_sequences=256, engine="vllm")
    assert four.throughput.likely == pytest.approx(4 * one.throughput.likely)
    assert (four.sequences, one.sequences) == (256, 64)
    assert (four.token, four.alone, four.first_token) == (one.token, one.alone, one.first_token)


def test_an_engine_takes_no_more_sequences_than_it_does() -> None:
    work = work_of(STARTER, (H100,))
    assert predict(work, most_sequences=100_000).sequences == 256
    assert predict(work, most_sequences=100_000, engine="trtllm").sequences == 2048
    assert predict(work, most_sequences=100_000, engine="nobody's").sequences == 256


def test_a_request_is_cut_to_its_context() -> None:
    work = work_of(LLAMA_8B, (H100,))
    assert predict(work, prompt=4096, answer=1024, context=2048) == predict(work, prompt=1024, answer=1024)
    assert predict(work, prompt=4096, answer=1024, context=2).alone.likely > 0


def test_graphs_and_kernels_of_their_own_make_engines_differ() -> None:
    work = work_of(LLAMA_8B, (H100,) * 8, NVLINK)
    assert alone(work, "vllm") > 1.3 * alone(work, "shardwise")


def ordered(interval: Interval) -> bool:
    return 0 < interval.low <= interval.likely <= interval.high


def all_ordered(found: Speed) -> bool:
    return all(map(ordered, (found.first_token, found.token, found.alone, found.throughput)))


works = st.builds(
    work_of,
    st.sampled_from(MODELS),
    st.sampled_from(DEVICES).flatmap(lambda device: st.sampled_from([1, 2, 3, 4]).map(lambda count: (device,) * count)),
    st.sampled_from([NVLINK, PCIE_4, STAGED]),
    st.sampled_from(["bf16", "fp8", "int8", "fp4"]),
)


@given(works, st.sampled_from(ENGINES), st.integers(1, 512), st.integers(1, 512), st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_ranges_are_ordered_and_more_users_never_make_less_of_it(
    work: Work, engine: str, few: int, more: int, prompt: int
) -> None:
    few, more = sorted((few, more))
    less, found = (predict(work, prompt=prompt, users=n, most_sequences=n, engine=engine) for n in (few, more))
    assert all_ordered(less)
    assert all_ordered(found)
    assert found.throughput.likely >= less.throughput.likely * (1 - 1e-9)
    assert found.token.likely >= less.token.likely * (1 - 1e-9)


@given(works, st.sampled_from(ENGINES), st.integers(1, 64), st.floats(1.0, 3.0), st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_a_better_device_or_link_is_never_slower(
    work: Work, engine: str, users: int, factor: float, prompt: int
) -> None:
    def changed(memory: float, products: float, better: Link | None) -> Work:
        stage = work.stages[0]
        ranks = tuple(
            replace(rank, device=replace(rank.device, memory=rank.device.memory * memory,
                                         bf16=rank.device.bf16 * products))
            for rank in stage.ranks
        )  # fmt: skip
        return replace(work, stages=(replace(stage, ranks=ranks, link=better or stage.link),))

    link = work.stages[0].link
    assert isinstance(link, Link)
    before = predict(work, prompt=prompt, users=users, most_sequences=users, engine=engine)
    wider = replace(link, bandwidth=link.bandwidth * factor)
    for better in (changed(factor, 1.0, None), changed(1.0, factor, None), changed(1.0, 1.0, wider),
                   changed(1.0, 1.0, NVLINK)):  # fmt: skip
        after = predict(better, prompt=prompt, users=users, most_sequences=users, engine=engine)
        assert after.token.likely <= before.token.likely * (1 + 1e-9)
        assert after.first_token.likely <= before.first_token.likely * (1 + 1e-9)
        assert after.throughput.likely >= before.throughput.likely * (1 - 1e-9)
