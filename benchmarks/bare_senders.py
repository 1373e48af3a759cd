"""The floor of each relay: a loop of the client library that sends the same bytes.

What a loop sends is put together before it is measured. Each is a context manager of a server and
the records, and gives a function that sends all of them and waits for their confirmation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.consume import BATCH
from outbox.relays import Record

Sender = Callable[[], None]
PLACE = "trouble"
"""The topic, stream or queue that the bare loops send to; that of the relay is another one."""


def _batches(items: Sequence[Any], size: int = BATCH) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextlib.contextmanager
def kafka(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Produce with an idempotent producer, flushed after each batch; no transactions."""
    from confluent_kafka import Producer

    options = {"bootstrap.servers": f"127.0.0.1:{server.port}", "enable.idempotence": True}
    producer = Producer(options)
    batches = _batches(
        [
            (
                record.data,
                (record.key or "").encode(),
                [(f"ce_{name}", value.encode()) for name, value in record.attributes.items()],
            )
            for record in records
        ]
    )

    def send() -> None:
        for batch in batches:
            for data, key, headers in batch:
                producer.produce(PLACE, data, key, headers=headers)
            assert producer.flush(60) == 0

    yield send


@contextlib.contextmanager
def redis(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Add with a pipeline for each batch."""
    from redis import Redis

    client = Redis(port=server.port)
    batches = _batches(
        [
            {"data": record.data, **{f"ce_{name}": v for name, v in record.attributes.items()}}
            for record in records
        ]
    )

    def send() -> None:
        for batch in batches:
            pipeline = client.pipeline(transaction=False)
            for fields in batch:
                pipeline.xadd(PLACE, fields)
            pipeline.execute()

    yield send
    client.close()


@contextlib.contextmanager
def nats(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Publish a batch, then wait for its confirmations."""
    import nats as library

    batches = _batches(
        [
            (record.data, {f"ce-{name}": value for name, value in record.attributes.items()})
            for record in records
        ]
    )

    async def connect() -> Any:
        client = await library.connect(f"nats://127.0.0.1:{server.port}")
        await client.jetstream().add_stream(name="bare", subjects=["bare"])
        return client

    async def publish() -> None:
        context = client.jetstream(publish_async_max_pending=BATCH + 1)
        for batch in batches:
            await asyncio.gather(
                *[
                    await context.publish_async("bare", data, headers=headers)
                    for data, headers in batch
                ]
            )

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(connect())
    yield lambda: loop.run_until_complete(publish())
    loop.run_until_complete(client.close())
    loop.close()


@contextlib.contextmanager
def webhook(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Post one after the other over one connection, unsigned."""
    import urllib3

    pool = urllib3.HTTPConnectionPool("127.0.0.1", server.port, maxsize=1)
    requests = [
        (record.data, {f"ce-{name}": value for name, value in record.attributes.items()})
        for record in records
    ]

    def send() -> None:
        for data, headers in requests:
            assert pool.urlopen("POST", "/hook", body=data, headers=headers).status == 204

    yield send
    pool.close()


@contextlib.contextmanager
def sqs(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Send ten in a request."""
    client = server.client()
    address = server.queue(PLACE)
    rounds = 0

    def send() -> None:
        nonlocal rounds
        rounds += 1
        for entries in _entries(records, "MessageBody", rounds):
            client.send_message_batch(QueueUrl=address, Entries=entries)

    yield send


@contextlib.contextmanager
def sns(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Publish ten in a request."""
    import boto3

    client = boto3.client("sns", **server.options(server.port))
    rounds = 0

    def send() -> None:
        nonlocal rounds
        rounds += 1
        for entries in _entries(records, "Message", rounds):
            client.publish_batch(
                TopicArn=server.arn("sns", PLACE), PublishBatchRequestEntries=entries
            )

    yield send


@contextlib.contextmanager
def rabbitmq(server: Any, records: Sequence[Record]) -> Iterator[Sender]:
    """Send a batch, then wait for its confirmations; the messages are encoded as they are sent."""
    import rstream

    batches = _batches(
        [
            (record.data, {f"cloudEvents_{name}": v for name, v in record.attributes.items()})
            for record in records
        ]
    )

    properties = rstream.Properties(content_type="application/json")

    async def connect() -> Any:
        producer = rstream.Producer(**server.options())
        await producer.start()
        return producer

    async def publish() -> None:
        for batch in batches:
            done = asyncio.Event()
            left = len(batch)

            def confirm(_: Any, done: asyncio.Event = done) -> None:
                nonlocal left
                left -= 1
                if not left:
                    done.set()

            messages = [
                rstream.AMQPMessage(
                    body=data, application_properties=headers, properties=properties
                )
                for data, headers in batch
            ]
            await producer.send_batch(PLACE, messages, on_publish_confirm=confirm)
            await done.wait()

    loop = asyncio.new_event_loop()
    producer = loop.run_until_complete(connect())
    yield lambda: loop.run_until_complete(publish())
    loop.run_until_complete(producer.close())
    loop.close()


OF = {
    "kafka": kafka,
    "redis": redis,
    "nats": nats,
    "rabbitmq": rabbitmq,
    "webhook": webhook,
    "sqs": sqs,
    "sns": sns,
}
"""The bare loops by the names of their destinations."""


def _entries(records: Sequence[Record], body: str, rounds: int) -> list[list[dict[str, Any]]]:
    return [
        [
            {
                "Id": str(index),
                body: record.data.decode(),
                "MessageAttributes": {
                    f"ce_{name}": {"DataType": "String", "StringValue": value}
                    for name, value in record.attributes.items()
                },
                "MessageGroupId": record.key,
                "MessageDeduplicationId": f"{rounds}-{record.id}",
            }
            for index, record in enumerate(batch)
        ]
        for batch in _batches(records, 10)
    ]
