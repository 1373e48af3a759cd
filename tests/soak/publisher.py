"""A publisher of the rack: `python -m tests.soak.publisher SEED ACKS`, until SIGTERM.

It publishes in every way there is, and appends to the file ACKS the numbers of the messages whose
commit was confirmed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from decimal import Decimal

import django

if __name__ == "__main__":
    django.setup()

from django.db import Error, connection, transaction

import outbox
from outbox.exceptions import OutboxError
from tests.bank.models import Account, Deposited, Opened, Withdrawn
from tests.library.models import Counter
from tests.soak import facts
from tests.soak.events import Ordered, Quoted

KEYS = 40
COUNTERS = 20
ACCOUNTS = 12
MOST_PENDING, FEWEST_PENDING = 300, 100
"""Messages of a range: from the first on publishers wait until every range has fewer than the second."""
INSERT = """
    INSERT INTO outbox_message (channel, key, type, payload)
    VALUES ('orders', %s, 'Imported', jsonb_build_object('key', %s::text, 'n', %s::bigint))
"""
BEHIND = """
    SELECT EXISTS (
        SELECT FROM outbox_cursor AS c
        WHERE EXISTS (
            SELECT FROM outbox_message AS m
            WHERE m.channel = c.channel AND m.position > c.position
              AND m.slot BETWEEN c.slot_from AND c.slot_to
            ORDER BY m.position
            OFFSET %s
        )
    )
