"""Which message a worker process is handling, in memory that another process can read.

A worker that dies in a handler cannot record the failure. So it stores the position of the message
in shared memory before each call of a handler; the supervisor, or the next worker, reads it there.
Recording is off until `record_to` turns it on.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

Record = Callable[[int, float | None], None]

SIZE = 64
CURSOR, POSITION, TIMEOUT, CALLS, TURNS, HANDLED, PID, READY = range(8)


class State(NamedTuple):
    """The numbers as they are now."""

    cursor: int
    position: int
    """Of the message in a handler, the first one for a batch handler; 0 for none."""
    timeout: int
    """Milliseconds that the handler may take; 0 for no limit."""
    calls: int
    """Changes with every call of a handler."""
    turns: int
    """Changes with every turn of the worker's loop."""
    handled: int
    """Messages moved past since the process began."""
    pid: int
    ready: int
    """1 while the worker has a session in which it can claim, and no stop was requested."""


class InFlight:
    """The shared numbers; one process writes them. `fd`: a file open for reading and writing."""

    def __init__(self, fd: int) -> None:
        if os.fstat(fd).st_size < SIZE:
            os.ftruncate(fd, SIZE)
        self._memory = mmap.mmap(fd, SIZE)
        self._cells = memoryview(self._memory).cast("q")

    def read(self) -> State:
        """Return what is there now."""
        return State(*self._cells)

    def begin(self) -> None:
        """Erase the numbers of the previous process; record this process from now on."""
        self._memory[:] = bytes(SIZE)
        self._cells[PID] = os.getpid()

    def clear(self) -> None:
        """Record that no message is being handled."""
        self._cells[POSITION] = 0

    def turn(self, handled: int, is_ready: bool) -> None:
        """Record a turn of the worker's loop."""
        self._cells[TURNS] += 1
        self._cells[HANDLED] = handled
        self._cells[READY] = is_ready

    def recorder(self, cursor_id: int) -> Record:
        """Return the function that records a call for a message of a cursor; position 0 ends it."""
        cells = self._cells
        cells[CURSOR] = cursor_id

        def record(position: int, timeout: float | None) -> None:
            cells[POSITION] = position
            cells[TIMEOUT] = int(timeout * 1000) if timeout else 0
            cells[CALLS] += 1

        return record


def new_file() -> int:
    """Return a descriptor of a nameless file, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("outbox")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_own: InFlight | None = None


def record_to(fd: int) -> InFlight:
    """Record in a file which message this process handles; keep what the file holds now."""
    global _own
    _own = InFlight(fd)
    return _own


def recorder(cursor_id: int) -> Record:
    """Return the function that `handlers.run` calls with each message and its time limit."""
    return no_record if _own is None else _own.recorder(cursor_id)


def no_record(position: int, timeout: float | None) -> None:
    """Recording is off."""
