"""The rack's own record of what was published, in the transaction that publishes it."""

from __future__ import annotations

import random

from django.db import connection

numbers = random.SystemRandom()


def new(channel: str, key: str | None) -> int:
    """Record that a message is published in this transaction; return its number."""
    n = numbers.getrandbits(52)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO soak_fact (n, channel, key) VALUES (%s, %s, %s)", [n, channel, key]
        )
    return n
