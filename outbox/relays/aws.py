"""SQS and SNS, FIFO: a request takes ten messages, and the key is the message group.

A request holds no two messages of one key, because one of them could fail alone and the later one
be taken. The deduplication id keeps doubles out for the five minutes that AWS remembers it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .sink import Origin, Record, library, refused, unavailable

MOST = 10
"""Messages in a request."""
REQUEST_BYTES = 1_048_576
"""Bytes of a request, and of a message."""
MOST_ATTRIBUTES = 10
ID_LENGTH = 128


class _Fifo:
    """What SQS and SNS have in common. The class options go to `boto3.client`."""

    service = ""
    most_together: int | None = 100

    def __init__(self, to: str, *, max_bytes: int = REQUEST_BYTES, **options: Any) -> None:
        self._boto3 = library("boto3", "aws")
        self.to, self.max_bytes, self.options = to, max_bytes, options
        self._made: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return None: a queue does not say what it has."""
        return None

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Send the records, ten in a request at most, each request after the one before it."""
        sent = 0
        for batch in _requests(records, self.max_bytes):
            failed: dict[int, Any] = {}
            if batch:
                try:
                    failed = self._request(batch[0].to, batch)
                except Exception as error:
                    self._raise(error, batch, sent)
            if failed:
                index = min(failed)
                self._raise_entry(failed[index], sent + index)
            sent += len(batch)
        if sent < len(records):
            size = _size(records[sent])
            raise refused(sent, f"it has {size} bytes, and the queue takes {self.max_bytes} bytes")

    def close(self) -> None:
        """Give up the connections; the client stays, since boto3 takes 0.3 s to make one."""
        if self._made is not None:
            self._made.close()

    def _client(self) -> Any:
        if self._made is None:
            self._made = self._boto3.session.Session().client(self.service, **self.options)
        return self._made

    def _request(self, to: str, batch: Sequence[Record]) -> dict[int, Any]:
        """Send one request; return the entries that failed by index."""
        raise NotImplementedError

    def _raise(self, error: Exception, batch: Sequence[Record], sent: int) -> None:
        raise unavailable(error, sent) from error

    def _raise_entry(self, entry: dict[str, Any], sent: int) -> None:
        reason = f"{entry.get('Code')}: {entry.get('Message', '')}"
        if entry.get("SenderFault") and "Throttl" not in reason and "Denied" not in reason:
            raise refused(sent, reason)
        raise unavailable(reason, sent)


class Sqs(_Fifo):
    """Sends records to the FIFO queue at `to`, its URL.

    `max_bytes`: of a message, as the queue is configured. Further options go to `boto3.client`,
    such as `region_name`. Needs the extra `aws`; raises MissingExtra.
    """

    service = "sqs"

    def _request(self, to: str, batch: Sequence[Record]) -> dict[int, Any]:
        entries = [
            {
                "Id": str(index),
                "MessageBody": record.data.decode(),
                "MessageAttributes": _attributes(record),
                **_fifo(record),
            }
            for index, record in enumerate(batch)
        ]
        answer = self._client().send_message_batch(QueueUrl=to, Entries=entries)
        return {int(each["Id"]): each for each in answer.get("Failed", ())}


class Sns(_Fifo):
    """Publishes records to the FIFO topic `to`, its ARN; options as for `Sqs`."""

    service = "sns"

    def __init__(self, to: str, *, max_bytes: int = 262_144, **options: Any) -> None:
        super().__init__(to, max_bytes=max_bytes, **options)

    def _request(self, to: str, batch: Sequence[Record]) -> dict[int, Any]:
        entries = [
            {
                "Id": str(index),
                "Message": record.data.decode(),
                "MessageAttributes": _attributes(record),
                **_fifo(record),
            }
            for index, record in enumerate(batch)
        ]
        answer = self._client().publish_batch(TopicArn=to, PublishBatchRequestEntries=entries)
        return {int(each["Id"]): each for each in answer.get("Failed", ())}


def _requests(records: Sequence[Record], most_bytes: int) -> Iterator[list[Record]]:
    """Cut the records into requests; ends before a record that is too large."""
    batch: list[Record] = []
    keys: set[str] = set()
    size = 0
    for record in records:
        bytes_ = _size(record)
        if bytes_ > most_bytes:
            break
        is_other = bool(batch) and batch[0].to != record.to
        is_full = len(batch) == MOST or size + bytes_ > most_bytes
        if is_other or is_full or record.key in keys:
            yield batch
            batch, keys, size = [], set(), 0
        batch.append(record)
        size += bytes_
        if record.key is not None:
            keys.add(record.key)
    if batch:
        yield batch


def _size(record: Record) -> int:
    named = _attributes(record).items()
    return len(record.data) + sum(len(n) + len(v["StringValue"].encode()) + 6 for n, v in named)


def _fifo(record: Record) -> dict[str, str]:
    return {
        "MessageGroupId": _valid_id(record.id if record.key is None else record.key),
        "MessageDeduplicationId": _valid_id(record.id),
    }


def _valid_id(text: str) -> str:
    """Return the text as AWS takes it; other texts become a digest, the same one each time."""
    if re.fullmatch(r"[\x21-\x7e]{1,128}", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()


def _attributes(record: Record) -> dict[str, Any]:
    """Return the attributes as AWS takes them: ten at most, the others in one of them as JSON."""
    named = {f"ce_{name}": value for name, value in record.attributes.items() if value}
    named.update({name: value for name, value in record.headers.items() if value})
    first = dict(list(named.items())[:MOST_ATTRIBUTES])
    if len(named) > MOST_ATTRIBUTES:
        first.pop(list(first)[-1])
        rest = {name: value for name, value in named.items() if name not in first}
        first["ce_further"] = json.dumps(rest)
    return {name: {"DataType": "String", "StringValue": value} for name, value in first.items()}
