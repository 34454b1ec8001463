from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.errors import SettingError, ShardwiseError
from backend.hardware.gpu import GpuLink
from backend.hardware.hardware_words import describe_hardware
from backend.hardware.network_table import network_table
from backend.hardware.specification import GRAMMAR, parse_hardware
from backend.planner.links import link_of
from tests.fakes.machines import bridged_3090
from tests.fakes.topology import machine_of

GIB = 1 << 30


def test_this_computer_is_handed_in_or_read() -> None:
    machine = bridged_3090()
    cluster = parse_hardware("local", machine)
    assert cluster.machines == (machine,)
    assert cluster.local
    assert cluster.name == "this computer: 2x RTX 3090, NVLink"
    assert parse_hardware("local").machines[0].cpu.cores >= 1


def test_boards_join_all_their_gpus() -> None:
    cluster = parse_hardware("4x H100-80GB")
    (machine,) = cluster.machines
    assert cluster.name == "4x H100 80GB SXM, NVLink"
    assert not cluster.local
    assert cluster.network is None
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA H100 80GB HBM3"] * 4
    assert {gpu.total for gpu in machine.gpus} == {gpu.free for gpu in machine.gpus} == {int(79.19 * GIB)}
    assert machine.gpus[0].capability == (9, 0)
    assert machine.gpus[0].bandwidth == 3350.0
    assert (machine.gpus[0].pcie_generation, machine.gpus[0].pcie_width) == (5, 16)
    assert machine.links == tuple(GpuLink(*pair, "nvswitch", 450.0, True) for pair in combinations(range(4), 2))
    assert [gpu.numa_node for gpu in machine.gpus] == [0, 0, 1, 1]
    assert machine.memory.total == 640 * GIB
    assert len({gpu.uuid for gpu in machine.gpus}) == 4


def test_consumer_cards_have_a_bridge_only_where_one_is_asked_for() -> None:
    plain, pcie, bridged = (parse_hardware(f"2x RTX-3090{more}") for more in ("", " pcie", " nvlink"))
    assert plain == pcie
    assert plain.machines[0].links == (GpuLink(0, 1, "host bridge", 0.0, peer=False),)
    assert link_of(plain.machines[0], (0, 1)).kind == "host"
    assert bridged.machines[0].links == (GpuLink(0, 1, "nvlink", 56.25, peer=True),)
    assert bridged.name == "2x RTX 3090, NVLink"


def test_a_bridge_joins_two_cards() -> None:
    for text in ("5x RTX-3090 nvlink", "5x RTX-3090, nvlink-pairs"):
        links = parse_hardware(text).machines[0].links
        assert [(link.first, link.second) for link in links if link.nvlink] == [(0, 1), (2, 3)]


def test_cards_with_bridges_over_pairs() -> None:
    for text in ("4x A100-80GB PCIe, nvlink-pairs", "4x A100-80GB nvlink-pairs", "4x A100 80GB PCIe nvlink-pairs"):
        cluster = parse_hardware(text)
        (machine,) = cluster.machines
        assert cluster.name == "4x A100 80GB PCIe, NVLink 0-1, 2-3"
        assert machine.link(0, 1) == GpuLink(0, 1, "nvlink", 300.0, True)
        assert machine.link(1, 2) == GpuLink(1, 2, "system", 0.0, True)


def test_data_center_cards_write_to_each_other_and_geforce_cards_do_not_unless_patched() -> None:
    assert all(link.peer for link in parse_hardware("4x L40S").machines[0].links)
    assert not any(link.peer for link in parse_hardware("4x RTX 4090").machines[0].links)
    assert all(link.peer for link in parse_hardware("4x RTX 4090 p2p").machines[0].links)
    assert not any(link.peer for link in parse_hardware("4x L40S, no-p2p").machines[0].links)


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("2x 4090", (4, 16)),
        ("2x 4090 pcie x8", (4, 8)),
        ("2x 4090, pcie3 x4", (3, 4)),
        ("2x 4090 x8", (4, 8)),
        ("2x 4090, pcie5", (4, 16)),
        ("2x 5090 pcie gen4", (4, 16)),
        ("2x 5060 Ti", (5, 8)),
        ("2x 3090, pcie x8, nvlink", (4, 8)),
    ],
)
def test_slots_are_never_more_than_the_card(text: str, slot: tuple[int, int]) -> None:
    (machine,) = parse_hardware(text).machines
    assert {(gpu.pcie_generation, gpu.pcie_width) for gpu in machine.gpus} == {slot}


