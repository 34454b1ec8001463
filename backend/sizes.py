"""Sizes of memory as people write them: 16GiB, 500MB, 1.5G."""

from __future__ import annotations

import re

from backend.errors import SettingError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes, at least 1. KB, MB, GB and TB are powers of 1000, KiB to TiB powers of 1024; a bare number is bytes.

    Raises:
        SettingError: for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        size = int(float(match[1]) * (_UNITS | _BINARY_UNITS)[(match[2] or "").lower()])
    if size < 1:
        raise SettingError(
            f"{text!r} is not a size",
            "A size is a number above 0 with a unit: KB, MB, GB, TB, KiB, MiB, GiB or TiB.",
            "Write for example 16GiB or 500MB.",
        )
    return size
