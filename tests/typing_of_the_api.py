"""The public API as a type checker sees it: `mypy` must accept this file as it stands.

Each `type: ignore` below must be needed; mypy's warn_unused_ignores makes an unneeded one an error.
"""

from decimal import Decimal
from typing import Literal

from django.contrib.auth.models import User

import outbox


class OrderPlaced(outbox.Event, channel="orders", key="order_id"):
    order_id: int
    total: Decimal
    note: str = ""


class Renamed(
    outbox.Event, channel="orders", key=("order_id", "line"), type="order.line", version=2
):
    order_id: int
    line: int


billing = outbox.ConsumerGroup(
    "typed-billing",
    channels=["orders"],
    start="latest",
    retry=outbox.Retry(max_attempts=5, base=0.5),
    on_failure="park",
    parallelism=4,
    delivery="exactly_once",
)


@billing.handler(OrderPlaced)
def create_invoice(event: OrderPlaced, message: outbox.Message) -> None:
    total: Decimal = event.total
    position: int = message.position
    key: str | None = message.key
    print(total, position, key, message.headers["actor"], message.created_at.year)


@billing.batch_handler(Renamed)
def rename(events: list[Renamed], messages: list[outbox.Message]) -> None:
    print(len(events), len(messages))


audit = outbox.ConsumerGroup("typed-audit", channels=["readers"])


@audit.handler(outbox.Change[User])
def note_change(event: outbox.Change[User], message: outbox.Message) -> None:
    operation: Literal["insert", "update", "delete", "snapshot"] = event.operation
    changed: frozenset[str] = event.changed
    if event.new is not None and event.old is not None:
        print(event.new.username, event.old.pk, operation, changed, event.context["user"])


class CapturedMeta:
    triggers = [
        *outbox.capture(channel="users"),
        *outbox.capture(channel="names", on="update", key=("id", "email"), fields=["username"]),
    ]


@outbox.context(job="nightly")
def change_by_hand() -> outbox.Change[User]:
    with outbox.context(using="default", user=lambda: 7):
        return outbox.Change[User]("insert", None, User(username="ann"))


def publish_everything() -> list[int]:
    event = OrderPlaced(order_id=1, total=Decimal("9.50"))
    first: int = outbox.publish(event, headers={"actor": "web"}, using="default")
    third: int = outbox.publish_raw("orders", "OrderImported", {"id": 1}, key="1")
    return [first, *outbox.publish_many([event]), third]


def what_is_refused() -> None:
    OrderPlaced(order_id="1", total=Decimal(1))  # type: ignore[arg-type]
    OrderPlaced(order_id=1)  # type: ignore[call-arg]
    OrderPlaced(order_id=1, total=Decimal(1)).order_id = 2  # type: ignore[misc]
    outbox.publish("text")  # type: ignore[arg-type]
    outbox.capture(channel="users", on="truncate")  # type: ignore[arg-type]
    outbox.Change[int]  # type: ignore[type-var]
    outbox.ConsumerGroup("x", channels=["a"], on_failure="explode")  # type: ignore[arg-type]
