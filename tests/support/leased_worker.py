"""A worker of a leased group in a process of its own: `python -m tests.support.leased_worker LEASE`.

The handler records an effect with this process's id, then waits at the gate "leased" when the
payload says so. The worker ends when nothing is pending any more.
"""

from __future__ import annotations

import logging
import os
import sys

import django

if __name__ == "__main__":
    django.setup()

import outbox
from outbox.worker import Worker
from tests.shop.gates import wait_at_gate
from tests.shop.models import Effect

leased = outbox.ConsumerGroup(
    "leased",
    channels=["leased"],
    delivery="at_least_once",
    lease=float(sys.argv[1]) if __name__ == "__main__" else 1.0,
)


@leased.handler("Mail")
def send(payload, message):
    Effect.objects.create(
        group="leased",
        channel=message.channel,
        position=message.position,
        key=message.key,
        type=message.type,
        attempt=message.attempt,
        backend=os.getpid(),
    )
    if payload["wait"]:
        wait_at_gate("leased")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    Worker([leased]).drain()
