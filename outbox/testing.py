"""Tools for the tests of projects that use the outbox; they work inside plain `TestCase`."""

from __future__ import annotations

from .groups import ConsumerGroup
from .worker import Worker


def drain(group: ConsumerGroup | str, *, using: str = "default") -> int:
    """Let a group handle what is pending; return how many messages it moved past.

    Also sees what the surrounding transaction of a `TestCase` published.
    """
    return Worker([group], using=using, count_own_floor=False).drain()
