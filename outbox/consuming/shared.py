"""Exactly once for a window: messages of several ranges of a group in one transaction.

    claimed -> handled -> written -> committed
            |-> anything failed: rolled back, and the ranges of the window are claimed one by one

The messages of all ranges are handled in the order of their positions, so each key is in order. A
failure is neither counted nor charged here: `transactional` does that, when it handles the range of
the message alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

from django.db import Error, transaction

from ..exceptions import StaleClaim
from . import failures, handlers, in_flight, outcomes
from .batch import Batch
from .handlers import Failed
from .outcomes import Outcome
from .transactional import Watch
from .windows import WindowClaim

logger = logging.getLogger("outbox.consuming")

SECONDS = 0.05
"""After this time the batch ends: other workers wait for its ranges."""


@dataclasses.dataclass(slots=True)
class SharedBatch(Batch):
    """The rows of one claim of a window; `claim` is that of the first range."""

    window: WindowClaim = dataclasses.field(kw_only=True)

    @property
    def delivery(self) -> str:
        """Which module handles the batch."""
        return "shared"


def begin(batch: Batch) -> None:
    """Handle the rows and write what became of them, in the transaction of the claim."""
    assert isinstance(batch, SharedBatch)
    rows, claims = batch.rows, batch.window.claims
    claim_of = [claims[number] for number in batch.window.numbers]
    ids = {row[0]: claim.id for row, claim in zip(rows, claim_of, strict=True)}

    def record(position: int, timeout: float | None) -> None:
        in_flight.recorder(ids.get(position, 0))(position, timeout)

    result = handlers.run(
        batch.group,
        [claim.message(row) for row, claim in zip(rows, claim_of, strict=True)],
        Watch(batch.group, batch.claim, batch.using, is_careful=False).after_call,
        record,
        deadline=batch.began_at + SECONDS,
    )
    if isinstance(result, Failed):
        batch.undone = result
        transaction.set_rollback(True, using=batch.using)
        return
    batch.handled, batch.skipped = result.count, result.skipped
    outcomes.write_together(_outcomes(batch), batch.using)


def finish(batch: Batch) -> int:
    """After the transaction: return how many messages the ranges moved past."""
    return batch.handled if batch.undone is None else 0


def recover(batch: Batch, error: Error | StaleClaim) -> int:
    """After the transaction failed as a whole: nothing is charged; raises ConnectionLost."""
    batch.raise_if_lost(error)
    logger.warning(
        "group %s: a batch of several ranges failed as a whole; each is handled alone: %s",
        batch.group.name,
        failures.error_line(error),
        extra={"group": batch.group.name, "channel": batch.claim.channel},
    )
    return 0


def _outcomes(batch: SharedBatch) -> list[Outcome]:
    """Return what became of each range: no message of it has failed."""
    done, routes = batch.rows[: batch.handled], batch.group.routes(batch.claim.channel)
    position = batch.end_position if len(done) == len(batch.rows) else done[-1][0]
    numbers = batch.window.numbers[: batch.handled]
    handled = Counter(numbers)
    skipped = Counter(n for n, row in zip(numbers, done, strict=True) if row[2] not in routes)
    return [
        Outcome(
            claim,
            max(claim.position, position),
            handled[number] - skipped[number],
            skipped[number],
        )
        for number, claim in batch.window.claims.items()
    ]
