"""Shares: what each rank gets of a model, in numbers. Which GPUs there are is `groups`'; cutting is surgery's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.errors import SettingError
from backend.parallel.division import MULTIPLE, ExpertDivision, HeadShare, divide, divide_heads
from backend.planner.model_facts import Columns, ExpertColumns, ModelFacts

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
    given = _heads(facts, weights)
    attention = _relative([sum(len(shares[rank].heads) for shares in given) for rank in ranks])
    held = [0] * len(weights)
    for layer, shares in enumerate(_heads(facts, attention)):
        for rank in ranks:
            held[rank] += _attention(facts, layer, shares[rank])
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
    ranks = range(len(shares.attention))
    heads = _heads(facts, shares.attention)
    columns = [divide(part.width, shares.mlp, MULTIPLE) for part in facts.columns]
    experts = [_expert_units(part.count, part.width, shares) for part in facts.experts]
    vocabulary = divide(facts.vocabulary, shares.mlp, MULTIPLE)
    made: dict[tuple[object, ...], ModelFacts] = {}
    found: list[ModelFacts] = []
    for rank in ranks:
        layers = [layer[rank] for layer in heads]
        kept = _Kept(
            tuple((len(share.heads), len(share.kv_heads)) for share in layers),
            tuple(len(parts[rank]) for parts in columns),
            tuple((len(parts[rank]), units) for parts, units in experts),
            len(vocabulary[rank]),
        )
        key = (kept.heads, kept.columns, kept.experts, kept.vocabulary)
        if key not in made:
            made[key] = _narrowed(facts, kept, shares.experts)
        found.append(made[key])
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Kept:
    """How much of everything a rank has: query and KV heads of each layer, columns, units of how many, rows."""

    heads: tuple[tuple[int, int], ...]
    columns: tuple[int, ...]
    experts: tuple[tuple[int, int], ...]
    vocabulary: int


def _narrowed(facts: ModelFacts, kept: _Kept, division: ExpertDivision) -> ModelFacts:
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
    narrow = {
        (layer, kv_heads): replace(layer, kv_heads=kv_heads)
        for layer, (_, kv_heads) in set(zip(facts.layers, kept.heads, strict=True))
    }
    narrowed = replace(
        facts,
        layers=tuple(narrow[layer, kv_heads] for layer, (_, kv_heads) in zip(facts.layers, kept.heads, strict=True)),
        heads=tuple(heads for heads, _ in kept.heads),
        intermediate=_intermediate(facts, columns, experts),
        query_parameters=tuple(_queries(facts, layer, heads) for layer, (heads, _) in enumerate(kept.heads)),
        key_parameters=tuple(_keys(facts, layer, kv_heads) for layer, (_, kv_heads) in enumerate(kept.heads)),
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
        _heads(facts, [1.0] * ranks)
    except ValueError:
        return False
    return ranks <= min([facts.vocabulary, *(part.width for part in (*facts.columns, *facts.experts))])


def _heads(facts: ModelFacts, weights: Sequence[float]) -> list[tuple[HeadShare, ...]]:
    """Each layer's heads by rank. A latent layer keeps one latent for all its heads, so every rank keeps it."""
    pairs = [(heads, layer.kv_heads) for heads, layer in zip(facts.heads, facts.layers, strict=True)]
    divided = {pair: divide_heads(*pair, weights) for pair in set(pairs)}
    return [divided[pair] for pair in pairs]


def _attention(facts: ModelFacts, layer: int, share: HeadShare) -> int:
    return _queries(facts, layer, len(share.heads)) + _keys(facts, layer, len(share.kv_heads))


def _queries(facts: ModelFacts, layer: int, kept: int) -> int:
    return _part(facts.query_parameters, layer, kept, facts.heads[layer])


def _keys(facts: ModelFacts, layer: int, kept: int) -> int:
    return _part(facts.key_parameters, layer, kept, facts.layers[layer].kv_heads)


def _part(parameters: tuple[int, ...], layer: int, kept: int, units: int) -> int:
    return parameters[layer] * kept // units if parameters else 0


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
