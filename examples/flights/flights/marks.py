"""Lost, doubled, out of order, how fast: plain facts about the rows that handlers left."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """One row of a trace; `key` is what the order counts within."""

    position: int
    replayed: bool
    published_at: datetime
    handled_at: datetime
    key: Hashable = None


@dataclass(frozen=True)
class Report:
    """The facts about one group; the latencies are milliseconds."""

    name: str
    published: int
    processed: int
    replayed: int
    lost: int
    doubled: int
    out_of_order: int
    wrong: int
    rate: float
    p50: float
    p99: float

    @property
    def faults(self) -> int:
        return self.lost + self.doubled + self.out_of_order + self.wrong


def lost(published: set[int], marks: Iterable[Mark]) -> int:
    return len(published - {mark.position for mark in marks})


def doubled(marks: list[Mark]) -> int:
    return len(marks) - len({mark.position for mark in marks})


def out_of_order(marks: Iterable[Mark]) -> int:
    """How many were handled after a later message of their key."""
    latest: defaultdict[Hashable, int] = defaultdict(int)
    late = 0
    for mark in marks:
        late += mark.position < latest[mark.key]
        latest[mark.key] = max(latest[mark.key], mark.position)
    return late


def rate(times: Iterable[datetime]) -> float:
    """How many a second, between the first and the last."""
    ordered = sorted(times)
    seconds = (ordered[-1] - ordered[0]).total_seconds() if ordered else 0
    return len(ordered) / seconds if seconds else 0


def latencies(marks: Iterable[Mark]) -> list[float]:
    """Milliseconds from publishing to handling, in ascending order."""
    return sorted((mark.handled_at - mark.published_at).total_seconds() * 1000 for mark in marks)


def percentile(ordered: list[float], percent: int) -> float:
    return ordered[(len(ordered) - 1) * percent // 100] if ordered else 0


def differences(right: Mapping[Any, object], found: Mapping[Any, object]) -> int:
    """How many entries are missing, too many or different."""
    return sum(right.get(key) != found.get(key) for key in right.keys() | found.keys())
