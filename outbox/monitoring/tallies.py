"""Tallies: what a worker's process counts and measures itself.

They are kept in memory and, under a supervisor, written to a file about once a second: the
supervisor adds up the files of its workers. A worker that takes the place of one that died goes on
with its file, so that no counter falls.
"""

from __future__ import annotations

import bisect
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import observers, signals

if TYPE_CHECKING:
    from prometheus_client.core import Metric

COUNTERS = {
    "messages_handled": (("group", "channel"), "Messages that workers moved past."),
    "failed_attempts": (("group",), "Attempts of messages that failed."),
    "messages_parked": (("group",), "Messages that the group gave up on and parked."),
}
HISTOGRAMS = {
    "batch_seconds": (("group",), "Seconds from the claim of a batch to its end."),
    "handler_seconds": (("group", "type"), "Seconds that a call of a handler took."),
}
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the buckets of a histogram, in seconds; one more has no bound."""
WRITE_SECONDS = 1.0
"""Between two writes of the file, at least."""

Series = tuple[str, ...]
"""The name of a metric and the values of its labels."""


class Tallies:
    """The numbers of this process. `file`: where they are kept for a supervisor, None: nowhere."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.counters: dict[Series, float] = {}
        self.histograms: dict[Series, list[float]] = {}
        """The sum, and how many values fell into each bucket."""
        self._written_at = 0.0
        if file is not None and file.exists():
            self.add(file)

    def attach(self) -> None:
        """Count what the workers of this process do from now on."""
        observers.after_batch.append(self.count_batch)
        observers.after_calls.append(self.count_calls)
        signals.message_failed.connect(self._count_failure, weak=False)
        signals.message_parked.connect(self._count_parked, weak=False)

    def count_batch(self, group: str, channel: str, moved: int, seconds: float) -> None:
        """Count a batch; see `observers.after_batch`."""
        self._count("messages_handled", group, channel, by=moved)
        self._measure([seconds], "batch_seconds", group)

    def count_calls(self, group: str, routes: Sequence[Any], seconds: Sequence[float]) -> None:
        """Measure calls of handlers; see `observers.after_calls`."""
        first, *others = {id(route): route for route in routes}.values()
        if not others:
            return self._measure(seconds, "handler_seconds", group, first.type)
        for route, took in zip(routes, seconds, strict=True):
            self._measure([took], "handler_seconds", group, route.type)

    def turn(self) -> None:
        """Write the file when that is due."""
        if self.file is not None and time.monotonic() - self._written_at >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file, if there is one, so that a reader finds all of it or the one before.

        A file that cannot be written, as on a full disk, is reported once and ends no worker.
        """
        if self.file is None:
            return
        self._written_at = time.monotonic()
        parts = [list(each.items()) for each in (self.counters, self.histograms)]
        new = self.file.with_suffix(".new")
        try:
            new.write_text(json.dumps(parts), encoding="utf-8")
            os.replace(new, self.file)
        except OSError as error:
            observers.report(self.write, error)

    def add(self, file: Path) -> None:
        """Add the numbers of a file."""
        counters, histograms = json.loads(file.read_text(encoding="utf-8"))
        self._merge(counters, histograms)

    def plus_files(self, folder: Path) -> Tallies:
        """Return the sum of these numbers and of the files in a folder."""
        total = Tallies()
        total._merge(self.counters.copy().items(), self.histograms.copy().items())
        for file in sorted(folder.glob("worker-*[0-9]")):
            total.add(file)
        return total

    def collect(self) -> Iterable[Metric]:
        """Return the numbers as metrics of prometheus_client; safe in another thread."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        families: dict[str, Any] = {}
        for name, (labels, text) in COUNTERS.items():
            families[name] = CounterMetricFamily(f"outbox_{name}", text, labels=labels)
        for name, (labels, text) in HISTOGRAMS.items():
            families[name] = HistogramMetricFamily(f"outbox_{name}", text, labels=labels)
        for (name, *values), value in self.counters.copy().items():
            families[name].add_metric(values, value)
        for (name, *values), (total, *buckets) in self.histograms.copy().items():
            families[name].add_metric(values, _cumulated(buckets), total)
        return families.values()

    def _merge(
        self,
        counters: Iterable[tuple[Sequence[str], float]],
        histograms: Iterable[tuple[Sequence[str], Sequence[float]]],
    ) -> None:
        for name, value in counters:
            self._count(*name, by=value)
        for name, values in histograms:
            present = self._histogram(tuple(name))
            present[:] = [a + b for a, b in zip(present, values, strict=True)]

    def _count(self, *series: str, by: float = 1) -> None:
        self.counters[series] = self.counters.get(series, 0) + by

    def _measure(self, values: Sequence[float], *series: str) -> None:
        histogram = self._histogram(series)
        for value in values:
            if value > BOUNDS[0]:
                histogram[1 + bisect.bisect_left(BOUNDS, value)] += 1
            else:  # nearly all calls: no search
                histogram[1] += 1
        histogram[0] += sum(values)

    def _histogram(self, series: Series) -> list[float]:
        return self.histograms.setdefault(series, [0] * (len(BOUNDS) + 2))

    def _count_failure(self, sender: Any, **facts: Any) -> None:
        self._count("failed_attempts", sender.name)

    def _count_parked(self, sender: Any, **facts: Any) -> None:
        self._count("messages_parked", sender.name)


def _cumulated(buckets: Sequence[float]) -> list[tuple[str, float]]:
    shown: Mapping[str, float] = dict(
        zip([*map(str, map(float, BOUNDS)), "+Inf"], buckets, strict=True)
    )
    total, result = 0.0, []
    for bound, count in shown.items():
        total += count
        result.append((bound, total))
    return result
