"""The consumer groups of the benchmarks; each figure has its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import outbox
from benchmarks.events import CHANNEL, OrderPlaced
from benchmarks.models import Invoice

look = outbox.ConsumerGroup("look", channels=[CHANNEL])
look_again = outbox.ConsumerGroup("look_again", channels=[CHANNEL])
look_further = outbox.ConsumerGroup("look_further", channels=[CHANNEL])
stamp = outbox.ConsumerGroup("stamp", channels=[CHANNEL])
bill = outbox.ConsumerGroup("bill", channels=[CHANNEL])
bill_together = outbox.ConsumerGroup("bill_together", channels=[CHANNEL])


@look.handler(OrderPlaced)
@look_again.handler(OrderPlaced)
@look_further.handler(OrderPlaced)
def do_nothing(event: OrderPlaced, message: outbox.Message) -> None:
    """Cost nothing: what is left is the outbox."""


@bill.handler(OrderPlaced)
def create_invoice(event: OrderPlaced, message: outbox.Message | None = None) -> None:
    """Write one row through the ORM."""
    Invoice.objects.create(order_id=event.order_id, total=event.total)


@bill_together.batch_handler(OrderPlaced)
def create_invoices(events: Sequence[OrderPlaced], messages: Sequence[outbox.Message] = ()) -> None:
    """Write the rows of neighbouring messages with one statement."""
    Invoice.objects.bulk_create(
        [Invoice(order_id=event.order_id, total=event.total) for event in events]
    )


@stamp.handler(OrderPlaced)
def note_the_time(event: OrderPlaced, message: outbox.Message) -> None:
    """Write the time, in nanoseconds, into the pipe that `stamp_into` named."""
    os.write(_pipes[-1], time.monotonic_ns().to_bytes(8))


_pipes: list[int] = []


def stamp_into(pipe: int) -> None:
    """Let the group `stamp` write into this pipe."""
    _pipes.append(pipe)


WORK = "work"
WAIT, CHURN = 0.002, 0.001
waiters = outbox.ConsumerGroup("waiters", channels=[WORK])
churners = outbox.ConsumerGroup("churners", channels=[WORK])


@waiters.handler("Worked")
def wait(payload: object, message: outbox.Message) -> None:
    """Take as long as a call to another service."""
    time.sleep(WAIT)


@churners.handler("Worked")
def churn(payload: object, message: outbox.Message) -> None:
    """Keep the processor busy."""
    until = time.thread_time() + CHURN
    while time.thread_time() < until:
        pass
