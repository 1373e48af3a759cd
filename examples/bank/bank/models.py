"""Accounts, whose rows are the folds of their streams, and statements, a projection of the log."""

from decimal import Decimal

from django.db import models

import outbox

from .events import Deposited, Opened, Withdrawn


class Account(outbox.Aggregate, channel="accounts"):
    number = models.CharField(primary_key=True, max_length=20)
    customer = models.CharField(max_length=20, db_index=True)
    balance = models.DecimalField(max_digits=12, decimal_places=2, default=Decimal(0))

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(balance__gte=0), name="covered")]

    @outbox.applies(Opened)
    def opened(self, event):
        self.customer = event.customer
        self.balance = event.amount

    @outbox.applies(Withdrawn)
    def withdrawn(self, event):
        self.balance -= event.amount

    @outbox.applies(Deposited)
    def deposited(self, event):
        self.balance += event.amount


class Line(models.Model):
    """A line of an account's statement; the group `statements` writes it."""

    account = models.CharField(max_length=20)
    number = models.BigIntegerField()
    text = models.CharField(max_length=60)
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    balance = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "number"], name="one_line")]
