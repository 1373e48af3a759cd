import outbox


class OrderPlaced(outbox.Event, channel="orders", key="order_id"):
    order_id: int
    note: str = ""  # tells the handlers how to behave, see tests/shop/consumers.py


class OrderShipped(outbox.Event, channel="orders", key="order_id"):
    order_id: int
    note: str = ""


class PaymentTaken(outbox.Event, channel="payments", key="order_id"):
    order_id: int
    note: str = ""


class PackingRequested(outbox.Event, channel="packing", key="order_id"):
    order_id: int


class Countdown(outbox.Event, channel="countdowns"):
    left: int


class Bulk(outbox.Event, channel="bulk"):
    """Declares the type; the tests publish it with other fields, without the class."""
