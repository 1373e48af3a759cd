"""Relays: the committed messages of the log, sent to another system, in order.

    relay            the consumer group that sends
    records          messages with CloudEvents attributes, and the routing function
    sink             the contract of a destination, and what it gets
    contract         the tests of that contract, for `outbox.testing.sink_contract`
    probe            `outbox relay test`, and the state of the destination for `describe`

    file             a file of JSON lines; the example of a sink
    webhook          HTTP, signed by Standard Webhooks; `addresses` says where it may connect
    redis_streams    Redis and Valkey streams
    nats             NATS JetStream
    rabbit_streams   RabbitMQ streams
    kafka            Kafka
    aws              SQS and SNS, FIFO
    event_loop       the thread in which asyncio clients live

A destination's client library is imported when its sink is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .records import DROP, Target
from .relay import Relay
from .sink import Origin, Record, Sink

if TYPE_CHECKING:
    from .aws import Sns, Sqs
    from .file import File
    from .kafka import Kafka
    from .nats import Nats
    from .rabbit_streams import RabbitStreams
    from .redis_streams import RedisStreams
    from .webhook import Webhook

__all__ = [
    "DROP",
    "File",
    "Kafka",
    "Nats",
    "Origin",
    "RabbitStreams",
    "Record",
    "RedisStreams",
    "Relay",
    "Sink",
    "Sns",
    "Sqs",
    "Target",
    "Webhook",
]

_SINKS = {
    "File": "file",
    "Kafka": "kafka",
    "Nats": "nats",
    "RabbitStreams": "rabbit_streams",
    "RedisStreams": "redis_streams",
    "Sns": "aws",
    "Sqs": "aws",
    "Webhook": "webhook",
}
"""Names of sinks, each with its module, which is imported when the name is used."""


def __getattr__(name: str) -> Any:
    if name in _SINKS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_SINKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
