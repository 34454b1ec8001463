"""The order of plans, on plans made by hand."""

from __future__ import annotations

from msgspec.structs import replace

from backend.planner.fit.rank import best, price, ranked
from backend.planner.fit.report import Cost, FitPlan, GpuUse, Interval, Speed, Verdict, VerdictKind
from backend.planner.plan import MemoryTerm


def about(likely: float) -> Interval:
    return Interval(likely * 0.8, likely, likely * 1.2)


def plan(
    kind: VerdictKind = "roomy", token: float = 0.02, rate: float = 1000.0, dollars: float = 2.0, **more: object
) -> FitPlan:
    use = GpuUse(0, 0, "GPU", 0, 0, 100, 90, (MemoryTerm("weights", 50),), 40)
    fields: dict[str, object] = {
        "replicas": 1, "stages": 1, "tensor": 1, "experts": "tensor", "weights": "model", "kv_format": "model",
        "hosted": 0, "devices": (use,), "kv_tokens": 1, "largest_context": 1, "concurrency": 1,
        "verdict": Verdict(kind, "", 0, 0, "."), "runnable": True, "blocked": "", "options": (), "reasons": (),
        "speed": Speed(about(0.1), about(token), about(token), about(rate), 1, 0, "memory"),
        "cost": Cost(about(dollars), 1.0, "", ""),
    }  # fmt: skip
    if kind == "too large":
        fields |= {"speed": None, "cost": None}
    return FitPlan(**(fields | more))  # pyright: ignore[reportArgumentType]


def test_what_fits_comes_before_what_is_fragile_and_that_before_what_is_too_large() -> None:
    plans = [plan("too large"), plan("fragile", 0.001), plan("fits", 0.05), plan("roomy", 0.06)]
    assert [one.verdict.kind for one in ranked(plans, "latency", None)] == ["fits", "roomy", "fragile", "too large"]


def test_each_goal_has_its_own_winner() -> None:
    quick, broad, cheap = plan(token=0.01), plan(rate=9000.0), plan(dollars=0.5)
    for goal, winner in (("latency", quick), ("throughput", broad), ("cost", cheap)):
        assert ranked([quick, broad, cheap], goal, None)[0] is winner  # pyright: ignore[reportArgumentType]


def test_a_smaller_format_has_to_be_much_better() -> None:
    own, eight, four = plan(token=0.02), plan(token=0.012, weights="int8"), plan(token=0.009, weights="nf4")
    assert ranked([four, eight, own], "latency", None)[0] is own
    half = plan(token=0.003, weights="int8")
    assert ranked([own, half], "latency", None)[0] is half
    assert price(own) < price(eight) < price(four)


def test_alike_figures_leave_the_smaller_change() -> None:
    use = plan().devices[0]
    two = plan(token=0.0200, tensor=2, devices=(use, replace(use, gpu=1)))
    one, never = plan(token=0.0205), plan(token=0.0201, runnable=False)
    assert ranked([two, never, one], "latency", None) == [one, two, never]
    assert ranked([two, one], "latency", two)[0] is two


def test_the_best_is_one_that_runs_where_any_does() -> None:
    assert best([plan(runnable=False), plan(), plan("fragile")]) == 1
    assert best([plan(runnable=False), plan("fragile")]) == 0
    assert best([plan("fragile"), plan("too large")]) is None


def test_what_lacks_least_comes_first_of_what_is_too_large() -> None:
    use = plan().devices[0]
    near, far = (plan("too large", devices=(replace(use, unused=unused),)) for unused in (-10, -1000))
    assert ranked([far, near], "cost", None) == [near, far]
