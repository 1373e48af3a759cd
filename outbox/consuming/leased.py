"""At least once: the handlers run outside a transaction, and the range is leased meanwhile.

    leased -> handler -> progress written, lease renewed -> handler -> ... -> lease ended

The lease has an expiry and a fencing token. A worker that takes the range over raises the token,
and then every write that knows the old one is refused: a worker that was away for too long learns
that at its next message and stops. So a message may be handled twice, and none is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from django.db import Error, ProgrammingError, connections, transaction

from .. import database
from ..conf import settings
from ..exceptions import ConnectionLost, StaleClaim
from . import cursors, failures, outcomes
from .batch import Batch
from .cursors import Claim
from .handlers import Done, Failed
from .outcomes import Outcome

logger = logging.getLogger("outbox.consuming")

current_claim: ContextVar[Claim | None] = ContextVar("current_claim", default=None)
"""The leased range whose messages a handler gets now; None outside of it, as in a redrive."""


def begin(batch: Batch) -> None:
    """Lease the claimed range, so that it stays claimed after the commit."""
    previous = batch.claim.leased_by
    batch.claim = cursors.lease(batch.claim, batch.group.lease, batch.using)
    if previous != cursors.holder():
        _log(
            logging.INFO,
            batch.claim,
            "this worker took the lease, which expires in %g s unless renewed",
            batch.group.lease,
        )


def finish(batch: Batch) -> int:
    """Handle the rows, part by part; return how many messages the range moved past.

    Stops when a message is to be tried again, the time is up, the worker stops, or the lease is
    lost. Raises ConnectionLost.
    """
    moved = 0
    deadline = time.monotonic() + settings().batch_seconds
    with Lease(batch.claim, batch.group.lease, batch.using) as lease:
        try:
            for part in _parts(batch):
                if batch.is_stopping() or time.monotonic() >= deadline:
                    break
                part.claim = lease.renewed()
                part.prepare()
                while part.is_open and not part.is_out_of_time:
                    part.apply(_run(part))
                outcome = lease.write(part)
                moved += outcome.count
                if outcome.pending or outcome.error or part.is_open:
                    break
        except StaleClaim:
            _log(
                logging.WARNING,
                lease.claim,
                "this worker lost its lease after position %s: another worker took the range, or "
                "an operator changed it",
                lease.claim.position,
            )
    return moved


def recover(batch: Batch, error: Error | StaleClaim) -> int:
    """After the transaction that took the lease failed: let the range wait.

    Raises ConnectionLost.
    """
    batch.raise_if_lost(error)
    if not database.is_conflict(error):
        outcomes.postpone(batch.claim, error, batch.using)
    return 0


def _run(part: Batch) -> Done | Failed:
    """Call the handlers; a session that ended meanwhile is no message's failure the first time."""
    connection = connections[part.using]
    token = current_claim.set(part.claim)
    try:
        result = part.run(_nothing_to_check)
    finally:
        current_claim.reset(token)
    is_lost = connection.connection is not None and database.is_lost(connection.connection)
    if isinstance(result, Failed) and is_lost:
        return dataclasses.replace(result, cause=ConnectionLost(failures.error_text(result.cause)))
    return result


def _nothing_to_check(position: int, seconds: float) -> None:
    """No transaction to check."""


