"""`python bare_publisher.py DRIVER DSN SEED FILE`: publish through SQL until SIGTERM, without Django.

Transactions with savepoints, pauses and roll-backs, in two channels. Each message has a number of its
own; the file gets those whose commit was confirmed.
"""

from __future__ import annotations

import importlib
import itertools
import random
import signal
import sys
import time

RAW = """INSERT INTO outbox_message (channel, key, type, payload)
    VALUES (%s, %s, 'Item', json_build_object('n', %s::text))"""
ANNOUNCED = "SELECT outbox_publish_v1(%s, %s, 'Item', json_build_object('n', %s::text), '{}')"


def main(driver: str, dsn: str, seed: str, file: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    dice, numbers = random.Random(seed), itertools.count()
    connection = importlib.import_module(driver).connect(dsn)
    with open(file, "a", encoding="utf-8") as confirmed, connection.cursor() as cursor:
        while not stopping:
            kept: list[str] = []
            for _ in range(dice.randint(1, 3)):
                number = f"{seed}-{next(numbers)}"
                cursor.execute("SAVEPOINT inner_block")
                statement = RAW if dice.random() < 0.3 else ANNOUNCED
                cursor.execute(statement, [dice.choice("ab"), str(dice.randrange(9)), number])
                if dice.random() < 0.2:
                    cursor.execute("ROLLBACK TO SAVEPOINT inner_block")
                else:
                    kept.append(number)
                time.sleep(dice.uniform(0, 0.02))
            if dice.random() < 0.1:
                connection.rollback()
                continue
            connection.commit()
            confirmed.writelines(f"{number}\n" for number in kept)
            confirmed.flush()
            time.sleep(dice.uniform(0.05, 0.3))


if __name__ == "__main__":
    main(*sys.argv[1:])