def test_pcie_takes_the_card_where_a_name_has_both() -> None:
    assert parse_hardware("4x A100-80GB, pcie").machines[0].gpus[0].name == "NVIDIA A100 80GB PCIe"
    cut = parse_hardware("4x A100-80GB SXM, pcie").machines[0]
    assert cut.gpus[0].name == "NVIDIA A100-SXM4-80GB"
    assert not any(link.nvlink for link in cut.links)


def test_bridges_lie_over_cards_of_a_kind() -> None:
    (machine,) = parse_hardware("1x RTX-4090 + 2x RTX-3090 + 3x RTX-A6000, nvlink").machines
    assert [(link.first, link.second) for link in machine.links if link.nvlink] == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("text", "count", "lanes"),
    [
        ("2x RTX-4090", 2, 16),
        ("2x RTX-4090 x8", 2, 8),
        ("2 × 4090", 2, 16),  # noqa: RUF001
        ("2 RTX-4090", 2, 16),
        ("RTX 4090 x2", 2, 16),
        ("RTX-4090:2", 2, 16),
        ("RTX 4090 pcie x8", 1, 8),
        ("RTX 4090 pcie4 x8", 1, 8),
        ("RTX 4090", 1, 16),
    ],
)
def test_counts_stand_where_people_write_them(text: str, count: int, lanes: int) -> None:
    gpus = parse_hardware(text).machines[0].gpus
    assert len(gpus) == count
    assert {gpu.pcie_width for gpu in gpus} == {lanes}


def test_unequal_cards() -> None:
    (machine,) = parse_hardware("1x RTX-3090 + RTX-A6000").machines
    assert [(gpu.name, gpu.index) for gpu in machine.gpus] == [("NVIDIA GeForce RTX 3090", 0), ("NVIDIA RTX A6000", 1)]
    assert machine.gpus[0].total < machine.gpus[1].total
    assert not machine.links[0].peer


def test_several_machines_and_their_network() -> None:
    cluster = parse_hardware("2 nodes of 4x A100-80GB, ib-hdr")
    assert cluster.name == "2 nodes of 4x A100-SXM4-80GB, NVLink, InfiniBand HDR"
    assert [len(machine.gpus) for machine in cluster.machines] == [4, 4]
    assert len({gpu.uuid for machine in cluster.machines for gpu in machine.gpus}) == 8
    assert cluster.network is not None
    assert (cluster.network.id, cluster.network.bandwidth) == ("ib-hdr200", 25.0)
    assert "ib-hdr" not in cluster.name


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("2 nodes of 4x A100", "ib-hdr200"),
        ("2 nodes of 8x H100", "ib-ndr400"),
        ("2 nodes of DGX Spark", "roce-200g-dgx-spark"),
        ("3 machines with 2x RTX-3090", "tcp-10g"),
    ],
)
def test_a_network_that_nobody_names_is_said_to_be_assumed(text: str, network: str) -> None:
    cluster = parse_hardware(text)
    assert cluster.network is not None
    assert cluster.network.id == network
    assert cluster.name.endswith("(assumed)")


def test_every_network_is_found_by_its_id_name_and_aliases_and_tells_where_it_is_from() -> None:
    for facts in network_table():
        for name in (facts.id, facts.name.upper(), *facts.aliases):
            if "," not in name:
                assert parse_hardware(f"2 nodes of H100, {name}").network == facts.network
        network = facts.network
        assert 0 < network.reached < network.bandwidth
        assert 1e-6 < network.latency < 1e-3
        assert facts.reached_source in network.source
        assert facts.latency_source in network.source


def test_machines_that_differ() -> None:
    cluster = parse_hardware("1 node of 2x RTX-3090 and local, thunderbolt, 64GiB ram", bridged_3090())
    assert [len(machine.gpus) for machine in cluster.machines] == [2, 2]
    assert cluster.machines[1] == bridged_3090()
    assert not cluster.local
    assert cluster.network is not None
    assert cluster.network.name == "Thunderbolt 4 networking"


