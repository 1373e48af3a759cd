"""The state of the groups and of the log, in the text format of Prometheus.

One exporter reads the state of a database for all of its workers; what a worker counts itself is
in `tallies`. A scrape sends a fixed number of statements, and the number of series depends on the
number of groups only. Needs the extra `metrics`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from django.db import Error, connections
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import groups
from ..conf import log_alias
from ..exceptions import OutboxError
from ..operations import status
from ..operations.range_status import SEVERITY
from ..operations.sessions import oldest_snapshot, see_horizon
from ..retention import segments

logger = logging.getLogger("outbox.monitoring")

WAIT_SECONDS = 10.0
"""For which a scrape waits for the one before it."""

GROUP_GAUGES = {
    "lag_messages": "Messages not handled yet.",
    "lag_is_lower_bound": "Whether there may be more of them than were counted.",
    "lag_seconds": "Age of the oldest message not handled yet, in seconds.",
    "parked_messages": "Messages that the group gave up on, and those behind them.",
    "workers": "Connected sessions that work for the group.",
    "failed_attempts": "Failed attempts of the message at which the group waits.",
    "last_commit_timestamp_seconds": "When the group last moved past something.",
}

_scrape = threading.Lock()


class DatabaseCollector(Collector):
    """Reads the state of one log at each scrape; `using`: the alias of its database."""

    def __init__(self, using: str | None = None) -> None:
        self.using = log_alias(using)

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering a collector does not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give the metrics; only `outbox_up`, with 0, when the database does not answer."""
        began = time.monotonic()
        found: list[Metric] = []
        try:
            found += _groups(self.using)
            found += _log(self.using)
        except (Error, OutboxError) as error:
            logger.warning(
                "metrics: the state of the log could not be read: %s", str(error).strip()
            )
            found = []
        yield _gauge(
            "up", "Whether the state of the log could be read (1) or not (0).", bool(found)
        )
        yield _gauge(
            "exporter_seconds", "Seconds that reading the state took.", time.monotonic() - began
        )
        yield from found


def text(using: str | None = None) -> bytes:
    """Return the state of a log in Prometheus's text format; one scrape at a time.

    Raises TimeoutError when the scrape before it takes too long.
    """
    if not _scrape.acquire(timeout=WAIT_SECONDS):
        raise TimeoutError(f"the scrape before this one takes longer than {WAIT_SECONDS:g} s")
    try:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(DatabaseCollector(using))
        return generate_latest(registry)
    finally:
        _scrape.release()


def page(using: str | None = None) -> tuple[int, str, bytes]:
    """Return status, content type and body of a scrape; for a server with a thread per request."""
    try:
        return 200, CONTENT_TYPE_LATEST, text(using)
    except TimeoutError as error:
        return 503, "text/plain; charset=utf-8", f"{error}\n".encode()
    finally:
        connections.close_all()


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape by a view: `path("metrics", exporter.metrics)`.

    It shows names of groups and no payloads, keys or errors; show it to Prometheus alone.
    """
    try:
        return HttpResponse(text(), content_type=CONTENT_TYPE_LATEST)
    except TimeoutError as error:
        return HttpResponse(f"{error}\n", status=503, content_type="text/plain; charset=utf-8")


def _groups(using: str) -> list[Metric]:
    states = status.list_groups(using)
    gauges = {
        name: GaugeMetricFamily(f"outbox_group_{name}", text, labels=["group"])
        for name, text in GROUP_GAUGES.items()
    }
    processed = CounterMetricFamily(
        "outbox_group_processed_messages",
        "Messages handled since the last reset of the group.",
        labels=["group"],
    )
    which = GaugeMetricFamily(
        "outbox_group_status",
        "1 for the status that the group has, 0 for the others.",
        labels=["group", "status"],
    )
    for state in states:
        values = {
            "lag_messages": state.lag,
            "lag_is_lower_bound": state.lag_is_lower_bound,
            "lag_seconds": state.lag_seconds,
            "parked_messages": state.parked,
            "workers": state.workers,
            "failed_attempts": state.attempts,
            "last_commit_timestamp_seconds": (
                state.last_commit.timestamp() if state.last_commit else 0
            ),
        }
        for name, value in values.items():
            gauges[name].add_metric([state.group], float(value))
        processed.add_metric([state.group], state.processed)
        _add_status(which, state.group, state.status)
    known = {state.group for state in states}
    for group in groups.all_groups():
        if group.name not in known:  # no worker has ever run for it
            gauges["workers"].add_metric([group.name], 0)
            _add_status(which, group.name, "stopped")
    return [which, *gauges.values(), processed]


def _add_status(family: GaugeMetricFamily, group: str, current: str) -> None:
    for each in SEVERITY:
        family.add_metric([group, each], each == current)


def _log(using: str) -> list[Metric]:
    horizon, present = see_horizon(using), segments.list_segments(using)
    snapshot = oldest_snapshot(using)
    held = horizon.held_by
    drawn = CounterMetricFamily(
        "outbox_positions",
        "Positions allocated so far, in all channels; those of rolled-back transactions count.",
        value=horizon.last_position,
    )
    return [
        drawn,
        _gauge(
            "horizon_held_seconds",
            "Age of the transaction that holds the horizon back, in seconds; 0 when none does.",
            held.seconds if held else 0,
        ),
        _gauge(
            "horizon_held_positions",
            "Positions above the horizon: no group can read them yet.",
            horizon.last_position - horizon.horizon,
        ),
        _gauge("segments", "Segments of the log.", len(present)),
        _gauge(
            "segments_ahead",
            "Segments ahead of the last position, empty.",
            segments.count_ahead(present),
        ),
        _gauge(
            "default_segment_used",
            "Whether the default segment holds messages, because a segment was missing.",
            segments.default_has_rows(using),
        ),
        _gauge("log_bytes", "Size of the log with its indexes.", sum(s.bytes for s in present)),
        _gauge(
            "oldest_snapshot_seconds",
            "Age of the transaction with the oldest snapshot: dead rows since then stay.",
            snapshot.seconds if snapshot else 0,
        ),
    ]


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"outbox_{name}", text, value=float(value))
