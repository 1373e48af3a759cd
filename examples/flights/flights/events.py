"""Three events on the channel `flights`, and one that the board's handler publishes on `board`."""

from datetime import date, datetime

import outbox


class Departed(outbox.Event, channel="flights", key="tail"):
    flight: int
    tail: str | None
    carrier: str
    origin: str
    dest: str
    at: datetime
    delay: int


class Arrived(outbox.Event, channel="flights", key="tail"):
    flight: int
    tail: str | None
    carrier: str
    origin: str
    dest: str
    at: datetime
    day: date
    delay: int | None
    miles: int


class Cancelled(outbox.Event, channel="flights", key="tail"):
    flight: int
    tail: str | None
    carrier: str
    origin: str
    dest: str
    at: datetime


class DelayAlert(outbox.Event, channel="board", key="airport"):
    flight: int
    airport: str
    minutes: int
