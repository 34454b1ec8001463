"""Shares: what each rank gets of a model, in numbers. Which GPUs there are is `groups`'; cutting is surgery's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.errors import SettingError
from backend.parallel.division import MULTIPLE, ExpertDivision, divide, divide_heads
from backend.planner.model_facts import Columns, ExpertColumns, ModelFacts
from kvcache.layout import LayerCache

# A slice of an expert narrower than a product's tile is computed as if it were a whole one.
_NARROWEST_SLICE = 128
# Tokens of a step over which work is balanced: most experts of a mixture have some then.
_BALANCED_TOKENS = 16
# The least part of an MLP, of an equal one, for a rank whose attention is its whole work already.
_LEAST_MLP = 0.02


@dataclass(frozen=True, slots=True)
class Shares:
    """Every rank's relative part of attention, and of MLPs and the vocabulary, as `parallel.division` takes them."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    experts: ExpertDivision = "tensor"


WHOLE = Shares((1.0,), (1.0,))


def share_out(facts: ModelFacts, weights: Sequence[float], experts: ExpertDivision, even_memory: bool = True) -> Shares:
    """Parts that give each rank work in proportion to its weight.

    Attention goes in whole KV heads, which may not divide by the weights. With `even_memory`, MLPs and the vocabulary
    make up for it, so that every device has room for as many pages. Without, they follow the weights: ranks wait for
    each other before and after MLPs, so that is faster. Work is the parameters that a small batch reads.

    Raises ValueError where the model has not enough heads for the ranks.
    """
    ranks = range(len(weights))
    kinds = _kinds(facts)
    given = [(divide_heads(kind.heads, kind.kv_heads, weights), count) for kind, count in kinds.items()]
    attention = _relative([sum(len(shares[rank].heads) * count for shares, count in given) for rank in ranks])
    held = [0] * len(weights)
    for kind, count in kinds.items():
        for rank, share in enumerate(divide_heads(kind.heads, kind.kv_heads, attention)):
            query = kind.query * len(share.heads) // kind.heads
            held[rank] += count * (query + kind.key * len(share.kv_heads) // kind.kv_heads)
    rest = touched(facts, _BALANCED_TOKENS) - facts.attention_parameters - facts.replicated_parameters
    if not even_memory:
        return Shares(attention, _relative(weights), experts)
    work = sum(held) + rest
    least = _LEAST_MLP * max(rest, 1.0) / len(weights)
    wanted = [max(least, work * weight / sum(weights) - done) for weight, done in zip(weights, held, strict=True)]
    return Shares(attention, _relative(wanted), experts)


def _relative(parts: Sequence[float]) -> tuple[float, ...]:
    """The parts with 1 for their average."""
    average = sum(parts) / len(parts)
    return tuple(round(part / average, 4) for part in parts)


def touched(facts: ModelFacts, tokens: int) -> float:
    """Parameters that a step of `tokens` tokens reads: all but the embedding's, and experts that no token passes."""
    untouched = facts.vocabulary_parameters - facts.output_parameters
    return facts.parameters - untouched - facts.expert_parameters + touched_experts(facts, tokens)


def touched_experts(facts: ModelFacts, tokens: int) -> float:
    """Parameters of the experts that `tokens` tokens pass.

    Of E experts with k active, E (1 - (1 - k/E)^tokens) are passed, if all are equally likely.
    """
    active = max(1, facts.active_experts)
    return sum(part.parameters * (1 - (1 - min(1.0, active / part.count)) ** tokens) for part in facts.experts)


def output_parameters(facts: ModelFacts) -> int:
    """Those of the output layer, which every step reads; of the embedding, a step reads a few rows."""
    return min(facts.vocabulary_parameters, facts.vocabulary * facts.hidden)


def of_rank(facts: ModelFacts, shares: Shares, rank: int) -> ModelFacts:
    """The model as one rank has it: its heads, parameters and widths; hidden size and vocabulary stay whole.

    Raises ValueError where something has fewer parts than there are ranks.
    """
    return of_ranks(facts, shares)[rank]


def of_ranks(facts: ModelFacts, shares: Shares) -> tuple[ModelFacts, ...]:
    """`of_rank` of every rank; ranks that have as much of everything are one value.

    Raises ValueError where something has fewer parts than there are ranks.
    """
    pairs = [(heads, layer.kv_heads) for heads, layer in zip(facts.heads, facts.layers, strict=True)]
    heads = {pair: divide_heads(*pair, shares.attention) for pair in dict.fromkeys(pairs)}
    columns = [divide(part.width, shares.mlp, MULTIPLE) for part in facts.columns]
    experts = [_expert_units(part.count, part.width, shares) for part in facts.experts]
    vocabulary = divide(facts.vocabulary, shares.mlp, MULTIPLE)
    made: dict[_Kept, ModelFacts] = {}
    found: list[ModelFacts] = []
    for rank in range(len(shares.attention)):
        kept = _Kept(
            tuple((pair, len(parts[rank].heads), len(parts[rank].kv_heads)) for pair, parts in heads.items()),
            tuple(len(parts[rank]) for parts in columns),
            tuple((len(parts[rank]), units) for parts, units in experts),
            len(vocabulary[rank]),
        )
        if kept not in made:
            made[kept] = _narrowed(facts, pairs, kept, shares.experts)
        found.append(made[kept])
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Kept:
    """How much a rank has of everything: query and KV heads of layers with so many, columns, units, rows."""

    heads: tuple[tuple[tuple[int, int], int, int], ...]
    columns: tuple[int, ...]
    experts: tuple[tuple[int, int], ...]
    vocabulary: int


def _narrowed(facts: ModelFacts, pairs: Sequence[tuple[int, int]], kept: _Kept, division: ExpertDivision) -> ModelFacts:
    """pairs: query and KV heads of each layer."""
    queries = {pair: heads for pair, heads, _ in kept.heads}
    keys = {pair: kv_heads for pair, _, kv_heads in kept.heads}
    columns = tuple(
        replace(part, width=width, parameters=part.parameters * width // part.width)
        for part, width in zip(facts.columns, kept.columns, strict=True)
    )
    experts = tuple(
        replace(part, width=part.width * count // units, parameters=part.parameters * count // units)
        if division == "tensor"
        else replace(part, count=count, parameters=part.parameters * count // units)
        for part, (count, units) in zip(facts.experts, kept.experts, strict=True)
    )
    narrowed = replace(
        facts,
        layers=_layers(facts.layers, [keys[pair] for pair in pairs]),
        heads=tuple(queries[pair] for pair in pairs),
        intermediate=_intermediate(facts, columns, experts),
        query_parameters=tuple(
            count * queries[pair] // pair[0] for count, pair in zip(facts.query_parameters, pairs, strict=False)
        ),
        key_parameters=tuple(
            count * keys[pair] // pair[1] for count, pair in zip(facts.key_parameters, pairs, strict=False)
        ),
        columns=columns,
        experts=experts,
        vocabulary_parameters=facts.vocabulary_parameters * kept.vocabulary // facts.vocabulary,
        output_parameters=facts.output_parameters * kept.vocabulary // facts.vocabulary,
    )
    lost = facts.parameters - facts.replicated_parameters - (narrowed.parameters - narrowed.replicated_parameters)
    return replace(narrowed, parameters=facts.parameters - lost)


def choose_experts(asked: str, facts: ModelFacts, ranks: int) -> tuple[ExpertDivision, str]:
    """How experts are divided, and why, as a sentence; empty where there is nothing to divide.

    Raises SettingError where --experts expert cannot be.
    """
    fewest = min((part.count for part in facts.experts), default=0)
    if asked == "expert" and not facts.experts:
        raise SettingError(
            "--experts expert needs a model with experts.", f"{facts.architecture} has none.", "Leave --experts away."
        )
    if asked == "expert" and fewest < ranks:
        raise SettingError(
            f"--experts expert cannot give each of {ranks} ranks an expert.",
            f"A layer of the model has {fewest}.",
            f"Use --tp {fewest} or less, or --experts tensor.",
        )
    if asked != "auto":
        reason = f"Experts are divided by {asked}, as --experts asks." if facts.experts and ranks > 1 else ""
        return ("expert" if asked == "expert" else "tensor"), reason
    if ranks == 1 or not facts.experts:
        return "tensor", ""
    slice_width = min(part.width for part in facts.experts) // ranks
    if slice_width < _NARROWEST_SLICE and fewest >= ranks:
        return "expert", f"Each rank has whole experts: slices of them would be {slice_width} columns wide."
    return "tensor", f"Each rank has a slice of every expert, {slice_width} columns wide, so all work alike."


def check_ranks(facts: ModelFacts, ranks: int) -> None:
    """Refuses more ranks than the model can be divided over, whatever the machine.

    Raises SettingError.
    """
    heads = min(facts.heads)
    if ranks > heads:
        raise SettingError(
            f"--tp {ranks} is more than the model has query heads.",
            f"A layer of it has {heads}, and each rank needs one.",
            f"Use --tp {heads} or less.",
        )
    if not divisible(facts, ranks):
        most = max(count for count in range(1, ranks) if divisible(facts, count))
        raise SettingError(
            f"--tp {ranks} cannot divide this model.",
            "Some of its heads or columns are fewer than the ranks that would share them.",
            f"Use --tp {most}.",
        )


def divisible(facts: ModelFacts, ranks: int) -> bool:
    """Whether every rank would get a part of everything that is divided."""
    try:
        for kind in _kinds(facts):
            divide_heads(kind.heads, kind.kv_heads, [1.0] * ranks)
    except ValueError:
        return False
    return ranks <= min([facts.vocabulary, *(part.width for part in (*facts.columns, *facts.experts))])


def _layers(layers: Sequence[LayerCache], kv_heads: Sequence[int]) -> tuple[LayerCache, ...]:
    """Each layer with so many KV heads; equal ones are one value, of which a model has few."""
    made: list[tuple[LayerCache, LayerCache]] = []
    found: list[LayerCache] = []
    for layer, count in zip(layers, kv_heads, strict=True):
        share = next((share for whole, share in made if share.kv_heads == count and whole == layer), None)
        if share is None:
            share = replace(layer, kv_heads=count)
            made.append((layer, share))
        found.append(share)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What dividing an attention layer needs of it. A latent layer keeps one latent on every rank."""

    heads: int
    kv_heads: int
    query: int
    key: int


def _kinds(facts: ModelFacts) -> dict[_Kind, int]:
    """Attention layers that are divided alike, and how many there are of each."""
    nothing = (0,) * len(facts.layers)
    kinds = Counter(
        zip(
            facts.heads,
            (layer.kv_heads for layer in facts.layers),
            facts.query_parameters or nothing,
            facts.key_parameters or nothing,
            strict=True,
        )
    )
    return {_Kind(*kind): count for kind, count in kinds.items()}


def _expert_units(count: int, width: int, shares: Shares) -> tuple[tuple[range, ...], int]:
    """What every rank keeps of how many: columns of each expert, or experts."""
    if shares.experts == "expert":
        return divide(count, shares.mlp), count
    return divide(width, shares.mlp, MULTIPLE), width


def _intermediate(facts: ModelFacts, columns: Sequence[Columns], experts: Sequence[ExpertColumns]) -> int:
    """The widest MLP of a share: its part of the widest column block, or of what a token's experts have together."""
    widths = [part.width for part in columns]
    if experts:
        widths.append(max(part.width for part in experts) * max(1, facts.active_experts))
    return min(facts.intermediate, max(widths)) if widths else facts.intermediate
