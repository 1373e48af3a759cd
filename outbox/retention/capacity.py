"""Capacity: how fast the log grows, and when a disk allowance is used up."""

from __future__ import annotations

import dataclasses
import re

from ..sql import one_row
from . import segments

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """The size of the log and its growth."""

    bytes: int
    """With indexes."""
    bytes_per_day: float
    """Averaged since the first message that the log still has; 0 for an empty log."""

    def days_until(self, budget: int) -> float | None:
        """Return the days until the log takes `budget` bytes; None when it does not grow."""
        if self.bytes_per_day <= 0:
            return None
        return max(0.0, (budget - self.bytes) / self.bytes_per_day)


def capacity(using: str) -> Capacity:
    """Return how large the log is and how fast it grows."""
    total = sum(each.bytes for each in segments.list_segments(using))
    (seconds,) = one_row("age_of_log", using) or (0,)
    return Capacity(total, total * 86400 / seconds if seconds else 0.0)


def parse_size(text: str) -> int:
    """Return the number of bytes in a text such as "50GB" says; raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 50GB")
    return int(float(match[1]) * _FACTORS[match[2].upper()])
