"""The contract of a sink as a test: what every sink must do, checked against a real destination.

`outbox.testing.sink_contract` is the public name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ..consuming.cursors import SLOTS
from ..exceptions import DestinationUnavailable, RecordRefused
from .records import source_of, test_record
from .sink import CURSOR_ATTRIBUTE, SEQUENCE_ATTRIBUTE, SEQUENCE_DIGITS, Origin, Record, Sink


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One record as it is found at the destination."""

    sequence: int
    """The CloudEvents attribute `sequence` as a number."""
    key: str | None
    data: bytes


def sink_contract(
    open_sink: Callable[[], Sink],
    received: Callable[[], Sequence[Received]],
    *,
    too_large: int | None = None,
    unreachable: Callable[[], Sink] | None = None,
    first_position: int = 1000,
) -> None:
    """Check what every sink must do; raises AssertionError with the point that does not hold.

    `open_sink`: makes a sink of the same destination, without records at first. `received`: returns
    what the destination holds, in order, test messages left out. `too_large`: bytes of a payload
    that the destination refuses. `unreachable`: makes a sink whose destination is down.
    """
    origin = Origin("contract", "orders", 0, SLOTS - 1, 1)
    first = _Run(open_sink(), origin, received, first_position)
    try:
        _sends_in_order(first)
        _tells_its_position(first)
        _connects_again(first)
        _takes_a_test_message(first)
        if too_large is not None:
            _refuses_what_is_too_large(first, too_large)
    finally:
        first.sink.close()
    late = _Run(open_sink(), origin, received, first.next)
    late.sent = first.sent
    try:
        _resumes(late)
    finally:
        late.sink.close()
    if unreachable is not None:
        _is_unavailable(unreachable(), origin)


class _Run:
    def __init__(
        self, sink: Sink, origin: Origin, received: Callable[[], Sequence[Received]], at: int
    ) -> None:
        self.sink, self.origin, self.received, self.next = sink, origin, received, at
        self.sent: list[Record] = []

    def records(self, count: int, size: int = 20) -> list[Record]:
        start, self.next = self.next, self.next + count
        to = _place(self.sink)
        return [
            _record(self.origin, position, size, to) for position in range(start, start + count)
        ]

    def send(self, records: Sequence[Record]) -> None:
        most = self.sink.most_together or len(records)
        for start in range(0, len(records), most):
            self.sink.send(self.origin, records[start : start + most])
        self.sent += records

    def check(self, claim: str) -> None:
        found = [(each.sequence, each.key, each.data) for each in self.received()]
        wanted = [(each.position, each.key, each.data) for each in self.sent]
        assert found == wanted, (
            f"{claim}: the destination holds {len(found)} records {_few(found)}, "
            f"not the {len(wanted)} that were sent {_few(wanted)}"
        )


def _sends_in_order(run: _Run) -> None:
    run.send(run.records(25))
    run.check("send returns when everything is there, in order, with key and payload unchanged")


def _tells_its_position(run: _Run) -> None:
    other = dataclasses.replace(run.origin, generation=run.origin.generation + 1)
    last = run.sent[-1].position
    told = run.sink.position(run.origin, _place(run.sink))
    assert told in (None, last), f"position() says {told}; the last record sent is {last}"
    told = run.sink.position(other, _place(run.sink))
    assert told is None, f"position() says {told} for another origin, of which nothing was sent"


def _connects_again(run: _Run) -> None:
    run.sink.close()
    run.sink.close()
    run.send(run.records(2))
    run.check("after close() the next send connects again")


def _takes_a_test_message(run: _Run) -> None:
    run.sink.send(run.origin, [test_record(run.origin, run.sink.to)])
    run.send(run.records(2))
    run.check("a test message changes nothing for the records behind it")


def _refuses_what_is_too_large(run: _Run, size: int) -> None:
    good = [] if run.sink.most_together == 1 else run.records(1)
    try:
        run.sink.send(run.origin, [*good, *run.records(1, size)])
    except RecordRefused as refusal:
        run.sent += good[: refusal.sent]
        assert any(letter.isdigit() for letter in refusal.reason), (
            f"the refusal names no limit: {refusal.reason}"
        )
    else:
        raise AssertionError(f"a payload of {size} bytes was taken")
    run.check("a record that is refused leaves those before it, as many as `sent` says")
    run.send(run.records(2))
    run.check("after a refusal the next records are taken")


def _resumes(run: _Run) -> None:
    last = run.sent[-1].position
    told = run.sink.position(run.origin, _place(run.sink))
    assert told in (None, last), f"a new sink's position() says {told}; the last record is {last}"
    run.send(run.records(3))
    run.check("a new sink goes on where the one before it stopped")


def _is_unavailable(sink: Sink, origin: Origin) -> None:
    try:
        sink.send(origin, [_record(origin, 1, 20, _place(sink))])
    except DestinationUnavailable as error:
        assert error.sent == 0, f"the destination is down, and sent={error.sent}"
    else:
        raise AssertionError("send to a destination that is down raises DestinationUnavailable")
    finally:
        sink.close()


def _place(sink: Sink) -> str:
    return sink.to.replace("{channel}", "orders").replace("{type}", "OrderPlaced")


def _record(origin: Origin, position: int, size: int, to: str) -> Record:
    key = f"order-{position % 3}"
    attributes = {
        "specversion": "1.0",
        "id": str(position),
        "source": source_of(origin.channel),
        "type": "OrderPlaced",
        "time": "2026-01-31T12:00:00+00:00",
        "datacontenttype": "application/json",
        SEQUENCE_ATTRIBUTE: str(position).zfill(SEQUENCE_DIGITS),
        CURSOR_ATTRIBUTE: str(origin),
        "subject": key,
        "partitionkey": key,
    }
    text = "x" * max(0, size - 20)
    data = f'{{"n": {position}, "s": "{text}"}}'.encode()
    return Record(position, f"{origin.relay}:{position}", to, key, data, attributes, {})


def _few(found: Sequence[object]) -> str:
    return str(found[:3]) + (f" … {found[-2:]}" if len(found) > 3 else "")
