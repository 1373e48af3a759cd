"""The flights themselves, and what each consumer group makes of their messages."""

from typing import Any, ClassVar, Self

from django.db import models
from django.db.models.functions import Now

import outbox


class Flight(models.Model):
    """A flight of the plan and how far it got: the business table."""

    class State(models.TextChoices):
        SCHEDULED = "scheduled"
        DEPARTED = "departed"
        ARRIVED = "arrived"
        CANCELLED = "cancelled"

    number = models.IntegerField(primary_key=True)
    carrier = models.CharField(max_length=2)
    tail = models.CharField(max_length=6, null=True)
    origin = models.CharField(max_length=3)
    dest = models.CharField(max_length=3)
    scheduled = models.DateTimeField()
    state = models.CharField(max_length=9, choices=State, default=State.SCHEDULED)
    departed = models.DateTimeField(null=True)
    arrived = models.DateTimeField(null=True)


class Trace(models.Model):
    """What every handler leaves behind: one row for each message that it handled.

    Nothing here is unique, on purpose: a message handled twice leaves two rows and cannot hide,
    one that was lost leaves none, and the ids tell in which order they were handled.
    """

    position = models.BigIntegerField()
    replayed = models.BooleanField()
    published_at = models.DateTimeField()
    handled_at = models.DateTimeField(db_default=Now())

    class Meta:
        abstract = True

    @classmethod
    def of(cls, message: outbox.Message, **fields: Any) -> Self:
        return cls(
            position=message.position,
            replayed=message.replayed,
            published_at=message.created_at,
            **fields,
        )


class LogbookEntry(Trace):
    """Group `logbook`: an aircraft's legs and miles after each of its departures and arrivals."""

    tail = models.CharField(max_length=6)
    flight = models.IntegerField()
    legs = models.IntegerField(default=0)
    miles = models.IntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["tail", "id"], name="logbook_of_aircraft")]


class BoardLine(Trace):
    """Group `board`: a line that appeared on the departures board of an airport."""

    airport = models.CharField(max_length=3)
    flight = models.IntegerField()
    text = models.CharField(max_length=40)


class CarrierDay(models.Model):
    """Group `delays`: how late a carrier's flights of one day arrived, in whole minutes."""

    carrier = models.CharField(max_length=2)
    day = models.DateField()
    arrivals = models.IntegerField(default=0)
    diverted = models.IntegerField(default=0)
    minutes = models.IntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["carrier", "day"], name="one_row_per_carrier_and_day")
        ]

    def add(self, delay: int | None) -> None:
        self.arrivals += 1
        self.diverted += delay is None
        self.minutes += delay or 0


class DelayTrace(Trace):
    """Group `delays`: that a message went into the sums."""


class Alert(Trace):
    """Group `alerts`: a passenger to warn, because a flight came in more than an hour late."""

    airport = models.CharField(max_length=3)
    flight = models.IntegerField()
    minutes = models.IntegerField()
