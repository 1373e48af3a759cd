"""Leased delivery: handlers run outside a transaction, and the range is leased meanwhile.

    leased -> handler -> progress written, lease renewed -> handler -> ... -> given back

The lease has an expiry and a fencing token. Whoever takes the range over raises the token, and
then every advance that knows the old one is refused: a worker that was away for too long learns it
at the next message and stops. So the messages in hand may be handled twice, and none is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from django.db import DatabaseError, connections, transaction

from .. import database
from ..conf import settings
from ..exceptions import KeyReleased, StaleClaim
from . import cursors, dispatcher
from .batch import Batch
from .cursors import Advance, Claim

logger = logging.getLogger("outbox.leased")


def deliver(batch: Batch, may_go_on: Callable[[], bool]) -> int:
    """Handle the rows of a leased range, message by message; return how many it moved past.

    Stops after the message in hand when one is to be tried again, the time is up, `may_go_on`
    says no, or the lease is lost. Raises ConnectionLost when the database went away.
    """
    moved = 0
    deadline = time.monotonic() + settings().batch_seconds
    with Lease(batch.claim, batch.group.lease, batch.using) as lease:
        try:
            for part in _parts(batch):
                if not may_go_on() or time.monotonic() >= deadline:
                    break
                part.claim = lease.renewed()
                dispatcher.dispatch(part)
                change = lease.advance(part)
                moved += change.count
                if change.retry_delay is not None or part.is_open:
                    break
        except KeyReleased as error:
            logger.debug("%s", error)
        except StaleClaim:
            logger.warning(
                "%s lost its lease of slots %s to %s of %s after %s: another worker has taken over",
                lease.claim.group,
                *lease.claim.slots,
                lease.claim.channel,
                lease.claim.position,
                extra={"group": lease.claim.group, "channel": lease.claim.channel},
            )
    return moved


class Lease:
    """A range in this process's hands: renewed while a handler runs, given back at the end.

    A thread with its own connection renews it when a handler takes longer than a third of
    `seconds`; not within a surrounding transaction, whose cursor row no other session sees.
    """

    def __init__(self, claim: Claim, seconds: float, using: str) -> None:
        self.claim = claim
        self.seconds = seconds
        self.using = using
        self._advanced_at = self._renewed_at = time.monotonic()
        self._end = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="outbox-lease", daemon=True)

    def __enter__(self) -> Lease:
        if not connections[self.using].in_atomic_block:
            self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._keeper.is_alive():
            self._keeper.join()
        if database.is_lost(connections[self.using].connection):
            return
        try:
            cursors.renew(self.claim, None, self.using)
        except (StaleClaim, DatabaseError):
            logger.debug("the lease of cursor %s was over already", self.claim.id)

    def renewed(self) -> Claim:
        """Return the claim, after asking for it again when that has not been done for a while.

        Raises StaleClaim when the range is in other hands.
        """
        if time.monotonic() - self._renewed_at > self.seconds / 3:
            cursors.renew(self.claim, self.seconds, self.using)
            self._renewed_at = time.monotonic()
        return self.claim

    def advance(self, part: Batch) -> Advance:
        """Write the progress of a part of the batch and renew the lease; raises StaleClaim."""
        try:
            with transaction.atomic(using=self.using):
                if part.behind:  # their keys may just be released: hold the row, then look
                    cursors.renew(self.claim, self.seconds, self.using)
                change = dispatcher.conclude(part, self.seconds)
        except DatabaseError as error:
            if database.is_lost(connections[self.using].connection):
                raise
            with transaction.atomic(using=self.using):
                change = dispatcher.back_off(part, error)
        now = time.monotonic()
        self.claim = self.claim.after(change, now - self._advanced_at)
        self._advanced_at = self._renewed_at = now
        return change

    def _keep(self) -> None:
        """Renew the lease while the handler in hand takes long."""
        wait = third = self.seconds / 3
        try:
            while not self._end.wait(wait):
                wait = self._renewed_at + third - time.monotonic()
                if wait <= 0:
                    cursors.renew(self.claim, self.seconds, self.using)
                    self._renewed_at = time.monotonic()
                    wait = third
        except StaleClaim:
            logger.debug("the lease of cursor %s is over", self.claim.id)
        except DatabaseError:
            logger.exception("the lease of cursor %s could not be renewed", self.claim.id)
        finally:
            connections[self.using].close()


def _parts(batch: Batch) -> Iterator[Batch]:
    """Cut the rows into what is handled at once: a message, or neighbours of a batch handler."""
    routes = batch.group.routes(batch.claim.channel)
    rows, start = batch.rows, 0
    for stop in range(1, len(rows)):
        route = routes.get(rows[stop][2])
        is_together = route is routes.get(rows[start][2]) and (route is None or route.is_batch)
        if not is_together:
            yield Batch(batch.group, batch.claim, rows[start:stop], rows[stop - 1][0], batch.using)
            start = stop
    yield Batch(batch.group, batch.claim, rows[start:], batch.until, batch.using)