def test_main_memory_and_processor() -> None:
    (machine,) = parse_hardware("cpu 32GiB, 12 cores, amx").machines
    assert machine.gpus == ()
    assert machine.memory.total == 32 * GIB
    assert 30 * GIB < machine.memory.available < 32 * GIB
    assert machine.cpu.cores == 12
    assert machine.cpu.native_bfloat16
    for text in ("1x 3090, 256GiB ram", "1x 3090, ram 256GiB", "1x 3090, 256GiB", "1x 3090, 256 GiB of main memory"):
        assert parse_hardware(text).machines[0].memory.total == 256 * GIB
    assert not parse_hardware("cpu-only").machines[0].cpu.native_bfloat16


def test_what_cpu_and_gpu_share_is_not_there_twice() -> None:
    (machine,) = parse_hardware("GB10").machines
    assert machine.memory.available < machine.gpus[0].total / 8


def test_everything_is_described_with_the_figures_that_plans_take() -> None:
    text = describe_hardware(parse_hardware("2 nodes of 8x H100, ib-ndr"))
    for words in ("2 machines, each: 8x H100 80GB SXM", "79.19 GiB", "3,350 GB/s", "450 GB/s", "50 GB/s", "12 us"):
        assert words in text
    assert "PCIe 4.0 x16 through main memory" in describe_hardware(parse_hardware("2x RTX 4090"))
    assert "xGMI" in describe_hardware(parse_hardware("8x MI300X"))
    assert "left out: GPU 1" in describe_hardware(parse_hardware("local", machine_of("a100-mig")))


COUNTS = st.sampled_from(["2", "0", "x", "2x", "nodes", "of", "and", "+", ",", "½", "٣x"])
NAMES = st.sampled_from(["H100", "3090", "RTX-A6000", "A100-80GB", "GB10", "cpu", "local", "GB"])
OPTIONS = st.sampled_from(["pcie", "nvlink", "pairs", "x8", "ib-hdr", "10gbe", "32GiB", "ram", "cores", "p2p"])


@given(st.lists(COUNTS | NAMES | OPTIONS, max_size=9).map(" ".join) | st.text(max_size=30))
def test_whatever_is_written_is_hardware_or_an_error_for_people(text: str) -> None:
    assume(not text.strip().lower().endswith((".yaml", ".yml", ".json")))
    try:
        cluster = parse_hardware(text, bridged_3090())
    except ShardwiseError:
        return
    assert cluster.name
    assert describe_hardware(cluster)
    for machine in cluster.machines:
        count = len(machine.gpus)
        assert len(machine.links) == count * (count - 1) // 2
        assert machine.memory.available <= machine.memory.total


def test_each_example_of_the_grammar_is_read() -> None:
    examples = [line for line in GRAMMAR.partition("\n\n")[0].splitlines() if line[0] != " "]
    texts = [re.split(r"\s{2,}", line)[0] for line in examples]
    assert len(texts) == 7
    for text in texts:
        if not text.endswith(".yaml"):
            assert parse_hardware(text).machines
    assert max(len(line) for line in GRAMMAR.splitlines()) <= 80


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "No hardware is named"),
        ("2x H900", "No GPU is known as 'H900'"),
        ("3x 4090, nvlink", "has no NVLink"),
        ("1x H100, nvlink", "NVLink joins two GPUs of a kind"),
        ("1x RTX-3090 + 1x RTX-A6000, nvlink", "NVLink joins two GPUs of a kind"),
        ("2x RTX-3090, pcie x3", "says nothing about hardware"),
        ("2x RTX-3090," * 200, "too long"),
        ("16x H100", "2 nodes of 8x H100"),
        ("0x H100", "0 GPUs"),
        ("99 nodes of H100", "1 to 64"),
        ("0 nodes of H100", "1 to 64"),
        ("4x H100, ib-hdr", "joins machines, and there is one"),
        ("2 nodes of H100, ib-foo", "ib-hdr"),
        ("2x RTX-3090, 1x A6000", "joined by +"),
        ("2x RTX-3090, nvlnk", "nvlink"),
        ("2x RTX-3090, 0GiB ram", "is not a size"),
        ("cpu 12 parsecs", "says nothing about hardware"),
        ("2x 3090 + ", "No GPU is known"),
        ("nowhere.yaml", "There is no file nowhere.yaml"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_way_on(text: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_hardware(text)
    assert words in str(caught.value)
    assert caught.value.exit_status == 2
