"""Which ways over a cluster are planned: complete where `serve` chooses, few elsewhere, and on devices that exist."""

from __future__ import annotations

import pytest

from backend.hardware.specification import parse_hardware
from backend.planner.fit.shapes import Division, shapes
from tests.fakes.fit_models import known


@pytest.mark.parametrize(
    ("hardware", "most"),
    [("1x RTX-3090", 1), ("3x L40S", 8), ("8x H100", 32), ("2 nodes of 8x H100, ib-ndr", 45), ("cpu 64GiB", 1)],
)
@pytest.mark.parametrize("model", ["8b", "30b-a3b"])
def test_shapes_are_few_and_lie_on_devices_that_are_there(hardware: str, most: int, model: str) -> None:
    place = parse_hardware(hardware)
    found = shapes(place, Division(known(model).facts))
    assert len(found) == len({(shape.seats, shape.experts) for shape in found}) <= most
    for shape in found:
        seats = [seat for replica in shape.seats for seat in replica]
        taken = [(seat.machine, gpu) for seat in seats for gpu in seat.gpus]
        assert len(taken) == len(set(taken))
        assert all(gpu < len(place.machines[machine].gpus) for machine, gpu in taken)
        assert len({seat.ranks for seat in seats}) == 1


def test_every_size_that_serve_considers_is_there() -> None:
    found = shapes(parse_hardware("8x H100"), Division(known("70b").facts))
    assert {shape.tensor for shape in found if shape.own} == set(range(1, 9))
    assert {(2, 4), (4, 2), (2, 1), (8, 1)} <= {(shape.stages, shape.tensor) for shape in found}
    assert {(8, 1), (4, 2), (2, 4)} <= {(shape.replicas, shape.tensor) for shape in found}


def test_a_network_gets_stages_and_no_ranks_across_it() -> None:
    found = shapes(parse_hardware("2 nodes of 4x A100-80GB, ib-hdr"), Division(known("70b").facts))
    assert any(shape.stages == 2 and shape.tensor == 4 for shape in found)
    assert max(shape.tensor for shape in found) == 4


def test_experts_are_divided_both_ways() -> None:
    found = shapes(parse_hardware("4x H100"), Division(known("30b-a3b").facts))
    assert sum(shape.experts != "auto" for shape in found) == 2
    dense = shapes(parse_hardware("4x H100"), Division(known("70b").facts))
    assert all(shape.experts == "auto" for shape in dense)
