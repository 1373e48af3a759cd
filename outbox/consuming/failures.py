"""Failures: what a failed attempt means for its message, and how it is told.

    failed attempt -> retry (back off) | park | skip

The decision depends on the group's options, the error, and the attempts recorded so far.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import traceback
from functools import partial
from typing import Literal

from django.db import transaction

from .. import events, signals
from ..exceptions import FailedAt, PermanentError, RetryAfter, UndecodableMessage
from ..groups import ConsumerGroup

logger = logging.getLogger("outbox.failures")

ERROR_LENGTH = 2000
"""Characters of an error's text that are kept."""
TRACEBACK_LENGTH = 20000
"""Characters of a traceback that are kept, from its end."""
LONGEST_DELAY = 365 * 86400.0
"""Seconds until the next attempt, at most."""

Verdict = Literal["retry", "park", "skip", "stay"]
"""Try again later, park, count as skipped, or stay parked after a redrive."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt of a message, and what follows from it."""

    group: ConsumerGroup
    message: events.Message
    """As its handler saw it; `attempt` counts this attempt."""
    error: Exception
    verdict: Verdict
    retry_delay: float | None = None
    """Seconds until the next attempt; None when there is none."""
    failing_seconds: float = 0.0
    """Since the first failure of the message."""

    @property
    def reason(self) -> str:
        """Why the message is parked, if it is: a `ParkedMessage.Reason`."""
        return "undecodable" if isinstance(self.error, UndecodableMessage) else "failed"

    @property
    def summary(self) -> str:
        """Which message failed and why, in one line."""
        return f"{self.message.type} at {self.message.position}: {error_line(self.error)}"


def judge(
    group: ConsumerGroup, message: events.Message, error: Exception, failing_seconds: float = 0.0
) -> Failure:
    """Decide what follows from the failure of `message`.

    `failing_seconds`: since its first failure, 0 when this is the first.
    """
    error = cause_of(error)
    is_over = isinstance(error, PermanentError) or group.retry.is_exhausted(
        message.attempt, datetime.timedelta(seconds=failing_seconds)
    )
    if is_over and group.on_failure != "halt":
        return Failure(group, message, error, group.on_failure, None, failing_seconds)
    wanted = error.seconds if isinstance(error, RetryAfter) else group.retry.delay(message.attempt)
    delay = max(0.0, min(wanted, LONGEST_DELAY))
    return Failure(group, message, error, "retry", delay, failing_seconds)


def cause_of(error: Exception) -> Exception:
    """Return the error that FailedAt carries, or the error itself."""
    if isinstance(error, FailedAt) and isinstance(error.cause, Exception):
        return error.cause
    return error


def announce(failure: Failure, using: str) -> None:
    """Log a failure now, and send its signals when the current transaction has committed."""
    _log(failure)
    transaction.on_commit(partial(_send, failure), using=using)


def error_line(error: BaseException) -> str:
    """Return the class and text of an error in one bounded line that PostgreSQL can store."""
    return storable(f"{type(error).__name__}: {error_text(error)}".strip())


def error_text(error: BaseException) -> str:
    """Return the bounded text of an error; also of one whose `str()` fails."""
    try:
        return storable(str(error))[:ERROR_LENGTH]
    except Exception:
        return "(the error has no readable text)"


def traceback_text(error: BaseException) -> str:
    """Return the end of an error's traceback, bounded."""
    return storable("".join(traceback.format_exception(error)))[-TRACEBACK_LENGTH:]


def storable(text: str) -> str:
    """Return the text without what PostgreSQL cannot store: NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _send(failure: Failure) -> None:
    facts = {"sender": failure.group, "message": failure.message, "error": failure.error}
    signals.message_failed.send_robust(**facts, retry_delay=failure.retry_delay)
    if failure.verdict == "park":
        signals.message_parked.send_robust(**facts)


def _log(failure: Failure) -> None:
    message = failure.message
    what_next = f"next try in {failure.retry_delay or 0:.1f} s"
    if failure.verdict != "retry":
        what_next = {"park": "parked", "skip": "skipped", "stay": "stays parked"}[failure.verdict]
    logger.log(
        logging.WARNING if failure.verdict == "retry" else logging.ERROR,
        "%s failed at %s (attempt %d, %s): %s",
        message.group,
        message.position,
        message.attempt,
        what_next,
        error_line(failure.error),
        exc_info=failure.error,
        extra={
            "group": message.group,
            "channel": message.channel,
            "position": message.position,
            "attempt": message.attempt,
        },
    )
