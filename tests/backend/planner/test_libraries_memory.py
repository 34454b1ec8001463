"""What the libraries take beside a model, and that advice counts it."""

from __future__ import annotations

import pytest

from backend.errors import OutOfMemoryError
from backend.planner import memory
from tests.backend.planner.test_weight_choice import SEVEN_BILLION, plan_of
from tests.fakes.machines import GIB, cpu_machine

MIB = 1 << 20


def test_weights_that_need_a_library_of_their_own_count_it_on_a_processor() -> None:
    plain = memory.libraries_bytes("model", cuda=False)
    assert plain == memory.LIBRARIES_CPU
    assert memory.libraries_bytes("int8", cuda=False) == memory.libraries_bytes("nf4", cuda=False) > plain
    assert {memory.libraries_bytes(name, cuda=True) for name in ("model", "int8", "fp8")} == {memory.LIBRARIES_CUDA}


def test_a_format_is_advised_only_where_it_fits_with_its_library() -> None:
    plan = plan_of(cpu_machine(available=40 * GIB))
    spent = sum(term.bytes for term in plan.ranks[0].memory if term.name != "kv")
    saved = memory.weights_bytes(SEVEN_BILLION, plan.dtype) - memory.weights_bytes(SEVEN_BILLION, plan.dtype, "int8")
    saved -= memory.libraries_bytes("int8", cuda=False) - memory.libraries_bytes("model", cuda=False)
    for short, advised in ((saved - 4 * MIB, "int8"), (saved + 4 * MIB, "nf4")):
        machine = cpu_machine(available=round((spent - short) / 0.9))
        with pytest.raises(OutOfMemoryError, match=f"--weights {advised}"):
            plan_of(machine)
