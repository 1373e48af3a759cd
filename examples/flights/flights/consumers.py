"""Four groups: each sees every message of its channel in order, exactly once, at its own pace."""

from datetime import datetime

import outbox

from .events import Arrived, Cancelled, DelayAlert, Departed
from .models import Alert, BoardLine, CarrierDay, DelayTrace, LogbookEntry

LATE = 60  # minutes after which a late arrival is worth an alert

logbook = outbox.ConsumerGroup("logbook", channels=["flights"], start="earliest", parallelism=4)
delays = outbox.ConsumerGroup("delays", channels=["flights"], start="earliest")
board = outbox.ConsumerGroup("board", channels=["flights"], start="earliest")
alerts = outbox.ConsumerGroup("alerts", channels=["board"], start="earliest")


@logbook.handler(Departed)
def start_leg(event: Departed, message: outbox.Message) -> None:
    """The aircraft's next leg: sound because nothing else of this aircraft is handled meanwhile."""
    write_logbook(event, message, legs=1, miles=0)


@logbook.handler(Arrived)
def add_miles(event: Arrived, message: outbox.Message) -> None:
    write_logbook(event, message, legs=0, miles=event.miles)


def write_logbook(
    event: Departed | Arrived, message: outbox.Message, *, legs: int, miles: int
) -> None:
    entries = LogbookEntry.objects.filter(tail=event.tail).order_by("id")
    last_legs, last_miles = entries.values_list("legs", "miles").last() or (0, 0)
    LogbookEntry.of(
        message,
        tail=event.tail,
        flight=event.flight,
        legs=last_legs + legs,
        miles=last_miles + miles,
    ).save()


@delays.batch_handler(Arrived)
def add_delays(events: list[Arrived], messages: list[outbox.Message]) -> None:
    """One read and two writes for the whole batch."""
    days = CarrierDay.objects.filter(day__in={event.day for event in events})
    sums = {(day.carrier, day.day): day for day in days}
    for event in events:
        key = (event.carrier, event.day)
        sums.setdefault(key, CarrierDay(carrier=event.carrier, day=event.day)).add(event.delay)
    CarrierDay.objects.bulk_create(
        sums.values(),
        update_conflicts=True,
        unique_fields=["carrier", "day"],
        update_fields=["arrivals", "diverted", "minutes"],
    )
    DelayTrace.objects.bulk_create([DelayTrace.of(message) for message in messages])


@board.handler(Departed)
def show_departure(event: Departed, message: outbox.Message) -> None:
    show(event, message, f"departed {clock(event.at)}")


@board.handler(Cancelled)
def show_cancellation(event: Cancelled, message: outbox.Message) -> None:
    show(event, message, "cancelled")


@board.handler(Arrived)
def show_arrival(event: Arrived, message: outbox.Message) -> None:
    """A handler may publish: the alert exists if and only if the board shows the arrival."""
    show(event, message, f"arrived {clock(event.at)}")
    if event.delay is not None and event.delay > LATE:
        outbox.publish(DelayAlert(flight=event.flight, airport=event.origin, minutes=event.delay))


@alerts.handler(DelayAlert)
def warn(event: DelayAlert, message: outbox.Message) -> None:
    Alert.of(message, airport=event.airport, flight=event.flight, minutes=event.minutes).save()


def show(event: Departed | Arrived | Cancelled, message: outbox.Message, text: str) -> None:
    BoardLine.of(message, airport=event.origin, flight=event.flight, text=text).save()


def clock(at: datetime) -> str:
    return f"{at:%d %H:%M}"
