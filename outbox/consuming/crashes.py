"""Crashes: the process, session or transaction in which a message was handled is gone.

The failure cannot be written there, so it is written afterwards: in another transaction, in another
session, or by another process. Each locks the cursor row, writes nothing when the row is not as it
was, and asks `failures.decide` as any failed attempt does.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from django.db import Error, connections, transaction

from .. import database, groups, message_log
from ..conf import log_alias
from ..exceptions import SessionEnded, StaleClaim, WorkerDied
from ..groups import ConsumerGroup
from ..messages import Message
from ..sql import all_rows, run_statement, scalar
from . import cursors, failures, outcomes
from .batch import Batch
from .cursors import Claim
from .outcomes import Outcome

logger = logging.getLogger("outbox.consuming")

LOCK_WAIT = 5.0
"""Seconds to wait for the server to release the row lock of a session that ended."""


def record_undone(batch: Batch) -> int:
    """Charge the message whose failed call undid the transaction of its claim.

    Returns how many messages the range moved past. Rows before it count as done if the handler
    committed them by itself; otherwise they are handled again. Runs in a transaction of its own.
    """
    connection = connections[batch.using]
    is_lost = connection.connection is not batch.session or database.is_lost(batch.session)
    if is_lost:
        connection.close()
    connection.ensure_connection()
    batch.session = connection.connection
    try:
        roll_back_prepared(batch.claim, batch.using)
        with transaction.atomic(using=batch.using):
            outcome = _write_undone(batch, is_lost)
    except (Error, StaleClaim) as error:
        batch.raise_if_lost(error)
        logger.warning(
            "group %s: a failed attempt could not be recorded: %s", batch.group.name, error
        )
        return 0
    return outcome.count if outcome is not None else 0


def roll_back_prepared(claim: Claim, using: str) -> None:
    """Undo a PREPARE TRANSACTION of a handler, which would keep the cursor row locked."""
    if not connections[using].in_atomic_block:
        name = scalar("find_prepared", using, transaction=claim.transaction)
        if name is not None:
            with connections[using].cursor() as cursor:
                run_statement(cursor, "roll_back_prepared", {"name": name})


def _write_undone(batch: Batch, is_lost: bool) -> Outcome | None:
    """Write the outcome of an undone batch; None when its range was changed meanwhile."""
    failed, using = batch.undone, batch.using
    assert failed is not None
    locked = cursors.lock_unchanged(batch.claim, using, LOCK_WAIT)
    if locked is None:
        return None
    message = locked.message(batch.rows[failed.start])
    if failed.start and scalar("is_committed", using, transaction=batch.claim.transaction):
        batch.skipped += failed.skipped
        batch.claim, batch.handled, batch.failures = locked, failed.start, []
        batch.fail(failed.cause)
        outcome = batch.outcome()
    elif is_lost:
        error = _lost_session(failed.cause, using)
        outcome = _charge(locked, batch.group, message, error, failed.start == 0, batch.blocked)
        if _may_be_chance(message, failed.cause):
            [failure] = outcome.failures
            at_once = dataclasses.replace(failure, verdict="retry", retry_delay=0.0)
            outcome = Outcome(locked, locked.position, failures=[at_once])
    else:
        is_first = failed.start == 0
        outcome = _charge(locked, batch.group, message, failed.cause, is_first, batch.blocked)
    outcomes.write(outcome, using)
    return outcome


def record_dead_process(
    cursor_id: int, position: int, reason: str, *, pid: int | None = None, using: str | None = None
) -> bool:
    """Count a failed attempt of the message that a process was handling when it died.

    `reason`: what ended it. `pid`: its process id, needed where it held a lease. Returns False and
    changes nothing when the cursor is gone or past `position`, or leased to another process.

    The group does not give up on it while another message may be the cause: at the first death in a
    batch handler, after which its messages are handled one by one, and while earlier ones wait.
    """
    using = log_alias(using)
    with transaction.atomic(using=using):
        claim, holder = cursors.lock(cursor_id, using) or (None, None)
        message = None if claim is None else _message_at(claim, position, using)
        if claim is None or message is None or holder not in (None, cursors.holder(pid)):
            return False
        group = groups.get(claim.group)
        is_certain = _is_alone(claim, group, message, using)
        error = WorkerDied(reason=reason)
        outcomes.write(_charge(claim, group, message, error, is_certain), using)
    return True


def _charge(
    claim: Claim,
    group: ConsumerGroup,
    message: Message,
    error: BaseException,
    is_certain: bool,
    blocked: Sequence[int] = (),
) -> Outcome:
    """Return the outcome of a failed attempt of a message ahead of the cursor.

    `blocked`: positions to park behind earlier ones where the range moves past them.
    """
    seconds = claim.failing_seconds_at(message.position)
    failure = failures.decide(group, message, error, seconds, is_certain=is_certain)
    is_given_up = failure.verdict in ("park", "skip")
    position = message.position if is_given_up else claim.position
    passed = [each for each in blocked if each < position]
    return Outcome(claim, position, failures=[failure], blocked=passed)


def _lost_session(cause: BaseException, using: str) -> SessionEnded:
    """Return what ended a session, with the time limits of the server that may have done it."""
    limits = ", ".join(limit for (limit,) in all_rows("read_session_limits", using))
    reason = " ".join(failures.error_text(cause).split())
    return SessionEnded(reason=f"{reason} ({limits or 'the server has no time limits'})")


def _may_be_chance(message: Message, cause: BaseException) -> bool:
    """Return whether a session may have ended for another reason than the message: only once."""
    is_own_doing = isinstance(cause, SessionEnded) or database.sqlstate(cause) in (
        database.SESSION_LIMITS
    )
    return message.attempt == 1 and not is_own_doing


def _message_at(claim: Claim, position: int, using: str) -> Message | None:
    """Return the message at a position above the claim's, None when it is not of its range."""
    rows = message_log.read(
        using,
        claim.channel,
        after=max(claim.position, position - 1),
        until=position,
        slots=claim.slots,
        most=1,
    )
    return claim.message(rows[0]) if rows else None


def _is_alone(claim: Claim, group: ConsumerGroup, message: Message, using: str) -> bool:
    """Return whether a message was alone in its handler, and nothing of the range is before it."""
    route = group.routes(claim.channel).get(message.type)
    if route is not None and route.is_batch and message.attempt == 1:
        return False
    return bool(
        scalar(
            "is_next",
            using,
            channel=claim.channel,
            after=claim.position,
            position=message.position,
            slot_from=claim.slot_from,
            slot_to=claim.slot_to,
        )
    )
