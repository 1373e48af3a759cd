"""The groups of the shop. Each handler records what it did, then does what the message's note says:

"gate"     wait at the gate named after the group (tests/shop/gates.py)
"fragile"  fail while the group has a row in Fault
"swallow"  catch a database error that leaves the transaction unusable, and return as if nothing had happened
"exit"     end the process without a word
"segfault" end the process as a fault in a C extension does
"hang"     never return
"""

import os
import signal
import threading

from django.db import DatabaseError, connection

import outbox
from tests.shop.events import Countdown, OrderPlaced, OrderShipped, PackingRequested, PaymentTaken
from tests.shop.gates import wait_at_gate
from tests.shop.models import Effect, Fault

# Long enough that no test sees a second attempt that it did not ask for.
UNHURRIED = outbox.Retry(base=300.0, max_delay=300.0, jitter=False)


class Broken(Exception):
    """What a handler raises on a fragile message."""


def begin(group, key):
    """Return the backend's process id, and whether another transaction is handling this key of the
    group just now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_backend_pid(), coalesce(NOT pg_try_advisory_xact_lock(hashtext(%s), hashtext(%s)), false)",
            [group, key],
        )
        return cursor.fetchone()


def handle(group, note, message):
    backend, overlapped = begin(group, message.key)
    Effect.objects.create(
        group=group,
        channel=message.channel,
        position=message.position,
        key=message.key,
        type=message.type,
        attempt=message.attempt,
        overlapped=overlapped,
        backend=backend,
    )
    if note == "gate":
        wait_at_gate(group)
    elif note == "fragile" and Fault.objects.filter(group=group).exists():
        raise Broken(f"{group} fails on {message.position}")
    elif note == "exit":
        os._exit(1)
    elif note == "segfault":
        signal.raise_signal(signal.SIGSEGV)
    elif note == "hang":
        threading.Event().wait()
    elif note == "swallow" and Fault.objects.filter(group=group).exists():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
        except DatabaseError:
            pass


def recording_group(name, channels, *events, **options):
    options.setdefault("retry", UNHURRIED)
    group = outbox.ConsumerGroup(name, channels=channels, start="earliest", **options)
    for event_class in events:
        group.handler(event_class)(lambda event, message: handle(name, event.note, message))
    return group


billing = recording_group("billing", ["orders"], OrderPlaced, OrderShipped)
shipping = recording_group("shipping", ["orders"], OrderPlaced, OrderShipped)
crew = recording_group("crew", ["orders"], OrderPlaced, OrderShipped, parallelism=4)
audit = recording_group("audit", ["orders", "payments"], OrderPlaced, OrderShipped, PaymentTaken)

hasty = recording_group(
    "hasty",
    ["orders"],
    OrderPlaced,
    parallelism=2,
    timeout=1.0,
    retry=outbox.Retry(max_attempts=5, base=0.05),
)
doomed = recording_group(
    "doomed", ["orders"], OrderPlaced, parallelism=4, retry=outbox.Retry(max_attempts=5, base=0.05)
)

relay = outbox.ConsumerGroup("relay", channels=["orders"], start="earliest")
packers = outbox.ConsumerGroup("packers", channels=["packing"], start="earliest")
countdown = outbox.ConsumerGroup("countdown", channels=["countdowns"], start="earliest")


@relay.handler(OrderPlaced)
def request_packing(event, message):
    outbox.publish(PackingRequested(order_id=event.order_id))
    handle("relay", event.note, message)


@packers.handler(PackingRequested)
def pack(event, message):
    handle("packers", "", message)


@countdown.handler(Countdown)
def count_down(event, message):
    """Publish to the very channel that this group consumes."""
    if event.left:
        outbox.publish(Countdown(left=event.left - 1))
    handle("countdown", "", message)


def record_batch(name):
    """Return a batch handler that only records, so that its group keeps up with fast publishers."""

    def handle_batch(events, messages):
        effects = [
            Effect(
                group=name,
                channel=message.channel,
                position=message.position,
                key=message.key,
                type=message.type,
                attempt=message.attempt,
            )
            for message in messages
        ]
        Effect.objects.bulk_create(effects)

    return handle_batch


ledger = outbox.ConsumerGroup("ledger", channels=["orders"], start="earliest")
desks = outbox.ConsumerGroup("desks", channels=["orders"], start="earliest", parallelism=4)
ledger.batch_handler(OrderPlaced)(record_batch("ledger"))
desks.batch_handler(OrderPlaced)(record_batch("desks"))


stackers = outbox.ConsumerGroup(
    "stackers", channels=["orders"], retry=outbox.Retry(max_attempts=5, base=0.05)
)


@stackers.batch_handler(OrderPlaced)
def stack(events, messages):
    for event, message in zip(events, messages, strict=True):
        handle("stackers", event.note, message)


def count_only(payloads, messages):
    """Handle a batch without any write: what then changes in the database is the library's own
    doing."""


def bulk_group(name):
    group = outbox.ConsumerGroup(name, channels=["bulk"], start="earliest")
    group.batch_handler("Bulk")(count_only)
    return group


bulk_groups = [bulk_group("bulk-a"), bulk_group("bulk-b"), bulk_group("bulk-c")]
