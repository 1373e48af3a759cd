"""The supervisor: starts workers as child processes and restarts those that die.

    started -> running -> dead: its message counts as failed -> restarted, after a delay

The workers are new interpreters that run the same command. They share with the supervisor only a
few numbers in memory (`in_flight`) and a pipe that closes when the supervisor dies.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from django.db import DatabaseError, connections

from ..conf import log_alias
from ..consuming import crashes, in_flight
from ..consuming.in_flight import InFlight, State
from .exit_codes import ExitCode
from .stop_signals import received_signals, wait_for_signals

logger = logging.getLogger("outbox.supervisor")

TICK = 0.1
"""Seconds between two checks of the workers; the precision of time limits."""
FIRST_DELAY = 0.2
"""Seconds before a dead worker is restarted; they double while it handles no message."""
LONGEST_DELAY = 30.0
MOST_DRAIN_FAILURES = 10
"""A drain fails after this many deaths in a row without a handled message."""
MARGIN = 1.0
"""Seconds after the grace period before the supervisor kills a worker."""


@dataclasses.dataclass(slots=True)
class Child:
    """One worker number, and the process that runs as it now."""

    number: int
    fd: int
    in_flight: InFlight
    process: subprocess.Popen[bytes] | None = None
    alive_pipe: int = -1
    """The supervisor's end of the pipe; the worker reads end-of-file when the supervisor dies."""
    start_at: float = 0.0
    failures: int = 0
    calls: int = 0
    since: float = 0.0
    """When `calls` changed last."""
    touched_at_turn: int = 0
    """The number of turns when the heartbeat file was touched last."""
    turns: int = 0
    turned_at: float = dataclasses.field(default_factory=time.monotonic)
    """When the number of turns changed last, or the process was started."""
    ended_for: str = ""
    """Why we ended the process."""

    def start(self, command: Sequence[str], tallies: Path | None) -> None:
        """Start a process and record its numbers."""
        self.in_flight.begin()
        self.calls, self.touched_at_turn, self.turns, self.ended_for = 0, 0, 0, ""
        self.turned_at = time.monotonic()
        file = tallies / f"worker-{self.number}" if tallies else ""
        theirs, self.alive_pipe = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*command, "--supervised", f"{theirs},{self.fd},{file}"],
                pass_fds=(theirs, self.fd),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        finally:
            os.close(theirs)

    def send(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None:
            self.process.send_signal(number)

    def is_overdue(self, state: State, now: float) -> bool:
        """Return whether a handler runs for longer than its timeout."""
        if state.calls != self.calls:
            self.calls, self.since = state.calls, now
        is_limited = state.position > 0 and state.timeout > 0
        return is_limited and now - self.since > state.timeout / 1000

    def reap(self) -> int:
        """Collect the dead process and return its exit code."""
        assert self.process is not None
        code = self.process.wait()
        os.close(self.alive_pipe)
        self.process = None
        return code


class Supervisor:
    """Runs `processes` workers, each by `command` in a process of its own.

    `using`: the database alias, for the failures of messages that killed a worker. `grace`:
    seconds that workers have to finish their batch after a stop signal. `is_drain`: workers end
    by themselves. `heartbeat_file`: touched while all workers make progress. `tallies`: a folder
    where each worker keeps what it counts in a file, which its successor goes on with.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        using: str | None = None,
        grace: float = 30.0,
        is_drain: bool = False,
        heartbeat_file: Path | None = None,
        tallies: Path | None = None,
    ) -> None:
        using = log_alias(using)
        self.command = list(command)
        self.using = using
        self.grace = grace
        self.is_drain = is_drain
        self.heartbeat_file = heartbeat_file
        self.tallies = tallies
        self.deaths = 0
        """How many workers ended in another way than they should."""
        self.result: int = ExitCode.DONE
        self.children: list[Child] = []
        self._stop_by: float | None = None
        self._records: list[threading.Thread] = []
        for number in range(1, processes + 1):
            fd = in_flight.new_file()
            self.children.append(Child(number, fd, InFlight(fd)))

    def run(self) -> int:
        """Run the workers until a stop signal, or until all have drained; return an exit code."""
        try:
            with received_signals() as inbox:
                while self.children:
                    for number in wait_for_signals(inbox, TICK):
                        self._on_signal(number)
                    for child in list(self.children):
                        self._poll(child, time.monotonic())
                    self._touch_heartbeat()
        finally:
            for child in self.children:
                child.send(signal.SIGKILL)
            for record in self._records:
                record.join(MARGIN)
        return self.result

    def stop(self) -> None:
        """Send SIGTERM: the workers finish their batch and exit."""
        self._stop_by = time.monotonic() + self.grace + MARGIN
        for child in self.children:
            child.send(signal.SIGTERM)

    def quiet_seconds(self) -> float:
        """Return the seconds since the last turn of the worker that has been quiet for longest."""
        now = time.monotonic()
        return max((now - child.turned_at for child in list(self.children)), default=0.0)

    def is_ready(self) -> bool:
        """Return whether every worker runs and can claim; safe in another thread."""
        children = list(self.children)
        is_up = all(child.process and child.in_flight.read().ready for child in children)
        return bool(children) and is_up and self._stop_by is None

    def _on_signal(self, number: int) -> None:
        if self._stop_by is None:
            return self.stop()
        self.result = 128 + number
        for child in self.children:
            self._end(child, "killed by a second stop signal")

    def _end(self, child: Child, reason: str) -> None:
        child.ended_for = reason
        child.send(signal.SIGKILL)

    def _poll(self, child: Child, now: float) -> None:
        if child.process is None:
            if self._stop_by is not None:
                self._close(child)
            elif now >= child.start_at:
                self._start(child)
            return
        state = child.in_flight.read()
        if state.turns != child.turns:
            child.turns, child.turned_at = state.turns, now
        if child.process.poll() is not None:
            self._on_exit(child, state)
        elif self._stop_by is not None and now > self._stop_by:
            self.result = self.result or ExitCode.GRACE
            self._end(child, "killed: it did not finish within the grace period")
        elif child.is_overdue(state, now) and not child.ended_for:
            self._end(child, f"the handler timed out after {state.timeout / 1000:g} s")

    def _start(self, child: Child) -> None:
        try:
            child.start(self.command, self.tallies)
        except OSError:
            logger.exception("worker %d could not be started", child.number)
            child.failures += 1
            self._plan(child, ExitCode.ERROR)

    def _on_exit(self, child: Child, state: State) -> None:
        """Log how a worker ended, record a failed attempt of its message, and plan the restart."""
        pid = child.process.pid if child.process else 0
        code = child.reap()
        reason = child.ended_for or _reason(code)
        is_ours = self._stop_by is not None and bool(child.ended_for)
        if state.position and not is_ours:
            self._record_crash(state, pid, reason)
        child.failures = 0 if state.handled else child.failures
        is_fine = code in (ExitCode.DONE, ExitCode.MEMORY, ExitCode.FAILED_CHECK)
        child.failures += not is_fine
        self.deaths += not is_fine
        logger.log(
            logging.INFO if is_fine else logging.WARNING,
            "worker %d (pid %d) ended: %s",
            child.number,
            pid,
            reason,
            extra={"worker": child.number, "pid": pid, "exit_code": code},
        )
        self._plan(child, code)

    def _plan(self, child: Child, code: int) -> None:
        if code == ExitCode.USAGE and self._stop_by is None:
            self.result = code
            self.stop()
        if self._stop_by is not None:
            if code == ExitCode.GRACE:
                self.result = self.result or code
            return self._close(child)
        if self.is_drain and code in (ExitCode.DONE, ExitCode.FAILED_CHECK):
            self.result = self.result or code
            return self._close(child)
        if self.is_drain and child.failures >= MOST_DRAIN_FAILURES:
            self.result = ExitCode.ERROR
            return self._close(child)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(child.failures - 1, 10))
        child.start_at = time.monotonic() + (delay if child.failures else 0)

    def _close(self, child: Child) -> None:
        self.children.remove(child)
        os.close(child.fd)

    def _record_crash(self, state: State, pid: int, reason: str) -> None:
        """Record a failed attempt, in a thread: the server may hold the row lock for a moment."""
        self._records = [thread for thread in self._records if thread.is_alive()]
        record = threading.Thread(target=self._write_record, args=(state, pid, reason), daemon=True)
        record.start()
        self._records.append(record)

    def _write_record(self, state: State, pid: int, reason: str) -> None:
        try:
            crashes.record_dead_process(
                state.cursor, state.position, reason, pid=pid, using=self.using
            )
        except DatabaseError:
            logger.exception(
                "the failed attempt of the message at position %d could not be recorded (%s)",
                state.position,
                reason,
                extra={"position": state.position},
            )
        finally:
            connections[self.using].close()

    def _touch_heartbeat(self) -> None:
        if self.heartbeat_file is None or not self.children:
            return
        turns = [child.in_flight.read().turns for child in self.children]
        if all(
            now != child.touched_at_turn for now, child in zip(turns, self.children, strict=True)
        ):
            self.heartbeat_file.touch()
            for now, child in zip(turns, self.children, strict=True):
                child.touched_at_turn = now


def _reason(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
