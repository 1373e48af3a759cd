"""Kafka: each batch is one transaction of a producer whose id is the range's.

So a batch is there as a whole or not at all for those who read committed records, and a relay that
wakes up late is fenced: the broker refuses its transactions once another one has begun with its id.
The resume point is the highest `ce_sequence` at the ends of the topic's partitions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..exceptions import RecordRefused
from .sink import HeaderNames, Origin, Record, library, position_in, refused, unavailable

MESSAGE_BYTES = 1_000_000
"""The `message.max.bytes` of librdkafka where the options do not say another."""
NAMES = HeaderNames("ce_", datacontenttype="content-type")
LOOK_BACK = 50
"""Offsets at the end of a partition that are read; markers of transactions are among them."""


class Kafka:
    """Produces to the brokers at `servers`, such as `localhost:9092`.

    `topic`: `{channel}` and `{type}` stand for the message's. `config`: further options of
    librdkafka, such as security. `transactional=False` for brokers without transactions: then a
    batch may come twice around a crash. `timeout`: seconds to wait for confirmation.
    Needs the extra `kafka`; raises MissingExtra.
    """

    most_together: int | None = None

    def __init__(
        self,
        servers: str,
        *,
        topic: str = "{channel}",
        config: dict[str, Any] | None = None,
        transactional: bool = True,
        timeout: float = 30.0,
    ) -> None:
        self._kafka = library("confluent_kafka", "kafka")
        self.servers, self.to, self.config = servers, topic, dict(config or {})
        self.transactional, self.timeout = transactional, timeout
        self._producers: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Kafka({self.servers!r}, topic={self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return the highest position of this origin at the ends of the topic's partitions."""
        if to is None:
            return None
        try:
            if self.transactional:  # first: what another relay has not committed is aborted
                self._producer(origin)
            return self._last_position(origin, to)
        except self._kafka.KafkaException as error:
            raise unavailable(error) from error

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Produce the records in one transaction and wait until it is committed."""
        try:
            producer = self._producer(origin)
            queued, refusal, errors = self._produce(producer, records)
            if errors:
                self._abort(producer)
            elif self.transactional:
                producer.commit_transaction(self.timeout)
        # SystemError: a fatal error, such as a fence, was raised while a delivery was reported.
        except (self._kafka.KafkaException, SystemError) as error:
            raise unavailable(error.__cause__ or error) from error
        if errors:
            self._resend(origin, records, errors)
        if refusal is not None:
            raise self._refused(queued, refusal, records[queued])

    def _resend(self, origin: Origin, records: Sequence[Record], errors: Mapping[int, Any]) -> None:
        """After an abort: produce the records before the first that the broker refuses."""
        index, error = min(errors.items())
        if error.code() not in self._refusals():
            raise unavailable(str(error), 0)
        if index and self.transactional:
            self.send(origin, records[:index])
        raise self._refused(index, error, records[index])

    def _refused(self, index: int, error: Any, record: Record) -> RecordRefused:
        limit = self.config.get("message.max.bytes", MESSAGE_BYTES)
        return refused(
            index,
            f"{error.str()} (a payload of {len(record.data)} bytes; the producer's "
            f"message.max.bytes is {limit} bytes)",
        )

    def close(self) -> None:
        """Give up the producers; what they have not committed is aborted."""
        for producer in self._producers.values():
            with contextlib.suppress(Exception):
                producer.purge()
                producer.flush(0)
        self._producers.clear()

    def _refusals(self) -> set[int]:
        errors = self._kafka.KafkaError
        return {errors.MSG_SIZE_TOO_LARGE, errors.INVALID_RECORD, errors.INVALID_MSG}

    def _producer(self, origin: Origin) -> Any:
        name = f"outbox-{origin.relay}-{origin.channel}-{origin.slot_from}-{origin.slot_to}"
        if name not in self._producers:
            options = {
                "bootstrap.servers": self.servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "delivery.report.only.error": True,
                "log_level": 2,
                "message.timeout.ms": int(self.timeout * 1000),
                **self.config,
            }
            if self.transactional:
                options["transactional.id"] = name
                options["transaction.timeout.ms"] = int(max(self.timeout, 60) * 1000)
            producer = self._kafka.Producer(options)
            if self.transactional:
                producer.init_transactions(self.timeout)
            self._producers[name] = producer
        return self._producers[name]

    def _produce(self, producer: Any, records: Sequence[Record]) -> tuple[int, Any, dict[int, Any]]:
        """Produce records until the library refuses one, and wait for the broker's answers.

        Return how many were queued, the library's refusal or None, the broker's errors by index.
        """
        errors: dict[int, Any] = {}

        def report(index: int, error: Any, _: Any) -> None:
            if error is not None:
                errors[index] = error

        if self.transactional:
            producer.begin_transaction()
        queued, refusal = 0, None
        for queued, record in enumerate(records):
            try:
                producer.produce(
                    record.to,
                    record.data,
                    record.key,
                    headers=_headers(record),
                    on_delivery=functools.partial(report, queued),
                )
            except self._kafka.KafkaException as error:
                refusal = error.args[0]
                if refusal.code() not in self._refusals():
                    raise
                break
        if producer.flush(self.timeout):
            raise unavailable(f"no confirmation within {self.timeout:g} s")
        return queued, refusal, errors

    def _abort(self, producer: Any) -> None:
        if self.transactional:
            producer.abort_transaction(self.timeout)

    def _last_position(self, origin: Origin, to: str) -> int | None:
        kafka = self._kafka
        consumer = kafka.Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": f"outbox-relay-{origin.relay}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "log_level": 2,
                **self.config,
            }
        )
        try:
            topic = consumer.list_topics(to, timeout=self.timeout).topics[to]
            ends = []
            for partition in topic.partitions:
                at = kafka.TopicPartition(to, partition)
                low, high = consumer.get_watermark_offsets(at, timeout=self.timeout)
                if high > low:
                    start = max(low, high - LOOK_BACK)
                    ends.append(kafka.TopicPartition(to, partition, start))
            return self._read_ends(consumer, ends, origin) if ends else None
        finally:
            consumer.close()

    def _read_ends(self, consumer: Any, ends: list[Any], origin: Origin) -> int | None:
        consumer.assign(ends)
        open_ends, found = {each.partition for each in ends}, None
        while open_ends:
            message = consumer.poll(self.timeout)
            if message is None:
                raise unavailable(f"the ends of the topic were not read within {self.timeout:g} s")
            if message.error() is not None:
                if message.error().code() != self._kafka.KafkaError._PARTITION_EOF:
                    raise self._kafka.KafkaException(message.error())
                open_ends.discard(message.partition())
                continue
            attributes = {
                name[3:]: value.decode()
                for name, value in message.headers() or []
                if name.startswith("ce_")
            }
            position = position_in(attributes, origin)
            if position is not None:
                found = max(found or 0, position)
        return found


def _headers(record: Record) -> list[tuple[str, str]]:
    headers = [(NAMES[name], value) for name, value in record.attributes.items()]
    return headers + list(record.headers.items()) if record.headers else headers
