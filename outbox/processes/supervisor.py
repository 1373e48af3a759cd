"""The supervisor: starts workers in processes of their own and keeps them going.

    started -> running -> dead: its message in hand counts as failed -> started again, after a delay

The workers are fresh interpreters that run the same command. They share nothing with the
supervisor but a few numbers in memory (`in_hand`) and a pipe that closes when it dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from django.db import DatabaseError, connections

from .. import database
from ..conf import log_alias
from ..consuming import crashes
from ..consuming import in_flight as in_hand
from ..consuming.in_flight import InHand, State
from .exit_codes import ExitCode
from .shutdown import SIGNALS

logger = logging.getLogger("outbox.supervisor")

TICK = 0.1
"""Seconds between two looks at the workers; a time limit is kept to that."""
FIRST_DELAY = 0.2
"""Seconds before a worker that died is started again; they double while none gets anything done."""
LONGEST_DELAY = 30.0
MOST_DRAIN_FAILURES = 10
"""Deaths in a row, without a message handled, after which a drain gives up."""
MARGIN = 1.0
"""Seconds beyond the grace in which a worker may still end itself."""


@dataclasses.dataclass(slots=True)
class Seat:
    """The place of one worker, whichever process has it."""

    number: int
    fd: int
    in_hand: InHand
    process: subprocess.Popen[bytes] | None = None
    lifeline: int = -1
    """Our end of the pipe that tells the process that we live."""
    start_at: float = 0.0
    failures: int = 0
    calls: int = 0
    since: float = 0.0
    """When `calls` changed last."""
    beats: int = 0
    turns: int = 0
    turned_at: float = dataclasses.field(default_factory=time.monotonic)
    """When the number of turns changed last, or the process was started."""
    ended_for: str = ""
    """Why we ended the process."""

    def start(self, command: Sequence[str], tallies: Path | None) -> None:
        """Start a process; the seat's numbers are about it from now on."""
        self.in_hand.begin()
        self.calls, self.beats, self.turns, self.ended_for = 0, 0, 0, ""
        self.turned_at = time.monotonic()
        file = tallies / f"worker-{self.number}" if tallies else ""
        theirs, self.lifeline = os.pipe()
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
        """Tell whether a handler is at work for longer than it may be."""
        if state.calls != self.calls:
            self.calls, self.since = state.calls, now
        is_limited = state.position > 0 and state.timeout > 0
        return is_limited and now - self.since > state.timeout / 1000

    def vacate(self) -> int:
        """Forget the process, which is dead, and return its exit code."""
        assert self.process is not None
        code = self.process.wait()
        os.close(self.lifeline)
        self.process = None
        return code


