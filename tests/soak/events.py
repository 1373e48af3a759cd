"""What the rack publishes. `n` is a number of its own for each message."""

from __future__ import annotations

import outbox


class Ordered(outbox.Event, channel="orders", key="key"):
    """`fails`: how many attempts of the group "failing" fail. `follows`: whether "chain" publishes."""

    key: str | None
    n: int
    fails: int = 0
    follows: bool = False


class Quoted(outbox.Event, channel="quotes", key="key"):
    key: str
    n: int


class Followed(outbox.Event, channel="followups", key="key"):
    key: str | None
    n: int
