"""The messages that are published and consumed: typed, a payload that takes 190 bytes."""

from __future__ import annotations

from decimal import Decimal

import outbox

CHANNEL = "orders"


class OrderPlaced(outbox.Event, channel=CHANNEL, key="order_id"):
    """An order."""

    order_id: int
    customer: str
    total: Decimal
    paid: bool
    address: str


class Paid(outbox.Event, channel="balances", key="account", stream=True):
    """An event of a stream."""

    account: str
    amount: Decimal


def orders(count: int, first: int = 1_000_000) -> list[OrderPlaced]:
    """Return `count` different events of 1,000 customers."""
    return [
        OrderPlaced(
            order_id=number,
            customer=f"customer-{number % 1000:03}",
            total=Decimal(number % 900 + 100) / 4 + Decimal("0.25"),
            paid=number % 2 == 0,
            address="c/o Lighthouse Trading Company Ltd, 128 Harbour Street, D-20457 Hamburg, Germany",
        )
        for number in range(first, first + count)
    ]
