"""KVChoice: which formats K and V get, and why. Measuring what "auto" takes is `accuracy`'s. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from backend.errors import SettingError
from quant.kv_format import KVFormats, parse_kv_formats


@dataclass(frozen=True, slots=True)
class KVChoice:
    """K's and V's formats, with the sentence that says why."""

    formats: KVFormats
    reason: str


def choose_formats(asked: str, measured: KVChoice | None) -> KVChoice:
    """The formats that --kv-format names; for "auto", those that the accuracy probe chose, if it has run.

    Raises SettingError for a format that is not known.
    """
    if asked == "auto":
        unmeasured = "K and V are planned in the model's dtype: how accurate fp8 and int8 are is measured at the start."
        return measured or KVChoice(KVFormats(), unmeasured)
    try:
        formats = parse_kv_formats(asked)
    except ValueError as error:
        raise SettingError(
            f"--kv-format {asked} is no way to store K and V.",
            f"It is auto, or {str(error).removeprefix('it knows ')}.",
            "Use --kv-format auto to take a quantized format where a measurement shows that it is accurate.",
        ) from None
    if formats == KVFormats():
        return KVChoice(formats, "")
    return KVChoice(formats, f"K and V are stored as {formats}, as --kv-format asks.")
