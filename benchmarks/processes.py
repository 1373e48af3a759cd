"""Other processes that listen, consume and publish while a benchmark measures."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator

from django.db import connections

import outbox
from outbox.consuming.notifications import Wakeups
from outbox.worker import Worker

fork = multiprocessing.get_context("fork")


@contextlib.contextmanager
def beside(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Call the target in another process meanwhile, and end that with SIGTERM."""
    connections.close_all()
    process = fork.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def work(group: outbox.ConsumerGroup, listen: bool) -> None:
    """Let a worker handle a group's messages until SIGTERM."""
    worker = Worker([group], wakeups=Wakeups([group], "default", listen=listen))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()
