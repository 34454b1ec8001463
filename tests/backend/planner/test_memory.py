"""What the libraries take beside a model, and that advice counts it."""

from __future__ import annotations

import pytest

from backend.errors import OutOfMemoryError
from backend.planner import memory
from tests.backend.planner.test_decide import plan_of
from tests.fakes.machines import cpu_machine
from tests.fakes.models import STARTER

MIB = 1 << 20


def test_weights_that_need_a_library_of_their_own_count_it_on_a_processor() -> None:
    plain = memory.libraries_bytes("model", cuda=False)
    assert plain == memory.LIBRARIES_CPU
    assert memory.libraries_bytes("int8", cuda=False) == memory.libraries_bytes("nf4", cuda=False) > plain
    assert {memory.libraries_bytes(name, cuda=True) for name in ("model", "int8", "fp8")} == {memory.LIBRARIES_CUDA}


def test_a_format_is_advised_only_where_it_fits_with_its_library() -> None:
    spent = sum(term.bytes for term in plan_of(cpu_machine(), STARTER).ranks[0].memory if term.name != "kv")
    saved = sum(
        size * (memory.weights_bytes(STARTER, "bfloat16", name) + memory.libraries_bytes(name, cuda=False))
        for name, size in (("model", 1), ("int8", -1))
    )
    for short, advised in ((saved - 4 * MIB, "int8"), (saved + 4 * MIB, "nf4")):
        machine = cpu_machine(available=round((spent - short) / 0.9))
        with pytest.raises(OutOfMemoryError, match=f"--weights {advised}"):
            plan_of(machine, STARTER)
