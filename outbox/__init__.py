"""An event log and transactional outbox inside the Postgres of a Django project.

The map, in the order that data takes:

    events          typed payloads, their registry, JSON in and out
    publisher       publish, publish_many, publish_raw: inside the business transaction
    capture         model changes as messages, by trigger
    message_log     append; the horizon; read a range
    triggers        the floor, the signal, the append-only rule
    wakeups         how a worker without work waits
    groups          consumer groups and their handlers
    cursors         a group's place in the log: claim, advance, split, merge
    dispatcher      hand messages to handlers, find the one that fails
    worker          the loop: claim, dispatch, commit
    parking         messages that a group gave up on
    replay          move a group to another place
    segments        partitions of the log
    status          what is late and why
"""

from .events import Event, Message
from .exceptions import (
    FailedAt,
    OutboxError,
    PermanentError,
    RetryAfter,
    TransactionRequired,
)
from .groups import ConsumerGroup, Retry
from .publisher import publish, publish_many, publish_raw

__all__ = [
    "ConsumerGroup",
    "Event",
    "FailedAt",
    "Message",
    "OutboxError",
    "PermanentError",
    "Retry",
    "RetryAfter",
    "TransactionRequired",
    "publish",
    "publish_many",
    "publish_raw",
]
