"""Refusals: why so many stages, or layers given out by hand, cannot be, with the arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.planner.fit.stages import layer_counts
from backend.planner.model_facts import ModelFacts
from backend.planner.pool import SHORTEST_CONTEXT
from backend.planner.staged.draft import Pool, StagedDraft
from backend.planner.staged.seating import capacity
from backend.planner.staged.site import Site
from backend.planner.units import human_bytes


def check_asked(settings: EngineSettings, facts: ModelFacts, stages: int) -> None:
    """Refuses what no machines could do. Raises SettingError."""
    layers = len(layer_counts(facts))
    if settings.stage_layers:
        _check_by_hand(settings, layers)
    if stages > min(layers, len(facts.layers)):
        raise SettingError(
            f"--pp {stages} is more than the model has layers.",
            f"It has {layers}, and each stage needs one that keeps keys and values.",
            f"Use --pp {min(layers, len(facts.layers))} or less.",
        )
    if settings.host_weights:
        raise SettingError(
            "--host-weights does not go with several stages.",
            f"Layers are given out over {stages} stages, each of which keeps its own on its devices.",
            "Leave --host-weights away, or use --pp 1.",
        )
    if settings.disk_cache:
        raise SettingError(
            "--disk-cache does not go with several stages.",
            f"Each of {stages} stages would keep records of its own layers, which another start might cut otherwise.",
            "Use --disk-cache 0, or --pp 1.",
        )


def _check_by_hand(settings: EngineSettings, layers: int) -> None:
    counts = settings.stage_layers
    shown = ",".join(map(str, counts))
    if settings.pipeline_stages not in (None, len(counts)):
        raise SettingError(
            f"--layers {shown} and --pp {settings.pipeline_stages} contradict each other.",
            f"--layers names {len(counts)} stages.",
            "Leave --pp away.",
        )
    if min(counts) < 1:
        raise SettingError(f"--layers {shown} leaves a stage empty.", "Each stage needs a layer.")
    if sum(counts) != layers:
        raise SettingError(
            f"--layers {shown} does not give out all layers.",
            f"The model has {layers}, and {' + '.join(map(str, counts))} = {sum(counts)}.",
            f"Use for example --layers {_even(layers, len(counts))}.",
        )


def _even(layers: int, stages: int) -> str:
    stages = min(stages, layers)
    return ",".join(str(layers // stages + (number < layers % stages)) for number in range(stages))


def too_few_devices(sites: Sequence[Site], settings: EngineSettings, stages: int) -> SettingError:
    ranks = settings.tensor_parallel or 1
    each = f" of {ranks} GPUs each" if ranks > 1 else ""
    names = ", ".join(f"{site.name} has {_counted(site, settings)}" for site in sites)
    most = sum(_stages_on(site, settings) for site in sites)
    processors = any(not site.machine.gpus for site in sites)
    hint = "Join another machine (`shardwise peers invite`)" + ("" if processors else ", or use --device cpu")
    return SettingError(
        f"{stages} stages{each} are more than there are devices for.",
        f"Each stage needs its own GPUs, or a processor: {names}.",
        f"{hint}, or use --pp {most}." if most else f"{hint}.",
    )


def _stages_on(site: Site, settings: EngineSettings) -> int:
    return capacity(site, settings) // (settings.tensor_parallel or 1 if site.machine.gpus else 1)


def _counted(site: Site, settings: EngineSettings) -> str:
    count = capacity(site, settings)
    if not count:
        return "none that can compute"
    if not site.machine.gpus or settings.device == "cpu":
        return "its processor"
    return "one GPU" if count == 1 else f"{count} GPUs"


def too_small(staged: StagedDraft) -> OutOfMemoryError:
    """What the tightest memory is short of."""
    pool = min(staged.pools, key=lambda one: one.room / one.page_bytes)
    wishes, stages = staged.wishes, len(staged.drafts)
    least = wishes.settings.max_context or min(SHORTEST_CONTEXT, wishes.facts.max_positions)
    needed = wishes.pages_of(least) * pool.page_bytes
    where, terms, usable = _held(staged, pool)
    held = ", ".join(f"{name} {human_bytes(count)}" for name, count in terms.items() if count)
    longest = f"--max-context {_halved(least)} or less" if wishes.settings.max_context and pool.room > 0 else ""
    smaller = "" if wishes.weight_format == "nf4" else "--weights nf4"
    ways = ", ".join(way for way in (longest, smaller) if way)
    return OutOfMemoryError(
        f"The model does not fit {stages} stage{'' if stages == 1 else 's'}: {where} is short of "
        f"{human_bytes(max(1, needed - pool.room))}.",
        f"{human_bytes(usable)} can be used there; it takes {held}, and a context of {least} positions "
        f"{human_bytes(needed)}.",
        f"Ways out: {ways + ', ' if ways else ''}a smaller model, or another machine (`shardwise peers invite`).",
    )


def pool_too_large(staged: StagedDraft, asked: int) -> OutOfMemoryError:
    most = int(staged.room) * staged.page_bytes
    pool = min(staged.pools, key=lambda one: one.room / one.page_bytes)
    return OutOfMemoryError(
        f"--kv-pool {human_bytes(asked)} does not fit {len(staged.drafts)} stages.",
        f"{_held(staged, pool)[0]} has room for {int(staged.room)} pages, {human_bytes(most)} over all stages.",
        f"Two ways out: --kv-pool {most >> 20}MiB or less, or free memory there.",
    )


def pool_too_small(staged: StagedDraft, asked: int, least: int) -> OutOfMemoryError:
    needed = staged.wishes.pages_of(least) * staged.page_bytes
    return OutOfMemoryError(
        f"The page pool does not hold one context: its kv needs {human_bytes(needed)} over all stages.",
        f"--kv-pool gives it {human_bytes(asked)}, and a context has {least} positions.",
        f"Two ways out: a shorter --max-context, or --kv-pool {-(-needed >> 20)}MiB.",
    )


def _held(staged: StagedDraft, pool: Pool) -> tuple[str, dict[str, int], int]:
    """Where it is, what of it is spent, by term, and what can be used of it."""
    ranks = [rank for stage in pool.stages for rank in staged.drafts[stage].ranks]
    draft = staged.drafts[pool.stages[0]]
    if draft.cuda:
        ranks = [next(one for one in ranks if one.target.usable - one.spent == pool.room)]
    terms: dict[str, int] = {}
    for rank in ranks:
        for name, count in rank.terms:
            terms[name] = terms.get(name, 0) + count
    parts = [staged.parts[stage] for stage in pool.stages]
    layers = f"layers {parts[0].first + 1} to {parts[-1].stop}"
    return f"{ranks[0].target.label} of {staged.site(pool.stages[0]).name} ({layers})", terms, ranks[0].target.usable


def _halved(count: int) -> int:
    return max(2, count // 2)