class Lease:
    """A range leased by this process: renewed while a handler runs, and ended after it.

    A thread with its own connection renews it when a handler takes longer than a third of
    `seconds`; not within a surrounding transaction, whose cursor row no other session sees.
    """

    def __init__(self, claim: Claim, seconds: float, using: str) -> None:
        self.claim = claim
        self.seconds = seconds
        self.using = using
        self._written_at = self._renewed_at = time.monotonic()
        self._end = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="outbox-lease", daemon=True)

    def __enter__(self) -> Lease:
        if not connections[self.using].in_atomic_block:
            self._keeper.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._keeper.is_alive():
            self._keeper.join()
        try:
            cursors.renew(self.claim, None, self.using)
        except (StaleClaim, Error):
            logger.debug("the lease of cursor %s had already expired", self.claim.id)

    def renewed(self) -> Claim:
        """Return the claim, after renewing the lease when a third of it has passed.

        Raises StaleClaim when the range was taken over.
        """
        if time.monotonic() - self._renewed_at > self.seconds / 3:
            with contextlib.suppress(Error):
                cursors.renew(self.claim, self.seconds, self.using)
                self._renewed_at = time.monotonic()
        return self.claim

    def write(self, part: Batch) -> Outcome:
        """Write the progress of a part of the batch and renew the lease.

        In a new session when this one has ended: the handler is done, and its message needs no
        second try. Raises StaleClaim, and ConnectionLost when there is no new session to be had.
        """
        outcome, connection = part.outcome(), connections[self.using]
        connection.ensure_connection()
        session = connection.connection
        try:
            self._write(outcome)
        except Error as error:
            is_lost = connection.connection is not session or database.is_lost(session)
            # A name not found, a right missing, a read-only session: a handler changed it for good.
            is_changed = isinstance(error, ProgrammingError) or (
                database.sqlstate(error) == database.READ_ONLY
            )
            if not is_lost and not is_changed:
                outcome = Outcome(part.claim, part.claim.position, error=error)
                self._write(outcome)
            else:
                connection.close()
                self._write_again(outcome, error)
        now = time.monotonic()
        counters = outcome.counters()
        self.claim = dataclasses.replace(
            self.claim,
            position=outcome.position,
            parked=self.claim.parked + outcome.parked,
            rate=counters["rate"],
            idle_seconds=now - self._written_at,
        )
        self._written_at = self._renewed_at = now
        return outcome

    def _write(self, outcome: Outcome) -> None:
        with transaction.atomic(using=self.using):
            if outcome.blocked:  # a redrive may just release their keys: lock the row, then look
                cursors.renew(self.claim, self.seconds, self.using)
            outcomes.write(outcome, self.using, self.seconds)

    def _write_again(self, outcome: Outcome, error: Error) -> None:
        """Write in a new session, unless the commit had arrived and only its reply was lost."""
        try:
            with transaction.atomic(using=self.using):
                locked, _ = cursors.lock(self.claim.id, self.using) or (None, None)
                if locked is not None and self._has_arrived(locked, outcome):
                    return
                outcomes.write(outcome, self.using, self.seconds)
        except Error as second:
            raise ConnectionLost(str(second)) from error

    def _has_arrived(self, locked: Claim, outcome: Outcome) -> bool:
        is_ours = locked.lease_token == self.claim.lease_token
        is_there = outcome.count > 0 and locked.position == outcome.position
        return is_ours and locked.generation == self.claim.generation and is_there

    def _keep(self) -> None:
        """Renew the lease while a handler takes long, in a new session when one has ended."""
        wait = third = self.seconds / 3
        try:
            while not self._end.wait(wait):
                wait = self._renewed_at + third - time.monotonic()
                if wait <= 0:
                    wait = self._renew(third)
        except StaleClaim:
            logger.debug("the lease of cursor %s has expired", self.claim.id)
        finally:
            connections[self.using].close()

    def _renew(self, third: float) -> float:
        """Renew the lease; return the seconds until the next time, fewer after a failure."""
        try:
            cursors.renew(self.claim, self.seconds, self.using)
        except Error as error:
            _log(
                logging.WARNING,
                self.claim,
                "the lease could not be renewed: %s",
                str(error).strip(),
            )
            connections[self.using].close()
            return third / 4
        self._renewed_at = time.monotonic()
        return third


def _parts(batch: Batch) -> Iterator[Batch]:
    """Cut the rows into what is handled at once: a message, or neighbours of a batch handler."""
    routes = batch.group.routes(batch.claim.channel)
    rows, start = batch.rows, 0
    for stop in range(1, len(rows)):
        route = routes.get(rows[stop][2])
        is_together = route is routes.get(rows[start][2]) and (route is None or route.is_batch)
        exceeded_memory = route is not None and stop - start == route.most_together
        if exceeded_memory or not is_together:
            yield batch.part(rows[start:stop], rows[stop - 1][0])
            start = stop
    yield batch.part(rows[start:], batch.end_position)


def _log(level: int, claim: Claim, what: str, *values: object) -> None:
    logger.log(
        level,
        f"group %s, slots %d to %d of channel %s: {what}",
        claim.group,
        claim.slot_from,
        claim.slot_to,
        claim.channel,
        *values,
        extra={"group": claim.group, "channel": claim.channel},
    )
