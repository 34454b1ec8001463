"""verdict: whether a candidate fits what was asked, and by how much; the numbers are `replica`'s. Pure.

Devices have a tenth of their free memory set aside already (`target`), for fragments and for what others take. What
is judged here is whether a plan's own estimate may be wrong by more than it leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backend.planner.draft import RankDraft
from backend.planner.fit.candidate import Candidate, Question
from backend.planner.fit.replica import Replica
from backend.planner.fit.report import KINDS, Verdict, VerdictKind
from backend.planner.pool import SHORTEST_CONTEXT, short_term
from backend.planner.units import human_bytes

# Of the pool, what sequences of the asked length must leave for the plan to have room: a seventh user, or answers that
# grow by as much, is what a plan should bear without preempting anybody.
_ROOMY = 0.15
# What estimates have been wrong by. Weights by tensor are within 0.5%, from dimensions within 1% for most models and
# 3% for nine of ten (logged loads of some hundred servers); activations and what libraries hold are fits, and were
# wrong by a quarter and a tenth.
_WEIGHTS_EXACT, _WEIGHTS, _ACTIVATIONS, _LIBRARIES = 0.005, 0.01, 0.25, 0.1
_ERRORS = {"activations": _ACTIVATIONS, "libraries": _LIBRARIES, "communication": _LIBRARIES}


@dataclass(frozen=True, slots=True)
class _Margin:
    """What the asked sequences need of the tightest device's pool, what it has, and what estimates may be wrong by."""

    rank: RankDraft
    needed: int
    pool: int
    room: int
    error: int


def verdict(asked: Question, made: Candidate) -> Verdict:
    """Of the replica that is worst off."""
    users = asked.users(made.shape.replicas)
    judged = [_of_replica(asked, replica, users) for replica in _unlike(made)]
    return max(judged, key=lambda one: KINDS.index(one.kind))


def _unlike(made: Candidate) -> list[Replica]:
    """Replicas whose devices are alike share their drafts."""
    return list({id(replica.drafts): replica for replica in made.replicas}.values())


def _of_replica(asked: Question, replica: Replica, users: int) -> Verdict:
    most = asked.model.facts.max_positions
    least = min(SHORTEST_CONTEXT, most)
    if replica.refused is not None or replica.largest_context(most) < least:
        return _too_large(replica, least)
    margin = _margin(asked, replica, users)
    if replica.concurrency(asked.context) < users:
        return _short(asked, replica, users, margin)
    if margin.room - margin.needed < margin.error:
        return _thin(margin)
    spare = 1 - margin.needed / margin.pool
    kind: VerdictKind = "roomy" if spare >= _ROOMY else "fits"
    several = sum(len(draft.ranks) for draft in replica.drafts) > 1
    sentence = (
        f"{_contexts(users, asked.context)} {'takes' if users == 1 else 'take'} {human_bytes(margin.needed)} of the "
        f"{human_bytes(margin.pool)} of the pool{' on the tightest device' if several else ''}."
    )
    return Verdict(kind, "" if kind == "roomy" else "kv", margin.needed, margin.pool, sentence)


def _margin(asked: Question, replica: Replica, users: int) -> _Margin:
    """Of the rank where least is left once the asked sequences have their pages, the estimate's error taken off."""
    pages = replica.pages_of(asked.context) * users
    margins: list[_Margin] = []
    for draft in replica.drafts:
        sharing = 1 if draft.cuda else len(draft.ranks)
        for rank in draft.ranks:
            left = rank.target.usable // sharing - rank.spent
            pool = replica.pages * rank.page_bytes
            error = estimate_error(rank.terms, asked.model.exact)
            margins.append(_Margin(rank, pages * rank.page_bytes, pool, max(left, pool), error))
    return min(margins, key=lambda one: one.room - one.needed - one.error)


def estimate_error(terms: Iterable[tuple[str, int]], exact: bool) -> int:
    """Bytes by which the sum of these terms may be wrong; `exact`: weights are known tensor by tensor."""
    parts = _ERRORS | {"weights": _WEIGHTS_EXACT if exact else _WEIGHTS}
    return int(sum(count * parts.get(name, 0.0) for name, count in terms))


def _too_large(replica: Replica, least: int) -> Verdict:
    stage, rank = replica.tightest
    draft = replica.drafts[stage]
    sharing = 1 if draft.cuda else len(draft.ranks)
    term = short_term(draft)
    terms = dict(rank.terms)
    needed = terms[term] if term in terms else replica.pages_of(least) * rank.page_bytes
    others = sum(count for name, count in rank.terms if name != term)
    available = max(0, rank.target.usable // sharing - others)
    sentence = (
        f"{rank.target.label} has {human_bytes(rank.target.usable)} to use; the {_called(term)} need "
        f"{human_bytes(needed)}, and beside {_names([name for name in terms if name != term])} "
        f"{human_bytes(available)} are left for them."
    )
    return Verdict("too large", term, needed, available, sentence)


def _short(asked: Question, replica: Replica, users: int, margin: _Margin) -> Verdict:
    holds = replica.concurrency(asked.context)
    if holds:
        what = f"it holds {holds:,} at once, and others wait"
    else:
        what = f"the longest that it holds is {replica.largest_context(asked.model.facts.max_positions):,}"
    sentence = (
        f"It starts. {_contexts(users, asked.context)} would need {human_bytes(margin.needed)} of a pool that has "
        f"{human_bytes(margin.pool)}: {what}."
    )
    return Verdict("fragile", "kv", margin.needed, margin.pool, sentence)


def _thin(margin: _Margin) -> Verdict:
    left = max(0, margin.room - margin.needed)
    sentence = (
        f"It starts, and leaves {human_bytes(left)} of {margin.rank.target.label} beside what was asked: less than the "
        f"{human_bytes(margin.error)} by which such an estimate may be wrong."
    )
    return Verdict("fragile", "kv", margin.needed, margin.pool, sentence)


def _contexts(count: int, context: int) -> str:
    return f"A context of {context:,}" if count == 1 else f"{count:,} contexts of {context:,}"


def _called(term: str) -> str:
    return "keys and values of the shortest useful context" if term == "kv" else term


def _names(terms: list[str]) -> str:
    return " and ".join([", ".join(terms[:-1]), terms[-1]] if len(terms) > 1 else terms)
