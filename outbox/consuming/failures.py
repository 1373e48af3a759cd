"""Failures: what a failed attempt means for its message, and how it is reported.

    failed attempt -> retry | wait (no message caused it) | park | skip | stay parked

`decide` is the one decision: for a handler that raises, a dead process, a lost session, and a
redrive. It depends on the group's options, the error, and the attempts recorded so far.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

from django.db import transaction

from .. import database, signals
from ..exceptions import (
    ConnectionLost,
    DestinationUnavailable,
    FailedAt,
    PermanentError,
    RetryAfter,
    UndecodableMessage,
    UnknownMessageType,
)
from ..groups import ConsumerGroup
from ..messages import Message

logger = logging.getLogger("outbox.failures")

ERROR_LENGTH = 2000
"""Characters of an error's text that are kept."""
TRACEBACK_LENGTH = 20000
"""Characters of a traceback that are kept, from its end."""
LONGEST_DELAY = 365 * 86400.0
"""Seconds until the next attempt, at most."""

watcher: ContextVar[Callable[[Failure], None] | None] = ContextVar("watcher", default=None)
"""Called at once with each failure; `outbox.testing.drain` raises what it notes."""

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds between two tries after an error that no message caused; they double."""

Verdict = Literal["retry", "wait", "park", "skip", "stay"]
"""Try again later, the same without counting the attempt, park, count as skipped, or stay parked
after a redrive."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt of a message, and what follows from it."""

    group: ConsumerGroup
    message: Message
    """As its handler saw it; `attempt` counts this attempt."""
    error: BaseException
    verdict: Verdict
    retry_delay: float | None = None
    """Seconds until the next attempt; None when there is none."""
    failing_seconds: float = 0.0
    """Since the first failure of the message."""

    @property
    def attempts(self) -> int:
        """How many failed attempts of the message are counted, this one included."""
        return self.message.attempt - (self.verdict == "wait")

    @property
    def reason(self) -> str:
        """Why the message is parked, if it is: a `ParkedMessage.Reason`."""
        if isinstance(self.error, UnknownMessageType):
            return "unknown"
        return "undecodable" if isinstance(self.error, UndecodableMessage) else "failed"

    @property
    def summary(self) -> str:
        """Which message failed and why, in one line."""
        return f"{self.message.type} at {self.message.position}: {error_line(self.error)}"


def decide(
    group: ConsumerGroup,
    message: Message,
    error: BaseException,
    failing_seconds: float = 0.0,
    *,
    is_parked: bool = False,
    is_certain: bool = True,
) -> Failure:
    """Decide what follows from a failed attempt of `message`.

    `failing_seconds`: since its first failure, 0 when this is the first. `is_parked`: it is parked
    already, and this was a redrive. `is_certain`: it alone can be the cause; otherwise the attempt
    counts, and the group does not give up on it yet.
    """
    error = cause_of(error)
    judged = partial(Failure, group, message, error, failing_seconds=failing_seconds)
    if is_parked:
        return judged("stay")
    if _blames_no_message(group, error, failing_seconds):
        return judged("wait", _wait_of(error, failing_seconds))
    if isinstance(error, UnknownMessageType):
        return judged("park")
    is_over = isinstance(error, PermanentError | UndecodableMessage) or group.retry.is_exhausted(
        message.attempt, datetime.timedelta(seconds=failing_seconds)
    )
    if is_over and group.on_failure != "halt":
        return judged(group.on_failure) if is_certain else judged("retry", 0.0)
    wanted = error.seconds if isinstance(error, RetryAfter) else group.retry.delay(message.attempt)
    return judged("retry", max(0.0, min(wanted, LONGEST_DELAY)))


def _blames_no_message(group: ConsumerGroup, error: BaseException, failing_seconds: float) -> bool:
    """Return whether an error is due to a server's state, or to a type of another release.

    A connection that a leased handler lost is a chance the first time, and not the second.
    """
    if isinstance(error, ConnectionLost):
        return failing_seconds == 0
    if isinstance(error, DestinationUnavailable):
        return True
    if isinstance(error, UnknownMessageType) or (
        isinstance(error, UndecodableMessage) and error.is_newer
    ):
        return group.on_unknown == "wait"
    return database.is_server_state(error)


def unblamed_delay(failing_seconds: float) -> float:
    """Return the seconds until the next attempt after an error that no message caused."""
    return min(max(failing_seconds, FIRST_WAIT), LONGEST_WAIT)


def _wait_of(error: BaseException, failing_seconds: float) -> float:
    """Return the seconds to wait: what a destination asks for, or what doubles."""
    wanted = error.seconds if isinstance(error, DestinationUnavailable) else None
    return unblamed_delay(failing_seconds) if wanted is None else min(wanted, LONGEST_DELAY)


def cause_of(error: BaseException) -> BaseException:
    """Return the error that FailedAt carries, or the error itself."""
    return error.cause if isinstance(error, FailedAt) else error


def report(failure: Failure, using: str) -> None:
    """Log a failure now, and send its signals when the current transaction has committed."""
    if (watch := watcher.get()) is not None:
        watch(failure)
    _log(failure)
    if failure.verdict != "wait":
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
    facts: dict[str, Any] = {
        "sender": failure.group,
        "message": failure.message,
        "error": failure.error,
    }
    signals.message_failed.send_robust(**facts, retry_delay=failure.retry_delay)
    if failure.verdict == "park":
        signals.message_parked.send_robust(**facts)


def _log(failure: Failure) -> None:
    message, delay = failure.message, f"next try in {failure.retry_delay or 0:.1f} s"
    what_next = {
        "retry": delay,
        "wait": f"not counted, {delay}",
        "park": "parked",
        "skip": "skipped",
        "stay": "stays parked",
    }[failure.verdict]
    logger.log(
        _level(failure),
        "group %s failed at position %s (attempt %d, %s): %s",
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


def _level(failure: Failure) -> int:
    if failure.verdict == "wait" and isinstance(failure.error, UnknownMessageType):
        return logging.DEBUG  # known_types warns once per type
    return logging.WARNING if failure.verdict in ("retry", "wait") else logging.ERROR
