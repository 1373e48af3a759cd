"""An event-sourced model, for the tests of streams."""

from decimal import Decimal

from django.db import models

import outbox


class Opened(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    owner: str


class Deposited(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    amount: Decimal


class Withdrawn(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    amount: Decimal


class LimitSet(outbox.Event, channel="limits", key="region", stream=True):
    region: str
    amount: Decimal


class Tariff(models.Model):
    """Captured: its history is one stream per region."""

    region = models.CharField(primary_key=True, max_length=20)
    price = models.IntegerField(default=0)

    class Meta:
        triggers = [*outbox.capture(channel="tariffs", stream=True)]


class Branch(models.Model):
    """Captured with a key that several rows share."""

    region = models.CharField(max_length=20)
    name = models.CharField(max_length=20)

    class Meta:
        triggers = [*outbox.capture(channel="branches", key="region", stream=True)]


class Account(outbox.Aggregate, channel="accounts"):
    number = models.CharField(primary_key=True, max_length=20)
    owner = models.CharField(max_length=50, default="")
    balance = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0))

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(balance__gte=0), name="covered")]

    @outbox.applies(Opened)
    def opened(self, event):
        self.owner = event.owner

    @outbox.applies(Deposited)
    def deposited(self, event):
        self.balance += event.amount

    @outbox.applies(Withdrawn)
    def withdrawn(self, event):
        self.balance -= event.amount
