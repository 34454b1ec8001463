"""What links cost a model: bytes by the formula, a line for each way, networks beside the machines' own links."""

from __future__ import annotations

from app.fit.links import as_table, way_costs
from backend.hardware.specification import parse_hardware
from backend.planner.fit.known_model import KnownModel
from tests.fakes.models import LLAMA_70B

MODEL = KnownModel("llama", LLAMA_70B)


def test_a_70b_sends_160_messages_of_16_kib_a_token() -> None:
    (cost,) = way_costs(MODEL, [parse_hardware("4x H100")], ["4x H100"])
    assert (cost.message, cost.token_bytes) == (16 << 10, 160 * (16 << 10))
    assert cost.token == 160 * cost.one
    assert cost.chunk > cost.token


def test_a_network_is_a_way_of_its_own_over_all_gpus() -> None:
    name = "2 nodes of 4x A100-80GB, ib-hdr"
    inside, between = way_costs(MODEL, [parse_hardware(name)], [name])
    assert (inside.ranks, between.ranks) == (4, 8)
    assert between.one > inside.one


def test_the_table_is_80_columns_wide_and_says_where_nothing_is_sent() -> None:
    names = ["8x H100", "2 nodes of 1x RTX 4090, 10gbe"]
    text = as_table(MODEL, way_costs(MODEL, [parse_hardware(name) for name in names], names))
    assert max(map(len, text.splitlines())) <= 80
    assert as_table(MODEL, way_costs(MODEL, [parse_hardware("1x H100")], ["1x H100"])) == (
        "There is one GPU: nothing is sent."
    )
