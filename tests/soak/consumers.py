"""The groups of the rack. Every handler writes a row of its journal, at times slowly."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from django.db import connection

import outbox
from tests.bank.models import Deposited, Opened, Withdrawn
from tests.soak import facts
from tests.soak.events import Followed, Ordered, Quoted

PATIENT = outbox.Retry(max_attempts=1000, base=0.05, max_delay=0.5)
LEASE = 0.6

slowness = random.Random()


def group(name: str, channels: list[str], **options: Any) -> outbox.ConsumerGroup:
    options.setdefault("retry", PATIENT)
    return outbox.ConsumerGroup(name, channels=channels, start="earliest", **options)


single = group("single", ["orders", "quotes"])
wide = group("wide", ["orders"], parallelism=4)
stack = group("stack", ["orders", "quotes"], parallelism=2)
leased = group("leased", ["orders"], parallelism=2, delivery="at_least_once", lease=LEASE)
failing = group(
    "failing",
    ["orders"],
    parallelism=2,
    retry=outbox.Retry(max_attempts=3, base=0.02, max_delay=0.2),
)
chain = group("chain", ["orders"])
followers = group("followers", ["followups"], parallelism=2)
spare = group("spare", ["followups"])
ledger = group("ledger", ["accounts"], parallelism=2)

EXACTLY_ONCE = ["single", "wide", "stack", "failing", "chain", "followers", "spare", "ledger"]
AT_LEAST_ONCE = ["leased"]

INSERT = """
    INSERT INTO soak_journal ("group", channel, position, key, n, process, attempt)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


class Broken(Exception):
    """What a handler raises on purpose."""


def number(event: Any) -> int | None:
    return event["n"] if isinstance(event, dict) else getattr(event, "n", None)


def write(pairs: list[tuple[Any, outbox.Message]]) -> None:
    """Write a row of the journal for each message, in the handler's transaction if it has one."""
    rows = [
        [
            message.group,
            message.channel,
            message.position,
            message.key,
            number(event),
            os.getpid(),
            message.attempt,
        ]
        for event, message in pairs
    ]
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, rows)


def dawdle(longest: float = 0.3, chance: float = 0.004) -> None:
    """Take long, once in a few hundred calls."""
    if slowness.random() < chance:
        time.sleep(slowness.uniform(0, longest))


def journal(event: Any, message: outbox.Message) -> None:
    dawdle()
    write([(event, message)])
    dawdle()


def journal_leased(event: Any, message: outbox.Message) -> None:
    dawdle(4 * LEASE, chance=0.02)
    write([(event, message)])


def journal_or_fail(event: Any, message: outbox.Message) -> None:
    write([(event, message)])
    if not isinstance(event, dict) and message.attempt <= event.fails:
        raise Broken(f"attempt {message.attempt} of {event.fails + 1}")


def journal_and_follow(event: Any, message: outbox.Message) -> None:
    journal(event, message)
    if not isinstance(event, dict) and event.follows:
        n = facts.new("followups", event.key)
        outbox.publish(Followed(key=event.key, n=n))


def journal_all(events: list[Any], messages: list[outbox.Message]) -> None:
    write(list(zip(events, messages, strict=True)))
    dawdle()


for each, handler in (
    (single, journal),
    (wide, journal),
    (leased, journal_leased),
    (failing, journal_or_fail),
    (chain, journal_and_follow),
):
    each.handler(Ordered)(handler)
    each.handler("Imported")(handler)
single.handler(Quoted)(journal)
for each in (followers, spare):
    each.handler(Followed)(journal)
for event_type in (Ordered, "Imported", Quoted):
    stack.batch_handler(event_type)(journal_all)
for event_type in (Opened, Deposited, Withdrawn):
    ledger.handler(event_type)(journal)
