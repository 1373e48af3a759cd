"""Batches: the rows of one claim, what became of each, and what that does to the cursor.

A row is handled, skipped (the group has no handler), given up (parked or skipped) or to be tried
again, which ends the batch. A row whose key has an earlier parked message is put behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..groups import ConsumerGroup
from ..message_log import Row
from . import failures, parked_messages
from .cursors import Advance, Claim
from .failures import Failure


@dataclasses.dataclass(slots=True)
class Batch:
    """The rows of one claim and what became of them."""

    group: ConsumerGroup
    claim: Claim
    rows: Sequence[Row]
    until: int
    """Where the range stands when all rows are done."""
    using: str
    handled: int = 0
    """How many rows are done, from the first one on; skipped and parked ones included."""
    skipped: int = 0
    """How many of these have no handler, or were given up and skipped."""
    parked: int = 0
    """How many of these were given up and parked."""
    behind: list[int] = dataclasses.field(default_factory=list)
    """Positions taken out of the rows because an earlier message of their key is parked."""
    failures: list[Failure] = dataclasses.field(default_factory=list)
    """Of the messages that were given up; and of the next one, when it is to be tried again."""
    needs_savepoint: bool = False
    """What was done before it in its transaction must not be undone with it."""
    check_constraints: bool = False
    """Check deferred constraints before a part of the batch is kept, not at its commit."""

    @property
    def is_leased(self) -> bool:
        """Whether its handlers run outside a transaction."""
        return self.group.delivery == "at_least_once"

    @property
    def is_single(self) -> bool:
        """Whether it is one message of which nothing must be kept when it fails.

        Then the transaction of the claim is rolled back, not a savepoint: a round trip less.
        """
        keeps_more = self.needs_savepoint or self.check_constraints or self.claim.parked
        return len(self.rows) == 1 and not keeps_more and not self.is_leased

    @property
    def failure(self) -> Failure | None:
        """Why the batch ended before its next row, which is to be tried again."""
        last = self.failures[-1] if self.failures else None
        return last if last is not None and last.verdict == "retry" else None

    @property
    def is_open(self) -> bool:
        """Whether there are rows to handle now."""
        return self.handled < len(self.rows) and self.failure is None

    def prepare(self) -> None:
        """Hold back what is parked behind others; end before a message that failed before."""
        claim = self.claim
        if claim.parked:
            keys = [row[1] for row in self.rows]
            self._hold_back(parked_messages.blocked_keys(claim, keys, self.using))
        if claim.attempts:
            positions = [row[0] for row in self.rows]
            if claim.failed_position in positions[1:]:
                self.rows = self.rows[: positions.index(claim.failed_position)]
                self.until = claim.failed_position - 1

    def fail(self, error: Exception) -> None:
        """Decide about the next row, which failed alone; move past it when it is given up."""
        claim, row = self.claim, self.rows[self.handled]
        seconds = claim.failing_seconds_at(row[0])
        failure = failures.judge(self.group, claim.message(row), error, seconds)
        self.failures.append(failure)
        if failure.verdict == "retry":
            return
        self.handled += 1
        self.skipped += failure.verdict == "skip"
        self.parked += failure.verdict == "park"
        if failure.verdict == "park" and row[1] is not None:
            self._hold_back({row[1]})

    def outcome(self) -> Advance:
        """Return the change of the cursor: how far it moves, and when it goes on.

        Without the messages parked behind others, which are counted when they are stored.
        """
        claim, failure = self.claim, self.failure
        is_done = self.handled == len(self.rows)
        position = self.until if is_done else self.rows[self.handled][0] - 1
        processed = self.handled - self.skipped - self.parked
        change = Advance(position, processed, self.skipped, self.parked)
        if failure is not None:
            change.attempts = failure.message.attempt
            change.failed_position = failure.message.position
            change.retry_delay = failure.retry_delay
            change.last_error = failure.summary
        elif claim.failed_position is not None and claim.failed_position > position:
            change.attempts = claim.attempts
            change.failed_position = claim.failed_position
            change.last_error = None
        return change

    def _hold_back(self, keys: set[str]) -> None:
        """Take the rows of blocked keys out of those that are not handled yet."""
        done, rest = self.rows[: self.handled], self.rows[self.handled :]
        self.behind += [row[0] for row in rest if row[1] in keys]
        self.rows = [*done, *(row for row in rest if row[1] not in keys)]
