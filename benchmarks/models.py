"""The rows that the measured code writes; `migrate --run-syncdb` makes their tables."""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.utils import timezone

import outbox
from benchmarks.events import Paid
from outbox.models import SLOTS, ClockTimestamp


class Order(models.Model):
    """The business row beside a message."""

    customer = models.TextField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    placed_at = models.DateTimeField(db_default=ClockTimestamp())


class Invoice(models.Model):
    """The row that a handler writes for a message."""

    order_id = models.BigIntegerField()
    total = models.DecimalField(max_digits=10, decimal_places=2)


class PlainMessage(models.Model):
    """The columns and indexes of the log, in a table without partitions and triggers."""

    position = models.BigAutoField(primary_key=True)
    created_at = models.DateTimeField(db_default=ClockTimestamp())
    slot = models.GeneratedField(
        expression=models.functions.Coalesce(
            models.Func(models.F("key"), models.Value(0), function="hashtextextended").bitand(
                SLOTS - 1
            ),
            models.Value(0),
        ),
        output_field=models.SmallIntegerField(),
        db_persist=True,
    )
    channel = models.CharField(max_length=63)
    key = models.TextField(null=True)
    type = models.TextField()
    payload = models.JSONField()
    headers = models.JSONField(default=dict)

    class Meta:
        indexes = [models.Index(fields=["channel", "position", "slot"], name="plain_by_channel")]


class Work(models.Model):
    """A row whose changes are captured, or not."""

    title = models.TextField()
    text = models.TextField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    stock = models.IntegerField()
    code = models.CharField(max_length=20)
    added_at = models.DateTimeField(default=timezone.now)

    class Meta:
        abstract = True


class PlainWork(Work):
    """Without a trigger."""


class CapturedWork(Work):
    """Captured by the outbox."""

    class Meta:
        triggers = [*outbox.capture(channel="works")]


class NotifiedWork(Work):
    """Captured by django-pgpubsub, where it is installed."""


class Balance(outbox.Aggregate, channel="balances"):
    """An event-sourced row."""

    account = models.CharField(primary_key=True, max_length=40)
    amount = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0))

    @outbox.applies(Paid)
    def paid(self, event: Paid) -> None:
        """Add an amount."""
        self.amount += event.amount
