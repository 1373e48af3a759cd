from django.db import models


class Order(models.Model):
    """A business row, written in the transaction that publishes its message."""

    reference = models.IntegerField(unique=True)


class OrderLine(models.Model):
    """Its foreign key is checked at commit, so a wrong one fails the transaction at the last
    moment."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE)


class Effect(models.Model):
    """What a handler did; `id` is the order in which it was done. Nothing is unique here, so that a
    double would show."""

    group = models.CharField(max_length=63)
    channel = models.CharField(max_length=63)
    position = models.BigIntegerField()
    key = models.TextField(null=True)
    type = models.TextField()
    attempt = models.IntegerField(null=True)
    overlapped = models.BooleanField(
        default=False
    )  # another transaction was handling the same key of the group
    backend = models.IntegerField(null=True)  # the server process of the worker's session


class Fault(models.Model):
    """While a group has a row here, its handlers fail on messages whose note is "fragile"."""

    group = models.CharField(max_length=63)
