"""Signals of the supervisor, read from a pipe: SIGTERM and SIGINT, and the end of a child."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from .. import database
from .shutdown import SIGNALS


@contextlib.contextmanager
def received_signals() -> Iterator[int | None]:
    """Yield a descriptor that receives the numbers of signals, SIGCHLD included.

    None outside the main thread, where no signal can be received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)
    numbers = (*SIGNALS, signal.SIGCHLD)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    try:
        yield inbox
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(inbox)
        os.close(outbox)


def wait_for_signals(inbox: int | None, seconds: float) -> list[int]:
    """Wait for some seconds, or until a signal arrives; return the stop signals that arrived."""
    if inbox is None:
        time.sleep(seconds)
        return []
    readable = database.wait_readable([inbox], seconds)
    numbers = os.read(inbox, 64) if readable else b""
    return [number for number in numbers if number in SIGNALS]
