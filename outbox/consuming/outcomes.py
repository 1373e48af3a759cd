"""Outcomes: the results of messages of a range, and the one writer of them to its cursor row.

A batch, a dead process, a lost session and a redrive each make an `Outcome`; `write` turns it into
the parked messages, the reports of the failures, and one update of the cursor row. The update is
refused when another session changed the row since it was locked: nothing moves a cursor back.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

from django.db import connections, transaction

from ..exceptions import StaleClaim
from ..sql import array, run_statement
from . import cursors, failures, parked_messages
from .cursors import Claim
from .failures import Failure

logger = logging.getLogger("outbox.consuming")

RATE_SECONDS = 30.0
"""Time constant of a range's average rate."""
LEAST_RATE = 1e-6
"""Messages per second below which the rate counts as 0."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """What became of messages of one range."""

    claim: Claim
    position: int
    """Where the range stands now."""
    processed: int = 0
    skipped: int = 0
    """Messages without a handler."""
    failures: Sequence[Failure] = ()
    """Of messages that the group gave up on; the last one may wait for a retry."""
    blocked: Sequence[int] = ()
    """Positions parked because an earlier message of their key is parked."""
    released: int | None = None
    """The position of a parked message that was handled or dropped; nothing else changes then."""
    error: BaseException | None = None
    """An error that no message caused: the range waits."""

    @property
    def pending(self) -> Failure | None:
        """The failure of the message at which the range waits, if it waits."""
        last = self.failures[-1] if self.failures else None
        return last if last is not None and last.verdict in ("retry", "wait") else None

    @property
    def parked(self) -> int:
        """How many messages are parked."""
        return len(self.blocked) + self._given_up("park")

    @property
    def count(self) -> int:
        """How many messages the range moved past."""
        return self.processed + self.skipped + self._given_up("skip") + self.parked

    def _given_up(self, verdict: str) -> int:
        return sum(failure.verdict == verdict for failure in self.failures)

    def counters(self) -> dict[str, Any]:
        """Return how the counters of the cursor row change."""
        seconds = max(self.claim.idle_seconds, 0.001)
        kept = math.exp(-seconds / RATE_SECONDS)
        rate = self.claim.rate * kept + self.count * (1 - kept) / seconds
        return {
            "position": self.position,
            "processed": self.processed,
            "skipped": self.skipped + self._given_up("skip"),
            "parked": self.parked,
            # PostgreSQL refuses arithmetic that underflows: store no number that comes near to it.
            "rate": rate if rate >= LEAST_RATE else 0.0,
        }

    def schedule(self) -> dict[str, Any]:
        """Return at which message the range waits, how often it failed, and when it is tried again.

        A failure recorded earlier, of a message further on, stays recorded.
        """
        claim, pending = self.claim, self.pending
        ahead = claim.failed_position is not None and claim.failed_position > self.position
        schedule: dict[str, Any] = {
            "attempts": claim.attempts if ahead else 0,
            "failed_position": claim.failed_position if ahead else None,
            "retry_delay": None,
            "last_error": None if ahead else "",
        }
        if pending is not None:
            schedule["attempts"] = pending.attempts
            schedule["failed_position"] = pending.message.position
            schedule["retry_delay"] = pending.retry_delay
            schedule["last_error"] = pending.summary
        elif self.error is not None:
            place = (claim.failed_position if ahead else None) or claim.position
            schedule["failed_position"] = place
            schedule["retry_delay"] = failures.unblamed_delay(claim.failing_seconds_at(place))
            schedule["last_error"] = failures.error_line(self.error)
        return schedule


def write_together(outcomes: Sequence[Outcome], using: str) -> None:
    """Write what became of messages of several ranges of which none has failed; see `write`."""
    rows = [{**_as_locked(each.claim), **each.counters()} for each in outcomes]
    parameters: dict[str, Any] = {name: array(row[name] for row in rows) for name in rows[0]}
    parameters |= {"transaction": rows[0]["transaction"], "count": len(rows)}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "advance_cursors", parameters)
        if not cursor.fetchone()[0]:
            raise StaleClaim(cursor=outcomes[0].claim.id)


def _as_locked(claim: Claim) -> dict[str, Any]:
    return {
        "id": claim.id,
        "generation": claim.generation,
        "lease_token": claim.lease_token,
        "of_position": claim.position,
        "transaction": claim.transaction,
    }


def write(outcome: Outcome, using: str, lease: float | None = None) -> None:
    """Write what became of the messages, in the transaction that holds the cursor row.

    `lease`: seconds for which a leased range stays leased from now on; None ends the lease.
    Raises StaleClaim when the row was changed, or the transaction that locked it has ended.
    """
    for failure in outcome.failures:
        if failure.verdict == "park":
            parked_messages.park(failure, using)
    if outcome.blocked:
        parked_messages.park_blocked(outcome.claim, outcome.blocked, using)
    claim, statement = outcome.claim, "advance_cursor"
    parameters: dict[str, Any] = {
        **_as_locked(claim),
        "lease": lease,
        **outcome.counters(),
        **outcome.schedule(),
    }
    if outcome.released is not None:
        statement, parameters["position"] = "count_released", outcome.released
    with connections[using].cursor() as cursor:
        run_statement(cursor, statement, parameters)
        if not cursor.fetchone()[0]:
            raise StaleClaim(cursor=claim.id)
    for failure in outcome.failures:
        failures.report(failure, using)


def postpone(claim: Claim, error: BaseException, using: str) -> None:
    """Let a range wait after an error that no message caused, in a transaction of its own.

    Does nothing when anything has happened to the range since it was claimed.
    """
    with transaction.atomic(using=using):
        locked = cursors.lock_unchanged(claim, using)
        if locked is None:
            return
        outcome = Outcome(locked, locked.position, error=error)
        write(outcome, using)
    logger.error(
        "group %s could not commit its batch after position %s of channel %s (next try in "
        "%.1f s): %s",
        claim.group,
        claim.position,
        claim.channel,
        outcome.schedule()["retry_delay"],
        failures.error_line(error),
        extra={"group": claim.group, "channel": claim.channel, "position": claim.position},
    )
