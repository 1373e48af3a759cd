"""Parked messages as operators look for them: filtered, and summed up by error and by key."""

from __future__ import annotations

import dataclasses
import datetime

from django.db.models import Count, Max, Min, Q, QuerySet

from ..models import ParkedMessage

MOST_KEYS = 50
"""Keys of a summary: those with the most parked messages."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which parked messages of a group; None: all."""

    group: str
    position: int | None = None
    key: str | None = None
    reason: str | None = None
    """A value of `ParkedMessage.Reason`."""
    error: str | None = None
    """The class of the error, with or without its module, or a part of the error's text."""
    since: datetime.datetime | None = None
    """Parked at this time or later."""
    until: datetime.datetime | None = None
    """Parked before this time."""

    def rows(self, using: str) -> QuerySet[ParkedMessage]:
        """Return the messages in position order."""
        given = {
            "position": self.position,
            "key": self.key,
            "reason": self.reason,
            "parked_at__gte": self.since,
            "parked_at__lt": self.until,
        }
        exact = {name: value for name, value in given.items() if value is not None}
        found = ParkedMessage.objects.using(using).filter(group=self.group, **exact)
        if self.error is not None:
            found = found.filter(
                Q(error_class=self.error)
                | Q(error_class__endswith=f".{self.error}")
                | Q(error__contains=self.error)
            )
        return found.order_by("position")


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorSummary:
    """The parked messages of a group with the same error, type and reason."""

    messages: int
    keys: int
    """Distinct keys; messages without a key are not counted."""
    reason: str
    type: str
    error_class: str
    """Empty for messages that wait behind one of their key."""
    example: str
    """The error's text, of one of them."""
    first_position: int
    first_parked_at: datetime.datetime
    last_parked_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class KeySummary:
    """The parked messages of one key."""

    channel: str
    key: str | None
    messages: int
    first_position: int


@dataclasses.dataclass(frozen=True, slots=True)
class Total:
    """A selection in numbers."""

    messages: int
    keys: int
    first_position: int | None
    last_position: int | None


def by_error(chosen: Selection, using: str) -> list[ErrorSummary]:
    """Return the selection by error, the most frequent first."""
    groups = (
        chosen.rows(using)
        .order_by()
        .values("reason", "type", "error_class")
        .annotate(
            messages=Count("id"),
            keys=Count("key", distinct=True),
            first_position=Min("position"),
            first_parked_at=Min("parked_at"),
            last_parked_at=Max("parked_at"),
            example=Min("error"),
        )
    )
    rows = sorted(groups, key=lambda row: (-row["messages"], row["first_position"]))
    return [ErrorSummary(**row) for row in rows]


def by_key(chosen: Selection, using: str) -> list[KeySummary]:
    """Return the keys of the selection with the most messages, those first."""
    keyed = chosen.rows(using).order_by().filter(key__isnull=False).values("channel", "key")
    counted = keyed.annotate(messages=Count("id"), first_position=Min("position"))
    most = counted.order_by("-messages", "channel", "key")[:MOST_KEYS]
    return [KeySummary(**row) for row in most]


def total(chosen: Selection, using: str) -> Total:
    """Return how many messages and keys are selected, and the first and last position."""
    return Total(
        **chosen.rows(using)
        .order_by()
        .aggregate(
            messages=Count("id"),
            keys=Count("key", distinct=True),
            first_position=Min("position"),
            last_position=Max("position"),
        )
    )
