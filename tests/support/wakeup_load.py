"""The load of the wake-up tests, in processes of its own.

`python -m tests.support.wakeup_load publish CHANNEL COUNT SEED` publishes with pauses, roll-backs and
savepoints and prints a line "position commit-time" for each message that committed. Most pauses
are about as long as a worker needs to go idle; after one in a hundred messages comes a silence in
which a lost wake-up shows. The transaction before a silence stays open for a moment: that is when a
worker may go to sleep beside it.

`python -m tests.support.wakeup_load consume CHANNEL` handles messages until it is told to stop and
prints a line "position handling-time" for each. Nothing but a NOTIFY wakes it within a minute: it
does not look again soon at a range that another worker holds either.
"""

from __future__ import annotations

import random
import signal
import sys
import time

import django

django.setup()

from django.db import transaction  # noqa: E402

import outbox  # noqa: E402
from outbox.consuming import notifications  # noqa: E402
from outbox.worker import Worker  # noqa: E402

POLL_INTERVAL = 60.0
SILENCE = 1.5


def tick(payload: object, message: outbox.Message) -> None:
    print(message.position, time.time(), flush=True)


def publish(channel: str, count: int, seed: int) -> None:
    dice = random.Random(seed)
    published = 0
    while published < count:
        is_last = dice.random() < 0.01
        if position := attempt(channel, dice, is_last):
            print(position, time.time(), flush=True)
            published += 1
        time.sleep(SILENCE if is_last else dice.uniform(0, 0.004))


def attempt(channel: str, dice: random.Random, is_last: bool) -> int | None:
    """Publish one message in one of the ways of real programs; None when it was rolled back."""
    with transaction.atomic():
        if dice.random() < 0.2:
            with transaction.atomic():
                outbox.publish_raw(channel, "Tick", {})
                transaction.set_rollback(True)
        position = outbox.publish_raw(channel, "Tick", {})
        if is_last or dice.random() < 0.2:
            time.sleep(dice.choice([0.001, 0.005, 0.02]))
        if dice.random() < 0.1:
            transaction.set_rollback(True)
            return None
    return position


def consume(channel: str) -> None:
    notifications.LOCKED_WAIT = POLL_INTERVAL
    group = outbox.ConsumerGroup(channel, channels=[channel])
    group.handler("Tick")(tick)
    wakeups = notifications.Wakeups([group], "default", poll_interval=POLL_INTERVAL, linger=0.0)
    worker = Worker([group], wakeups=wakeups)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        consume(sys.argv[2])
