"""The heartbeat of a worker process: each turn of the loop shows that there is progress.

It stops when a handler hangs or the database does not answer a statement. Then the modification
time of the heartbeat file gets old, which a liveness probe can check.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..consuming.in_flight import InFlight
from ..worker import Worker

TOUCH_SECONDS = 1.0
"""Between two touches of the heartbeat file, at least."""


class Heartbeat:
    """Ticks at each turn of a worker's loop.

    `record`: where turns are counted. `heartbeat_file`: touched about once a second.
    `max_memory`: megabytes above which the worker is stopped after its batch. `each_turn`: called,
    too.
    """

    def __init__(
        self,
        record: InFlight | None = None,
        *,
        heartbeat_file: Path | None = None,
        max_memory: int | None = None,
        each_turn: Callable[[], object] = lambda: None,
    ) -> None:
        self.record = record
        self.heartbeat_file = heartbeat_file
        self.max_memory = max_memory
        self.each_turn = each_turn
        self.exceeded_memory = False
        """Whether the worker was stopped for its memory."""
        self._touched_at = 0.0
        self._turned_at = time.monotonic()
        self._is_ready: Callable[[], bool] = bool

    def attach(self, worker: Worker) -> None:
        """Tick at each turn of this worker."""
        worker.each_turn = lambda: self.tick(worker)
        self._is_ready = lambda: worker.is_ready

    def quiet_seconds(self) -> float:
        """Return the seconds since the last turn of the loop."""
        return time.monotonic() - self._turned_at

    def is_ready(self) -> bool:
        """Return whether the worker can claim; safe in another thread."""
        return self._is_ready()

    def tick(self, worker: Worker) -> None:
        """Count a turn, touch the file, check the memory limit."""
        if self.record is not None:
            self.record.turn(worker.handled, worker.is_ready)
        now = self._turned_at = time.monotonic()
        self.each_turn()
        if self.heartbeat_file is not None and now - self._touched_at >= TOUCH_SECONDS:
            self.heartbeat_file.touch()
            self._touched_at = now
        if self.max_memory is not None and resident_megabytes() > self.max_memory:
            self.exceeded_memory = True
            worker.stop()


def resident_megabytes() -> float:
    """Return the resident memory of this process; its peak where the system reports only that."""
    try:
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (2**20 if sys.platform == "darwin" else 2**10)
