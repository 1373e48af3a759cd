"""The thread in which the asyncio clients of a process live, so that they answer heartbeats."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .sink import unavailable

T = TypeVar("T")

_lock = threading.Lock()
_running: dict[int, asyncio.AbstractEventLoop] = {}


def run(coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
    """Run a coroutine in the loop of this process; raises TimeoutError after `timeout` seconds."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise


def run_for_sink(coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
    """Run a sink's coroutine for at most three times `timeout` seconds, the limit of one request.

    Raises DestinationUnavailable for an error that does not say how many records were sent.
    """
    try:
        return run(coroutine, timeout * 3)
    except Exception as error:
        if hasattr(error, "sent"):
            raise
        raise unavailable(error) from error


def _loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process; a forked child does not inherit the thread."""
    with _lock:
        loop = _running.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="outbox-relays", daemon=True).start()
            _running[os.getpid()] = loop
        return loop
