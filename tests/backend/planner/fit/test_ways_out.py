"""What to change where a model does not fit: each way leads to a plan that does, and the cheap ones come first."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from msgspec.structs import replace

from backend.hardware.memory import Memory
from backend.hardware.specification import parse_hardware
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from backend.planner.fit.report import FitReport
from tests.fakes.fit_models import cluster, known
from tests.fakes.machines import GIB, consumer, dgx_h100, gpu_machine


def asked(model: str, hardware: str, **ask: Any) -> FitReport:
    return fit(known(model), parse_hardware(hardware), FitAsk(**ask))


def options(report: FitReport) -> list[str]:
    return [way.option for way in report.ways_out]


def test_nothing_is_proposed_where_serve_would_do() -> None:
    assert not asked("8b", "1x RTX-3090").ways_out


def test_a_smaller_format_of_keys_comes_first_and_then_what_is_given_up() -> None:
    report = asked("8b", "1x RTX-3090", context=24_576, users=2)
    assert options(report) == ["--kv-format int8", "--users 1", "--weights int8"]
    assert all(way.what.endswith(".") and "24,576" in way.gives for way in report.ways_out)


@pytest.mark.parametrize("number", range(3))
def test_what_is_proposed_does_fit(number: int) -> None:
    ask = FitAsk(context=24_576, users=2)
    option = asked("8b", "1x RTX-3090", context=24_576, users=2).ways_out[number].option
    name, value = option.split()
    changes: dict[str, dict[str, Any]] = {
        "--kv-format": {"kv_formats": (value,), "weights": ("model",)},
        "--weights": {"weights": (value,), "kv_formats": ("model",)},
        "--users": {"users": int(value) if value.isdigit() else 0},
    }
    report = fit(known("8b"), parse_hardware("1x RTX-3090"), replace(ask, **changes[name]))
    assert report.best is not None


def test_weights_that_are_too_large_can_shrink_move_or_get_more_gpus() -> None:
    report = asked("70b", "4x RTX-4090")
    assert options(report)[0] == "--weights int8"
    assert "host memory" in report.ways_out[1].what
    assert report.ways_out[2].what.startswith("Add ")
    assert report.ways_out[2].what.endswith("more NVIDIA GeForce RTX 4090.")


def test_without_room_here_other_gpus_are_what_is_left() -> None:
    small = replace(gpu_machine(*consumer(1)), memory=Memory(24 * GIB, 16 * GIB))
    report = fit(known("deepseek"), cluster(small), FitAsk())
    assert report.best is None
    assert all(way.what.startswith("Use ") for way in report.ways_out)


def test_without_room_anywhere_another_model_is_what_is_left() -> None:
    report = asked("8b", "1x RTX-3090", context=131_072, users=100_000)
    assert report.best is None
    assert "smaller model" in report.ways_out[-1].what


def test_where_one_change_does_not_do_other_gpus_and_smaller_formats_are_proposed() -> None:
    report = asked("405b", "1x RTX-4090")
    assert report.best is None
    assert report.plans[0].devices[0].gpu == 0  # not the processor, which lacks fewer bytes
    whats = [way.what for way in report.ways_out]
    assert len(whats) == 3
    assert whats[0].startswith("Use ")
    assert "store" not in whats[0]
    assert any("and store the weights as" in what for what in whats[1:])


@pytest.mark.parametrize("number", range(3))
def test_hardware_that_is_proposed_can_be_asked_about(number: int) -> None:
    way = asked("405b", "1x RTX-4090").ways_out[number]
    _, spec, *stored = shlex.split(way.option)
    weights = tuple(stored[1:]) or ("model",)
    assert asked("405b", spec, weights=weights).best is not None


def test_hardware_that_words_would_not_make_has_no_option() -> None:
    report = fit(known("70b"), cluster(gpu_machine(*consumer(4))), FitAsk(weights=("model",)))
    added = next(way for way in report.ways_out if way.what.startswith("Add "))
    assert added.option == ""


def test_layers_in_host_memory_are_proposed_in_a_smaller_format_where_only_that_does() -> None:
    report = asked("405b", "2x H100-80GB")
    assert report.ways_out[0].option == "--host-weights auto --weights int8"


def test_a_second_machine_is_planned_with_the_same_code() -> None:
    report = fit(known("405b"), cluster(dgx_h100()), FitAsk(weights=("model",)))
    assert not report.best
    whats = [way.what for way in report.ways_out]
    assert any("GPU" in what or "H100" in what or "second machine" in what for what in whats)


def test_ways_out_for_vllm_are_its_own_options() -> None:
    report = asked("8b", "1x RTX-3090", context=24_576, users=2, engine="vllm")
    assert report.ways_out
    assert not any("--kv-format" in option or "--weights" in option for option in options(report))
