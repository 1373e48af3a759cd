"""The load of the wake-up tests, in processes of its own, forked from one that has set Django up.

`python -m tests.support.wakeup_load publish COUNT LANE…` publishes in each lane with pauses, roll-backs
and savepoints and prints a line "position commit-time" for each message that committed. Most pauses
are about as long as a worker needs to go idle. After one in ten messages the publisher waits until
the message is handled, so that none of its own hides a wake-up that was lost. The transaction before
that stays open for a moment: that is when a worker may go to sleep beside it.

`python -m tests.support.wakeup_load consume LANE…` handles messages, in a process for each name, until
it is told to stop, and prints a line "position handling-time" for each. Nothing but a NOTIFY wakes it
within a minute: it does not look again soon at a range that another worker holds either.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

import django

django.setup()

from django.db import transaction  # noqa: E402

import outbox  # noqa: E402
from outbox.consuming import notifications  # noqa: E402
from outbox.models import Cursor  # noqa: E402
from outbox.worker import Worker  # noqa: E402
from tests.support.processes import wait_until  # noqa: E402

POLL_INTERVAL = 60.0
LOST = POLL_INTERVAL / 2
"""Seconds after which a message that is not handled counts as one whose wake-up was lost."""


def tick(payload: object, message: outbox.Message) -> None:
    tell(message.position)


def tell(position: int) -> None:
    """Write a line with the time of now, at once: several processes write to one file."""
    sys.stdout.write(f"{position} {time.time()}\n")
    sys.stdout.flush()


def publish(lane: str, count: int, seed: int) -> None:
    dice = random.Random(seed)
    published = 0
    while published < count:
        is_waited_for = dice.random() < 0.1
        if position := attempt(lane, dice, is_waited_for):
            tell(position)
            published += 1
            if is_waited_for:
                pending = Cursor.objects.filter(channel=lane, position__lt=position)
                wait_until(lambda pending=pending: not pending.exists(), LOST)
        time.sleep(dice.uniform(0, 0.004))


def attempt(lane: str, dice: random.Random, is_waited_for: bool) -> int | None:
    """Publish one message in one of the ways of real programs; None when it was rolled back."""
    with transaction.atomic():
        if dice.random() < 0.2:
            with transaction.atomic():
                outbox.publish_raw(lane, "Tick", {})
                transaction.set_rollback(True)
        position = outbox.publish_raw(lane, "Tick", {})
        if is_waited_for or dice.random() < 0.2:
            time.sleep(dice.choice([0.001, 0.005, 0.02]))
        if dice.random() < 0.1:
            transaction.set_rollback(True)
            return None
    return position


def consume(lane: str) -> None:
    notifications.LOCKED_WAIT = POLL_INTERVAL
    group = outbox.ConsumerGroup(lane, channels=[lane])
    group.handler("Tick")(tick)
    wakeups = notifications.Wakeups([group], "default", poll_interval=POLL_INTERVAL, linger=0.0)
    worker = Worker([group], wakeups=wakeups)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


def fork(act: Callable[[], None]) -> int:
    """Do something in a process of its own; return its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(role: str, *arguments: str) -> int:
    if role == "publish":
        count, *lanes = arguments
        acts = [lambda n=n, lane=lane: publish(lane, int(count), n) for n, lane in enumerate(lanes)]
    else:
        acts = [lambda lane=lane: consume(lane) for lane in arguments]
    children = [fork(act) for act in acts]
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(each, signal.SIGTERM) for each in children])
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1])) for each in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
