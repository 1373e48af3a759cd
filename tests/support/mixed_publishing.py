"""Publishers of every kind, each a thread with a session of its own, for the tests of promise 2.

A publisher is a function (session, dice) that runs one transaction and returns the numbers of the
messages that it committed. The number of a message is in its payload; a captured row has none.
"""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Callable
from typing import Any

from django.db import connection, transaction

import outbox
from tests.library.models import Counter
from tests.support.harness import DRIVER_ERROR, backend, copy_in, execute, value

CHANNELS = ["north", "south", "west"]
CAPTURED = "counters"
KEYS = 12
RAW = """
    INSERT INTO outbox_message (channel, key, type, payload)
    VALUES (%s, %s, 'Item', json_build_object('n', %s::bigint))
"""
ANNOUNCED = """
    SELECT outbox_publish_v1(%s, %s, 'Item', json_build_object('n', %s::bigint), '{}')
"""
COPY = "COPY outbox_message (channel, key, type, payload) FROM STDIN"

_numbers = itertools.count(1)


def pause(session: Any, dice: random.Random, most: float = 0.008) -> None:
    """Keep the transaction open, so that commits overlap and overtake each other."""
    execute(session, "SELECT pg_sleep(%s)", dice.random() * most)


def _insert(session: Any, dice: random.Random, statement: str) -> int:
    number = next(_numbers)
    execute(session, statement, dice.choice(CHANNELS), str(dice.randrange(KEYS)), number)
    return number


def _end(session: Any, dice: random.Random, numbers: list[int]) -> list[int]:
    ending = "COMMIT" if dice.random() < 0.8 else "ROLLBACK"
    execute(session, ending)
    return numbers if ending == "COMMIT" else []


def by_statements(session: Any, dice: random.Random, statement: str = RAW) -> list[int]:
    """Statements with savepoints that are kept and undone, and publishing again after those."""
    execute(session, "BEGIN")
    kept = []
    for _ in range(dice.randint(1, 3)):
        execute(session, "SAVEPOINT inner_block")
        number = _insert(session, dice, statement)
        pause(session, dice)
        if dice.random() < 0.3:
            execute(session, "ROLLBACK TO SAVEPOINT inner_block")
        else:
            kept.append(number)
        kept.append(_insert(session, dice, statement))
        pause(session, dice)
    return _end(session, dice, kept)


def by_function(session: Any, dice: random.Random) -> list[int]:
    """The same through the function that names the channel of each message."""
    return by_statements(session, dice, ANNOUNCED)


def by_copy(session: Any, dice: random.Random) -> list[int]:
    """COPY of several rows in several channels."""
    execute(session, "BEGIN")
    numbers = [next(_numbers) for _ in range(dice.randint(1, 8))]
    lines = [
        f"{dice.choice(CHANNELS)}\t{dice.randrange(KEYS)}\tItem\t{json.dumps({'n': number})}\n"
        for number in numbers
    ]
    copy_in(session, COPY, "".join(lines))
    pause(session, dice)
    return _end(session, dice, numbers)


def prepared(session: Any, dice: random.Random) -> list[int]:
    """PREPARE TRANSACTION, and its end in a later transaction, perhaps of another session.

    The session that prepared it may be gone by then, as after a restart of its program.
    """
    name = f"outbox-mixed-{uuid.UUID(int=dice.getrandbits(128))}"
    execute(session, "BEGIN")
    execute(session, "SET LOCAL outbox.notify = off")
    numbers = [_insert(session, dice, dice.choice([RAW, ANNOUNCED])) for _ in range(2)]
    execute(session, f"PREPARE TRANSACTION '{name}'")
    pause(session, dice, 0.02)
    if dice.random() < 0.3:
        session = session.start_again()
    ending = "COMMIT" if dice.random() < 0.7 else "ROLLBACK"
    execute(session, f"{ending} PREPARED '{name}'")
    return numbers if ending == "COMMIT" else []


def mistaken(session: Any, dice: random.Random) -> list[int]:
    """A program that names another channel than that of its INSERT; the log refuses it."""
    execute(session, "BEGIN")
    execute(session, "SELECT set_config('outbox.channels', '{elsewhere}', true)")
    try:
        number = _insert(session, dice, RAW)
    except DRIVER_ERROR:
        execute(session, "ROLLBACK")
        return []
    pause(session, dice, 0.5)  # longer than the others' transactions, whose floors protect it, too
    execute(session, "COMMIT")
    return [number]


def by_orm(session: Any, dice: random.Random) -> list[int]:
    """`outbox.publish_many` over several channels and a captured model, in nested blocks."""
    kept: list[int] = []
    with transaction.atomic():
        for _ in range(dice.randint(1, 3)):
            is_undone = dice.random() < 0.3
            with transaction.atomic():
                number = next(_numbers)
                channel, key = dice.choice(CHANNELS), dice.randrange(KEYS)
                outbox.publish_raw(channel, "Item", {"n": number}, key=str(key))
                Counter.objects.update_or_create(pk=backend(connection), defaults={"value": number})
                pause(connection, dice)
                transaction.set_rollback(is_undone)
            kept += [] if is_undone else [number]
            pause(connection, dice)
        if dice.random() < 0.2:
            transaction.set_rollback(True)
            kept = []
    return kept


def by_trigger(session: Any, dice: random.Random) -> list[int]:
    """Plain SQL on a captured table."""
    execute(session, "BEGIN")
    row = value(session, "INSERT INTO library_counter (value, note) VALUES (1, '') RETURNING id")
    pause(session, dice)
    execute(session, "UPDATE library_counter SET value = value + 1 WHERE id = %s", row)
    pause(session, dice)
    return _end(session, dice, [])


Publisher = Callable[[Any, random.Random], list[int]]
PUBLISHERS: list[Publisher] = [
    by_statements,
    by_function,
    by_copy,
    prepared,
    mistaken,
    by_orm,
    by_trigger,
]


class Session:
    """A raw session that can be closed and opened anew; `role`: what it then is."""

    def __init__(self, connect: Callable[[], Any], role: str | None = None) -> None:
        self.connect = connect
        self.role = role
        self.start_again()

    def start_again(self) -> Session:
        """Close the session, if there is one, and begin another."""
        if hasattr(self, "raw"):
            self.raw.close()
        self.raw = self.connect()
        if self.role is not None:
            execute(self.raw, f'SET ROLE "{self.role}"')
        return self

    def cursor(self) -> Any:
        """Return a cursor of the session."""
        return self.raw.cursor()


def publish_mixed(
    session: Session, publisher: Publisher, seed: int, transactions: int, committed: list[int]
) -> None:
    """Run transactions of one publisher by its dice."""
    dice = random.Random(seed)
    for _ in range(transactions):
        committed += publisher(session, dice)


def stored_numbers(session: Any) -> list[int]:
    """The numbers of the messages in the log, captured rows left out."""
    rows = execute(session, "SELECT payload ->> 'n' FROM outbox_message WHERE type = 'Item'")
    return [int(number) for (number,) in rows]


def can_prepare(session: Any) -> bool:
    """Whether the server allows prepared transactions."""
    return bool(value(session, "SHOW max_prepared_transactions") != "0")
