"""`python -m tests.support.persistent_publisher SEED FILE`: publish until SIGTERM, whatever happens.

Each message has a number of its own in its note; the file gets those whose commit was confirmed.
After an error of the database it goes on in a new session, as a web server does.
"""

from __future__ import annotations

import itertools
import random
import signal
import sys
import time

import django

django.setup()

from django.db import Error, connection, transaction  # noqa: E402

import outbox  # noqa: E402
from tests.shop.events import OrderPlaced  # noqa: E402

KEYS = 12


def main(seed: str, file: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    dice = random.Random(seed)
    with open(file, "a", encoding="utf-8") as confirmed:
        for number in itertools.count():
            note = f"n{seed}-{number}"
            try:
                with transaction.atomic():
                    outbox.publish(OrderPlaced(order_id=dice.randrange(KEYS), note=note))
            except Error:
                connection.close()
                time.sleep(0.05)
            else:
                print(note, file=confirmed, flush=True)
            if stopping:
                return
            time.sleep(dice.uniform(0, 0.01))


if __name__ == "__main__":
    main(*sys.argv[1:])
