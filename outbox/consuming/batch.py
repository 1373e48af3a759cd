"""Batches: the rows of one claim, and what became of each.

A row is handled, skipped (the group has no handler), given up (parked or skipped), or waits for a
retry, which ends the batch. A row whose key has an earlier parked message is parked behind it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connections

from .. import database, outages
from ..conf import settings
from ..exceptions import ConnectionLost
from ..groups import ConsumerGroup
from ..message_log import Row
from ..outages import Meaning
from . import failures, handlers, in_flight, parked_messages
from .cursors import Claim
from .failures import Failure
from .handlers import AfterCall, Done, Failed
from .outcomes import Outcome


@dataclasses.dataclass(slots=True)
class Batch:
    """The rows of one claim and what became of them."""

    group: ConsumerGroup
    claim: Claim
    rows: Sequence[Row]
    end_position: int
    """Where the range stands when all rows are done."""
    using: str
    is_stopping: Callable[[], bool] = bool
    """Returns whether the worker was asked to stop."""
    is_careful: bool = False
    """Whether each message is checked on its own, because the batch failed as a whole before."""
    handled: int = 0
    """How many rows are done, from the first one on; skipped and parked ones included."""
    skipped: int = 0
    """How many of these have no handler."""
    blocked: list[int] = dataclasses.field(default_factory=list)
    """Positions taken out of the rows because an earlier message of their key is parked."""
    failures: list[Failure] = dataclasses.field(default_factory=list)
    """Of messages that the group gave up on, and of the next one if it waits for a retry."""
    suspects: tuple[int, int] = (0, 0)
    """rows[start:stop] of which one failed, while it is being searched for."""
    undone: Failed | None = None
    """The call that failed, when the transaction of the claim must be rolled back with it."""
    session: Any = None
    """The driver's connection that holds the claim."""
    ends_at: float = 0.0
    """When the time of the batch is up, by `time.monotonic()`."""
    deadline: float = 0.0
    """The same, later while a failing message is searched for."""
    began_at: float = 0.0
    claimed: tuple[Sequence[Row], int] = ((), 0)
    """The rows and the end position before any row was taken out."""

    def __post_init__(self) -> None:
        self.claimed = self.rows, self.end_position
        self.session = connections[self.using].connection
        self.began_at = time.monotonic()
        self.ends_at = self.deadline = self.began_at + settings().batch_seconds

    @property
    def delivery(self) -> str:
        """Which module handles the batch."""
        return self.group.delivery

    @property
    def is_single(self) -> bool:
        """Whether it is one message of which nothing must be kept when it fails.

        Then the transaction of the claim is rolled back, not a savepoint: a round trip less.
        """
        return len(self.rows) == 1 and not (self.is_careful or self.claim.parked)

    @property
    def is_open(self) -> bool:
        """Whether there are rows to handle now."""
        is_waiting = bool(self.failures) and self.failures[-1].verdict in ("retry", "wait")
        return self.handled < len(self.rows) and not is_waiting

    @property
    def is_out_of_time(self) -> bool:
        """Whether the batch ends here and leaves the other rows to the next one."""
        return time.monotonic() >= self.deadline

    def prepare(self) -> None:
        """Take a message that failed before alone, after those before it; take out what is parked.

        The cursor row counts the attempts at one message: were it tried with others, the failure of
        one of these would let its count begin anew, without an end. Only after the first failure in
        a batch handler any of its messages may be the cause: they are tried one by one.
        """
        claim = self.claim
        if claim.attempts:
            positions = [row[0] for row in self.rows]
            if claim.failed_position in positions:
                stop = positions.index(claim.failed_position)
                self.is_careful |= stop == 0 and claim.attempts == 1 and self._is_together()
                stop = stop or (len(positions) if self.is_careful else 1)
                if stop < len(positions):
                    self.rows, self.end_position = self.rows[:stop], positions[stop] - 1
        if claim.parked:
            keys = [row[1] for row in self.rows]
            self._block(parked_messages.blocked_keys(claim, keys, self.using))

    def run(self, after_call: AfterCall) -> Done | Failed:
        """Call the handlers for the next rows; `Failed` counts from the first row of the batch."""
        message_of, start = self.claim.message, self.handled
        is_suspect = self.claim.attempts_at(self.rows[0][0]) > 0
        result = handlers.run(
            self.group,
            [message_of(row) for row in self.rows[start : self._next_stop()]],
            after_call,
            in_flight.recorder(self.claim.id),
            deadline=self.deadline,
            most_together=1 if is_suspect else None,
        )
        return result if isinstance(result, Done) else result.moved(start)

    def apply(self, result: Done | Failed) -> None:
        """Apply the result of `run`: go past it, narrow the search, or decide about one row."""
        if isinstance(result, Done):
            self.handled += result.count
            self.skipped += result.skipped
        elif result.stop > self.handled + 1:
            self.suspects = result.start, result.stop
            self.deadline = time.monotonic() + settings().batch_seconds
        else:
            is_suspect = self.claim.attempts_at(self.rows[self.handled][0]) > 0
            self.fail(result.cause)
            # What was given up is committed before another message can undo it.
            self.suspects, self.deadline = (0, 0), 0.0 if is_suspect else self.ends_at

    def fail(self, error: BaseException) -> None:
        """Decide about the next row, which failed alone; move past it when it is given up."""
        claim, row = self.claim, self.rows[self.handled]
        seconds = claim.failing_seconds_at(row[0])
        failure = failures.decide(self.group, claim.message(row), error, seconds)
        self.failures.append(failure)
        if failure.verdict in ("park", "skip"):
            self.handled += 1
        if failure.verdict == "park" and row[1] is not None:
            self._block({row[1]})

    def outcome(self) -> Outcome:
        """Return what became of the batch, for the cursor row."""
        is_done = self.handled == len(self.rows)
        position = self.end_position if is_done else self.rows[self.handled][0] - 1
        blocked = [each for each in self.blocked if each <= position]
        given_up = sum(failure.verdict in ("park", "skip") for failure in self.failures)
        processed = self.handled - self.skipped - given_up
        return Outcome(self.claim, position, processed, self.skipped, self.failures, blocked)

    def part(self, rows: Sequence[Row], end_position: int) -> Batch:
        """Return a batch of some of the rows, of the same claim."""
        return Batch(self.group, self.claim, rows, end_position, self.using)

    def again(self) -> Batch:
        """Return a batch of the same rows, those included that were taken out of this one."""
        return self.part(*self.claimed)

    def raise_if_lost(self, error: BaseException) -> None:
        """Raise ConnectionLost when the session that made the claim has ended, or is of no use.

        A server that lacks resources is of use: the range waits, others go on.
        """
        session = connections[self.using].connection
        is_gone = session is not self.session or database.is_lost(session)
        lacks = database.sqlstate(error)[:2] in database.LACKS_RESOURCES
        is_outage = outages.meaning(error, self.using, self.session) is Meaning.OUTAGE
        if is_gone or (is_outage and not lacks):
            raise ConnectionLost(str(error)) from error

    def _next_stop(self) -> int:
        """Return where the next part ends: before, among or after the suspects.

        Of rows 0 to 7 a call for 2 to 5 failed. The parts then end at 2, which is kept; at 4, half
        of the suspects; if that fails at 3; and so on, until the failing row is alone in its part.
        """
        handled, (first, last) = self.handled, self.suspects
        if self.group.savepoint_per_message or self.is_careful:
            return handled + 1
        if last <= handled:
            return len(self.rows)
        return first if first > handled else handled + max(1, (last - handled) // 2)

    def _is_together(self) -> bool:
        """Return whether a batch handler takes the first row with others."""
        route = self.group.routes(self.claim.channel).get(self.rows[0][2])
        return route is not None and route.is_batch

    def _block(self, keys: set[str]) -> None:
        """Take the rows of blocked keys out of those that are not handled yet."""
        done, rest = self.rows[: self.handled], self.rows[self.handled :]
        self.blocked += [row[0] for row in rest if row[1] in keys]
        self.rows = [*done, *(row for row in rest if row[1] not in keys)]