"""
COPY = "COPY outbox_message (channel, key, type, payload) FROM STDIN"


class Undone(Exception):
    """What rolls a transaction or a savepoint back on purpose."""


class Publisher:
    """Publishes by the dice; `numbers` are the messages of the transaction that is open."""

    def __init__(self, seed: str) -> None:
        self.dice = random.Random(seed)
        self.numbers: list[int] = []
        self.styles: list[Callable[[], None]] = [
            self.one,
            self.one,
            self.many,
            self.raw,
            self.statement,
            self.copy,
            self.counters,
            self.savepoints,
            self.pause,
            self.quotes,
            self.quotes,
        ]

    def turn(self) -> list[int]:
        """Publish in one transaction, by one to three ways; return the numbers it committed."""
        self.numbers = []
        dice = self.dice.random()
        if dice < 0.1:
            self.stream()
        elif dice < 0.14:
            self.prepared()
        else:
            with contextlib.suppress(Undone), transaction.atomic():
                for style in self.dice.choices(self.styles, k=self.dice.randint(1, 3)):
                    style()
                if self.dice.random() < 0.08:
                    self.numbers = []
                    raise Undone
        return self.numbers

    def order(self) -> Ordered:
        key = None if self.dice.random() < 0.1 else f"k{self.dice.randrange(KEYS)}"
        n = self.new("orders", key)
        fails = self.dice.choice([1, 1, 2, 3, 4, 5]) if self.dice.random() < 0.02 else 0
        return Ordered(key=key, n=n, fails=fails, follows=self.dice.random() < 0.1)

    def new(self, channel: str, key: str | None) -> int:
        self.numbers.append(facts.new(channel, key))
        return self.numbers[-1]

    def one(self) -> None:
        outbox.publish(self.order())

    def many(self) -> None:
        outbox.publish_many([self.order() for _ in range(self.dice.randint(2, 12))])

    def raw(self) -> None:
        key = f"k{self.dice.randrange(KEYS)}"
        outbox.publish_raw("orders", "Imported", {"n": self.new("orders", key)}, key=key)

    def statement(self) -> None:
        key = f"k{self.dice.randrange(KEYS)}"
        with connection.cursor() as cursor:
            cursor.execute(INSERT, [key, key, self.new("orders", key)])

    def copy(self) -> None:
        keys = [f"k{self.dice.randrange(KEYS)}" for _ in range(self.dice.randint(1, 10))]
        rows = [[key, json.dumps({"n": self.new("orders", key)})] for key in keys]
        text = "".join(f"orders\t{key}\tImported\t{payload}\n" for key, payload in rows)
        with connection.cursor() as cursor:
            if hasattr(cursor.cursor, "copy_expert"):
                cursor.cursor.copy_expert(COPY, io.StringIO(text))
            else:
                with cursor.cursor.copy(COPY) as copy:
                    copy.write(text)

    def counters(self) -> None:
        """Change a captured table, by the ORM or by plain SQL."""
        number = self.dice.randrange(COUNTERS)
        dice = self.dice.random()
        if dice < 0.5:
            Counter.objects.update_or_create(
                pk=number, defaults={"value": self.dice.randrange(999)}
            )
        elif dice < 0.9:
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE library_counter SET value = value + 1 WHERE id >= %s", [number]
                )
        else:
            Counter.objects.filter(pk=number).delete()

    def savepoints(self) -> None:
        kept = list(self.numbers)
        with contextlib.suppress(Undone), transaction.atomic():
            self.one()
            if self.dice.random() < 0.5:
                self.numbers = kept
                raise Undone
        self.one()

    def pause(self) -> None:
        time.sleep(self.dice.choice([0.0, 0.01, 0.05, 0.3, 1.5]))

    def quotes(self) -> None:
        for _ in range(self.dice.randint(1, 4)):
            key = f"q{self.dice.randrange(KEYS)}"
            outbox.publish(Quoted(key=key, n=self.new("quotes", key)))

    def stream(self) -> None:
        """Open an account, or move money in one; two publishers meet at the same version."""

        def move(account: Account) -> list[outbox.Event]:
            if account.version == 0:
                return [Opened(account=key, owner="rack")]
            amount = Decimal(self.dice.randint(1, 20))
            if account.balance >= amount and self.dice.random() < 0.5:
                return [Withdrawn(account=key, amount=amount)]
            return [Deposited(account=key, amount=amount)] * self.dice.randint(1, 2)

        key = f"a{self.dice.randrange(ACCOUNTS)}"
        with contextlib.suppress(OutboxError):
            outbox.decide(Account, key, move, retries=5)

    def prepared(self) -> None:
        """Publish in a prepared transaction; after a pause it is committed or rolled back."""
        name = f"soak-{facts.numbers.getrandbits(60)}"
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                cursor.execute("SET LOCAL outbox.notify = off")
                self.statement()
                cursor.execute(f"PREPARE TRANSACTION '{name}'")
            except BaseException:
                self.numbers = []
                with contextlib.suppress(Error):
                    cursor.execute("ROLLBACK")
                raise
            time.sleep(self.dice.choice([0.0, 0.05, 0.5]))
            numbers, self.numbers = self.numbers, []
            ending = "ROLLBACK" if self.dice.random() < 0.2 else "COMMIT"
            cursor.execute(f"{ending} PREPARED '{name}'")
            self.numbers = numbers if ending == "COMMIT" else []


def some_range_has(pending: int) -> bool:
    """Tell whether more messages than that are pending in some range."""
    with connection.cursor() as cursor:
        cursor.execute(BEHIND, [pending])
        (is_behind,) = cursor.fetchone()
    return bool(is_behind)


def main(seed: str, acks: str) -> None:
    """Publish until SIGTERM; whatever ends a session is followed by a new one."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    publisher, pace = Publisher(seed), random.Random(seed)
    looked_at = 0.0
    with open(acks, "a", encoding="utf-8") as file:
        while not stopping:
            try:
                numbers = publisher.turn()
                file.writelines(f"{n}\n" for n in numbers)
                file.flush()
                if time.monotonic() - looked_at > 1:
                    most = MOST_PENDING
                    while not stopping and some_range_has(most):
                        most = FEWEST_PENDING
                        time.sleep(0.5)
                    looked_at = time.monotonic()
            except (Error, connection.Database.Error):  # COPY raises the driver's own
                connection.close()
                time.sleep(0.1)
            time.sleep(pace.expovariate(1 / 0.03))
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
