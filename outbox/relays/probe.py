"""What a destination says: a marked test message, and its state for `describe`."""

from __future__ import annotations

import dataclasses

from ..consuming.cursors import SLOTS
from ..exceptions import DestinationUnavailable, InvalidGroup, RecordRefused
from ..groups import ConsumerGroup, get
from ..models import Cursor
from . import records
from .relay import Relay
from .sink import Origin, unavailable


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a destination."""

    relay: str
    channel: str
    destination: str
    ok: bool
    detail: str
    """The error, or what is known."""
    position: int | None = None
    """The position of the relay's last message there; None when the destination does not say."""


def relay_named(name: str) -> Relay:
    """Return the relay of this name.

    Raises UnknownGroup when no group has the name, InvalidGroup when the group is not a relay.
    """
    group: ConsumerGroup = get(name)
    if not isinstance(group, Relay):
        raise InvalidGroup(
            f"{name!r} is a consumer group that handles messages here, and not a relay."
        )
    return group


def send_test(relay: Relay) -> list[Answer]:
    """Send a test message for each channel to where the sink sends; return what came back."""
    answers = []
    for channel in relay.channels:
        origin = Origin(relay.name, channel, 0, SLOTS - 1, 0)
        record = records.test_record(origin, relay.to.to)
        ok, detail = True, f"confirmed: {record.id} in {record.to}"
        try:
            relay.to.send(origin, [record])
        except Exception as error:
            ok, detail = False, _reason(error)
        answers.append(Answer(relay.name, channel, repr(relay.to), ok, detail))
    relay.to.close()
    return answers


def look(relay: Relay, using: str) -> list[Answer]:
    """Ask the destination for each range of a relay where it stands."""
    answers = []
    for cursor in (
        Cursor.objects.using(using).filter(group=relay.name).order_by("channel", "slot_from")
    ):
        slots = cursor.slot_from, cursor.slot_to
        origin = Origin(relay.name, cursor.channel, *slots, cursor.generation)
        ok, detail, position = True, "", None
        try:
            position = relay.to.position(origin, relay.place(cursor.channel))
            detail = "reachable" if position is not None else "holds no position of this range"
        except Exception as error:
            ok, detail = False, _reason(error)
        answers.append(Answer(relay.name, cursor.channel, repr(relay.to), ok, detail, position))
        if not ok:
            break
    relay.to.close()
    return answers


def _reason(error: Exception) -> str:
    if isinstance(error, DestinationUnavailable | RecordRefused):
        return error.reason
    return unavailable(error).reason
