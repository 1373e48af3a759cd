"""Publishing in a transaction of its own: orders of the shop, and plain messages by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import transaction

import outbox
from tests.shop.events import OrderPlaced

CHANNEL = "trouble"


def publish(*keys: Any, channel: str = CHANNEL) -> list[int]:
    """Publish a message of type "Order" for each key in one transaction; return their positions."""
    with transaction.atomic():
        return [
            outbox.publish_raw(channel, "Order", {"number": number}, key=key)
            for number, key in enumerate(keys)
        ]


def publish_orders(
    orders: int | Iterable[int] | None = None, notes: str | Sequence[str] = ""
) -> list[int]:
    """Publish OrderPlaced events in one transaction; return their positions.

    `orders`: the ids, or how many (then 0, 1, …); left out: as many as there are notes.
    `notes`: one for all of them, or one for each.
    """
    if orders is None:
        orders = 1 if isinstance(notes, str) else len(notes)
    ids = list(range(orders) if isinstance(orders, int) else orders)
    each = [notes] * len(ids) if isinstance(notes, str) else notes
    events = [OrderPlaced(order_id=id, note=note) for id, note in zip(ids, each, strict=True)]
    with transaction.atomic():
        return outbox.publish_many(events)


def publish_order(order_id: int = 1, note: str = "") -> int:
    """Publish one OrderPlaced event in a transaction; return its position."""
    return publish_orders([order_id], note)[0]
