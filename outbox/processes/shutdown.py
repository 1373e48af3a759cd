"""What ends a worker process: a signal, the end of its grace period, the death of its parent.

    running -> stop requested -> the current batch is done, or the grace period ends

A thread watches, because a handler may be in a call during which Python runs no signal handler.
A process that exits early closes its connection, and the server rolls the batch back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from .. import database
from ..consuming.in_flight import InFlight
from ..worker import Worker
from .exit_codes import ExitCode

logger = logging.getLogger("outbox.worker")

ORPHAN_GRACE = 2.0
"""Most seconds to finish the current batch after the death of the parent."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownWatcher(threading.Thread):
    """Calls `stop` at a stop signal or the death of the parent; exits after the grace period.

    `grace`: seconds until the process ends anyway, with exit code 5. `parent`: a file descriptor
    that reads end-of-file once the parent is gone; then a second signal means nothing. Without
    one a second signal ends the process at once. Use it as a context, in the main thread.
    """

    def __init__(
        self,
        stop: Callable[[], object],
        *,
        grace: float,
        parent: int | None = None,
        before_exit: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(name="outbox-shutdown", daemon=True)
        self.stop = stop
        self.grace = grace
        self.parent = parent
        self.before_exit = before_exit
        self._deadline: float | None = None
        self._inbox, self._outbox = os.pipe()
        os.set_blocking(self._outbox, False)

    def __enter__(self) -> ShutdownWatcher:
        self._handlers = {number: signal.signal(number, _wake) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._outbox, warn_on_full_buffer=False)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._outbox)
        self.join()
        os.close(self._inbox)

    def run(self) -> None:
        """Watch until the process is done."""
        watched = [self._inbox] if self.parent is None else [self._inbox, self.parent]
        while True:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                self._exit_now(ExitCode.GRACE, "the grace period has ended")
            readable = database.wait_readable(watched, left)
            if self.parent in readable:
                watched.remove(self.parent)
                self._request_stop(min(self.grace, ORPHAN_GRACE))
            if self._inbox in readable:
                numbers = os.read(self._inbox, 64)
                if not numbers:
                    return
                for number in numbers:
                    self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if self._deadline is None:
            self._request_stop(self.grace)
        elif self.parent is None:
            self._exit_now(128 + number, "a second stop signal arrived")

    def _request_stop(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        self.stop()

    def _exit_now(self, code: int, why: str) -> None:
        logger.warning("worker exits immediately (%s); the server rolls back its open batch", why)
        self.before_exit()
        logging.shutdown()
        os._exit(code)


def _wake(number: int, frame: FrameType | None) -> None:
    """The number arrives through the wakeup descriptor."""


@contextlib.contextmanager
def stop_on_signals(
    worker: Worker, grace: float, parent: int | None, record: InFlight | None
) -> Iterator[None]:
    """Let signals and the parent's death stop a worker, where this thread can receive signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
    elif os.name == "posix":
        before_exit = record.clear if record is not None else lambda: None
        with ShutdownWatcher(worker.stop, grace=grace, parent=parent, before_exit=before_exit):
            yield
    else:
        handlers = {number: signal.signal(number, lambda *_: worker.stop()) for number in SIGNALS}
        yield
        for number, handler in handlers.items():
            signal.signal(number, handler)