class Supervisor:
    """Runs `processes` workers, each by `command` in a process of its own.

    `using`: the database alias, for the failures of messages that killed a worker. `grace`:
    seconds that workers have to finish their batch when told to stop. `is_drain`: workers end
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
        self.seats: list[Seat] = []
        self._stop_by: float | None = None
        self._records: list[threading.Thread] = []
        for number in range(1, processes + 1):
            fd = in_hand.new_file()
            self.seats.append(Seat(number, fd, InHand(fd)))

    def run(self) -> int:
        """Keep the workers going until told to stop, or until all have drained; an exit code."""
        try:
            with _signals() as inbox:
                while self.seats:
                    for number in _wait(inbox):
                        self._hear(number)
                    for seat in list(self.seats):
                        self._look_at(seat, time.monotonic())
                    self._beat()
        finally:
            for seat in self.seats:
                seat.send(signal.SIGKILL)
            for record in self._records:
                record.join(MARGIN)
        return self.result

    def stop(self) -> None:
        """Tell the workers to finish the batch in hand and leave."""
        self._stop_by = time.monotonic() + self.grace + MARGIN
        for seat in self.seats:
            seat.send(signal.SIGTERM)

    def quiet_seconds(self) -> float:
        """Return the seconds since the last turn of the worker that has been quiet for longest."""
        now = time.monotonic()
        return max((now - seat.turned_at for seat in list(self.seats)), default=0.0)

    def is_ready(self) -> bool:
        """Tell whether every worker runs and can claim; safe in another thread."""
        seats = list(self.seats)
        is_up = all(seat.process and seat.in_hand.read().ready for seat in seats)
        return bool(seats) and is_up and self._stop_by is None

    def _hear(self, number: int) -> None:
        if self._stop_by is None:
            return self.stop()
        self.result = 128 + number
        for seat in self.seats:
            self._end(seat, "told twice to stop")

    def _end(self, seat: Seat, reason: str) -> None:
        seat.ended_for = reason
        seat.send(signal.SIGKILL)

    def _look_at(self, seat: Seat, now: float) -> None:
        if seat.process is None:
            if self._stop_by is not None:
                self._close(seat)
            elif now >= seat.start_at:
                self._start(seat)
            return
        state = seat.in_hand.read()
        if state.beats != seat.turns:
            seat.turns, seat.turned_at = state.beats, now
        if seat.process.poll() is not None:
            self._bury(seat, state)
        elif self._stop_by is not None and now > self._stop_by:
            self.result = self.result or ExitCode.GRACE
            self._end(seat, "did not finish within the grace period")
        elif seat.is_overdue(state, now) and not seat.ended_for:
            self._end(seat, f"timed out after {state.timeout / 1000:g} s")

    def _start(self, seat: Seat) -> None:
        try:
            seat.start(self.command, self.tallies)
        except OSError:
            logger.exception("worker %d could not be started", seat.number)
            seat.failures += 1
            self._plan(seat, ExitCode.ERROR)

    def _bury(self, seat: Seat, state: State) -> None:
        """Note how a worker ended, blame the message it had in hand, and plan its successor."""
        pid = seat.process.pid if seat.process else 0
        code = seat.vacate()
        reason = seat.ended_for or _reason(code)
        is_ours = self._stop_by is not None and bool(seat.ended_for)
        if state.position and not is_ours:
            self._blame(state, pid, reason)
        seat.failures = 0 if state.handled else seat.failures
        is_fine = code in (ExitCode.DONE, ExitCode.MEMORY, ExitCode.FAILED_CHECK)
        seat.failures += not is_fine
        self.deaths += not is_fine
        logger.log(
            logging.INFO if is_fine else logging.WARNING,
            "worker %d (pid %d) ended: %s",
            seat.number,
            pid,
            reason,
            extra={"worker": seat.number, "pid": pid, "exit_code": code},
        )
        self._plan(seat, code)

    def _plan(self, seat: Seat, code: int) -> None:
        if code == ExitCode.USAGE and self._stop_by is None:
            self.result = code
            self.stop()
        if self._stop_by is not None:
            if code == ExitCode.GRACE:
                self.result = self.result or code
            return self._close(seat)
        if self.is_drain and code in (ExitCode.DONE, ExitCode.FAILED_CHECK):
            self.result = self.result or code
            return self._close(seat)
        if self.is_drain and seat.failures >= MOST_DRAIN_FAILURES:
            self.result = ExitCode.ERROR
            return self._close(seat)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(seat.failures - 1, 10))
        seat.start_at = time.monotonic() + (delay if seat.failures else 0)

    def _close(self, seat: Seat) -> None:
        self.seats.remove(seat)
        os.close(seat.fd)

    def _blame(self, state: State, pid: int, reason: str) -> None:
        """Count a failed attempt of the message; the server may take a moment to free its row."""
        self._records = [thread for thread in self._records if thread.is_alive()]
        record = threading.Thread(target=self._record, args=(state, pid, reason), daemon=True)
        record.start()
        self._records.append(record)

    def _record(self, state: State, pid: int, reason: str) -> None:
        try:
            crashes.record_dead_process(
                state.cursor, state.position, reason, pid=pid, using=self.using
            )
        except DatabaseError:
            logger.exception(
                "the message at %d was in hand when a worker ended (%s); that is not recorded",
                state.position,
                reason,
                extra={"position": state.position},
            )
        finally:
            connections[self.using].close()

    def _beat(self) -> None:
        if self.heartbeat_file is None or not self.seats:
            return
        beats = [seat.in_hand.read().beats for seat in self.seats]
        if all(now != seat.beats for now, seat in zip(beats, self.seats, strict=True)):
            self.heartbeat_file.touch()
            for now, seat in zip(beats, self.seats, strict=True):
                seat.beats = now


def _reason(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextlib.contextmanager
def _signals() -> Iterator[int | None]:
    """Give a descriptor on which the numbers of signals arrive, the end of a child among them.

    None outside the main thread, where no signal can be received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)
    heard = (*SIGNALS, signal.SIGCHLD)
    handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
    wakeup = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    try:
        yield inbox
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(inbox)
        os.close(outbox)


def _wait(inbox: int | None) -> list[int]:
    """Wait a tick, or until a signal arrives; return the numbers of those to stop for."""
    if inbox is None:
        time.sleep(TICK)
        return []
    readable = database.wait_readable([inbox], TICK)
    numbers = os.read(inbox, 64) if readable else b""
    return [number for number in numbers if number in SIGNALS]
