"""The health of a worker over HTTP: /livez, /readyz, and /metrics with what it counts itself.

/livez   200 while the loop makes progress; 503 when its last turn is older than ?seconds=60
/readyz  200 while each worker has a session in which it can claim; 503 at start, during an
         outage, and when a stop is requested
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .http_server import HttpServer, Page, plain
from .tallies import Tallies

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger("outbox.monitoring")

QUIET_SECONDS = 60.0
"""Seconds without a turn of the loop after which a worker counts as dead, by default."""
METRICS = "prometheus_client"


class Watched(Protocol):
    """A worker's heartbeat, or a supervisor."""

    def quiet_seconds(self) -> float:
        """Return the seconds since the last turn of the loop."""

    def is_ready(self) -> bool:
        """Return whether it can claim."""


def can_count() -> bool:
    """Return whether the extra `metrics` is installed; without it nothing is counted."""
    return importlib.util.find_spec(METRICS) is not None


@contextlib.contextmanager
def served(address: tuple[str, int] | None, watched: Watched, metrics: Metrics) -> Iterator[None]:
    """Serve the health of a worker or a supervisor within the block; None: serve nothing.

    Raises OSError when the address cannot be had.
    """
    if address is None:
        yield
        return
    pages: dict[str, Callable[[Mapping[str, str]], Page]] = {
        "/livez": lambda query: _livez(watched, query),
        "/readyz": lambda _: plain(200, "ready") if watched.is_ready() else plain(503, "not ready"),
        "/metrics": lambda _: _metrics(metrics()),
    }
    server = HttpServer(address, pages)
    logger.info("health server listens at %s, pages: %s", server.url, " ".join(pages))
    try:
        yield
    finally:
        server.close()


@contextlib.contextmanager
def tallies_folder(is_wanted: bool) -> Iterator[Path | None]:
    """Give a folder for the tallies of several workers, for as long as the block."""
    if not (is_wanted and can_count()):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="outbox-tallies-") as name:
        yield Path(name)


class SupervisorMetrics:
    """What the workers of a supervisor count, and it itself: how many of them died, and the failed
    attempts that it records for them."""

    def __init__(self, folder: Path | None, deaths: Callable[[], int]) -> None:
        self.folder = folder
        self.deaths = deaths
        self.own = Tallies()
        if folder is not None:
            self.own.attach()

    def __call__(self) -> Iterable[Metric]:
        """Return the metrics."""
        from prometheus_client.core import CounterMetricFamily

        if self.folder is not None:
            yield from self.own.plus_files(self.folder).collect()
        yield CounterMetricFamily(
            "outbox_worker_deaths",
            "Worker processes that ended in another way than they should.",
            value=self.deaths(),
        )


Metrics = Callable[[], "Iterable[Metric]"]


def _livez(watched: Watched, query: Mapping[str, str]) -> Page:
    given = query.get("seconds", str(QUIET_SECONDS))
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        return plain(400, f"seconds={given} is not a number of seconds above 0")
    quiet = watched.quiet_seconds()
    if quiet > limit:
        return plain(503, f"no turn of the loop for {quiet:.1f} s")
    return plain(200, f"the last turn of the loop was {quiet:.1f} s ago")


def _metrics(metrics: Iterable[Metric]) -> Page:
    if not can_count():
        return plain(501, "install the extra: pip install 'django-pgoutbox[metrics]'")
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class _Fixed(Collector):
        def collect(self) -> Iterable[Metric]:
            return metrics

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed())
    return 200, CONTENT_TYPE_LATEST, generate_latest(registry)


def tallies_of_worker(file: Path | None, is_served: bool) -> Tallies | None:
    """Return the tallies of this process, attached; None where nothing reads them."""
    if not ((file or is_served) and can_count()):
        return None
    own = Tallies(file)
    own.attach()
    return own
