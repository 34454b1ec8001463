"""cost_of: dollars for a million output tokens, from a price that is asked for or the table's, with its date. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from backend.hardware.gpu_table import GpuPrice, gpu_facts
from backend.planner.fit.report import Cost, Interval

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATE = re.compile(rf"(?:{_MONTH} )?\b20\d\d\b")

_AFTER = re.compile(rf" via | \(|, (?:{_MONTH} )?20\d\d")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for one GPU and hour, whose they are and of when; `dated` is empty where nobody says."""

    usd: float
    source: str
    dated: str


def cost_of(throughput: Interval, gpus: Sequence[str], price: float | None = None) -> Cost | None:
    """Of a million output tokens: 10^6 x GPUs x $/h / (3600 x tokens/s).

    None where a GPU has no price that anybody told, and where there is no GPU or no throughput.

    Args:
        throughput: output tokens a second.
        gpus: the name of each one that is used, as the driver tells it.
        price: dollars for one GPU and hour, which then is every one's.
    """
    found = [Price(price, "as asked", "") if price is not None else table_price(name) for name in gpus]
    prices = [one for one in found if one is not None]
    if not prices or len(prices) < len(gpus) or min(throughput.low, throughput.likely) <= 0:
        return None
    hour = sum(one.usd for one in prices)
    rates = (throughput.high, throughput.likely, throughput.low)
    per_million = Interval(*(hour * 1e6 / (3600 * rate) for rate in rates))
    return Cost(
        per_million,
        hour / len(prices),
        "; ".join(dict.fromkeys(one.source for one in prices)),
        ", ".join(dict.fromkeys(one.dated for one in prices if one.dated)),
    )


def table_price(name: str) -> Price | None:
    """The median of what the table has of on-demand offers for that kind, else of all but spot; None without any.

    Offers that are marked as doubtful do not count.
    """
    facts = gpu_facts(name)
    offers = [one for one in facts.price_usd_per_hour if not re.search(r"spot|\?", one.kind)] if facts else []
    demanded = [one for one in offers if one.kind.startswith("on-demand")]
    chosen = demanded or offers
    if not chosen:
        return None
    dates = dict.fromkeys(found for one in chosen if (found := _date(one)))
    return Price(statistics.median(one.usd for one in chosen), _source(chosen), ", ".join(dates))


def _source(offers: Sequence[GpuPrice]) -> str:
    """Whose offers they are, without what follows of their dates and kinds."""
    names = dict.fromkeys(_AFTER.split(one.source)[0] for one in offers)
    kind = re.sub(r"\s*\(.*", "", offers[0].kind)
    return f"{f'median of {len(offers)} ' if len(offers) > 1 else ''}{kind}: {'; '.join(names)}"


def _date(offer: GpuPrice) -> str:
    found = _DATE.search(f"{offer.source} {offer.kind}")
    return found.group() if found else ""
