"""An event log and transactional outbox inside the Postgres of a Django project.

The map, in the order that data takes:

    events          typed payloads, their registry, decoding
    encoding        values as JSON text, and what cannot be stored
    publisher       publish, publish_many, publish_raw: inside the business transaction
    capture         model changes as messages, by trigger
    context         values that go with every message of a transaction; `middleware` sets some
    snapshot        the rows that are there already, as messages
    message_log     append; the horizon; read a range
    triggers        the floor, the signal, the append-only rule
    wakeups         how a worker without work waits
    groups          consumer groups and their handlers
    changes         the event of a model change, and the rows in it (`row_images`)
    cursors         a group's place in the log: claim, advance
    ranges          how many of them a group has: split and merge while workers run
    idle_ranges     which of them a worker need not look at
    batches         the rows of one claim and what became of them
    dispatcher      hand messages to handlers, find the one that fails
    failures        what a failed attempt means: retry, park or skip
    leases          handlers outside a transaction
    worker          the loop: claim, dispatch, commit
    supervisor      workers in processes of their own, started again when they die
    in_hand         what a worker's process leaves behind when it dies in a handler
    lifeline        what ends such a process; `pulse` shows that it makes progress
    parked_messages the messages that a group gave up on, and those behind them
    parking         list, redrive, discard
    signals         Django signals about failing messages
    waiting         wait until a group has handled what was published
    replay          move a group to another place (`scenarios` say which), skip a message
    pauses          let a group rest
    cursor_rows     the rows of a group, held for such a change; `actions` records who made it
    segments        partitions of the log
    status          what is late and why, from `health` of the ranges and `sessions` of the server
    audit           whether it is right
    doctor          whether the database is fit for it
    tail            the log for people and programs
    testing         for the tests of projects, with `pytest_plugin`; `admin` shows the tables
"""

from .capture import capture
from .changes import Change
from .context import context
from .events import Event, Message
from .exceptions import (
    FailedAt,
    OutboxError,
    PermanentError,
    RetryAfter,
    TransactionRequired,
)
from .groups import ConsumerGroup
from .publisher import publish, publish_many, publish_raw
from .retry import Retry
from .waiting import caught_up, wait_for

__all__ = [
    "Change",
    "ConsumerGroup",
    "Event",
    "FailedAt",
    "Message",
    "OutboxError",
    "PermanentError",
    "Retry",
    "RetryAfter",
    "TransactionRequired",
    "capture",
    "caught_up",
    "context",
    "publish",
    "publish_many",
    "publish_raw",
    "wait_for",
]
