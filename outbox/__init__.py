"""An event log and transactional outbox inside the Postgres of a Django project.

The map, in the order that data takes:

    events          event classes: typed payloads and their registry
    messages        what an event becomes, what a handler gets, decoding
    encoding        values as JSON text, and what cannot be stored
    payloads        what is published, the event class can decode
    headers         outbox.context(): headers of every message of a transaction
    publisher       publish, publish_many, publish_raw: inside the business transaction
    message_log     append; the horizon; read a range
    positions       whether sequence, log and cursors agree
    triggers        the floor, the NOTIFY, the append-only rule, the check of cursors
    groups          consumer groups and their handlers
    routes          how a type of message is handled, what can be a handler
    retry           when a failed message is tried again
    worker          the loop: claim, dispatch, commit; `run_once` is the page to read first
    database        what differs between psycopg2 and psycopg 3

    models/         the tables
    exceptions/     every error that is raised on purpose
    checks/         system checks of settings, declarations and databases
    consuming/      from claim to commit: cursors, batches, handlers, failures, leases, wake-ups
    processes/      workers in processes of their own: supervisor, shutdown, heartbeat
    operations/     what an operator sees and does: status, audit, doctor, reset, pause, scale
    changes/        model changes as messages, by trigger
    retention/      segments, the partitions of the log: rules, maintenance, archive, erasure
    streams/        append at an expected version, guards, event-sourced models
    relays/         messages sent to other systems: Kafka, NATS, Redis, RabbitMQ, AWS, HTTP
    sql/            the statements, a file per topic, and their loader
    management/     the commands `consume` and `outbox`
    migrations/     tables, triggers and functions; the functions stand in `sql/`
    embedded/       a throw-away PostgreSQL for demos and tests
    monitoring/     numbers, health and traces, for a monitoring system
    admin/          the pages of Django's admin

`testing` and `pytest_plugin` are for the tests of projects; `middleware` sets headers of a request.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("psycopg2") is None and find_spec("psycopg") is None:
    # Before pgtrigger, whose import fails with the name of a module alone.
    from django.core.exceptions import ImproperlyConfigured

    raise ImproperlyConfigured(
        "No driver of PostgreSQL is installed: `pip install psycopg2-binary`, or "
        "`pip install 'django-pgoutbox[psycopg3]'`."
    )

from .changes.capture import capture
from .changes.change import Change
from .consuming.read_your_writes import caught_up, wait_for
from .events import Event
from .exceptions import (
    FailedAt,
    OutboxError,
    PermanentError,
    RetryAfter,
    StreamConflict,
    TransactionRequired,
)
from .groups import ConsumerGroup
from .headers import context
from .messages import Message
from .publisher import publish, publish_many, publish_raw
from .relays.relay import Relay
from .retry import Retry
from .streams.guards import guard
from .streams.stream import stream

if TYPE_CHECKING:
    from .streams.aggregate import Aggregate, applies
    from .streams.decisions import decide

__all__ = [
    "Aggregate",
    "Change",
    "ConsumerGroup",
    "Event",
    "FailedAt",
    "Message",
    "OutboxError",
    "PermanentError",
    "Relay",
    "Retry",
    "RetryAfter",
    "StreamConflict",
    "TransactionRequired",
    "applies",
    "capture",
    "caught_up",
    "context",
    "decide",
    "guard",
    "publish",
    "publish_many",
    "publish_raw",
    "stream",
    "wait_for",
]

_NEED_APPS = {"Aggregate": "aggregate", "applies": "aggregate", "decide": "decisions"}
"""Names that live beside a model, which Django cannot define while it loads the apps."""


def __getattr__(name: str) -> Any:
    if name in _NEED_APPS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.streams.{_NEED_APPS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
