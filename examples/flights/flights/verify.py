"""Compare what the groups left behind with the log and with the independent calculation."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from outbox.models import Message

from .expected import Expected
from .marks import (
    Mark,
    Report,
    differences,
    doubled,
    latencies,
    lost,
    out_of_order,
    percentile,
    rate,
)
from .models import Alert, BoardLine, CarrierDay, DelayTrace, Flight, LogbookEntry, Trace


@dataclass(frozen=True)
class Group:
    """How to check one group.

    trace: the rows its handlers left. types: the types of message it handles.
    wrong: counts its results that are wrong. key: the field within which the order counts,
    None for the order of the whole channel. is_reset: whether the demo resets it.
    """

    name: str
    trace: type[Trace]
    types: tuple[str, ...]
    wrong: Callable[[Expected], int]
    key: str | None = None
    is_reset: bool = False


def check(group: Group, expected: Expected, rush: datetime) -> Report:
    """Compare one group's rows with the log. Latency counts before the rush, the rate in it."""
    fields = ["position", "replayed", "published_at", "handled_at", *filter(None, [group.key])]
    marks = [Mark(*row) for row in group.trace._default_manager.order_by("id").values_list(*fields)]
    published = set(Message.objects.filter(type__in=group.types).values_list("position", flat=True))
    live = [mark for mark in marks if not mark.replayed]
    replayed = [mark for mark in marks if mark.replayed]
    last = max((mark.position for mark in replayed), default=0)
    again = {position for position in published if position <= last}
    passes = [live, replayed] if group.is_reset else [marks]
    waits = latencies(mark for mark in live if mark.published_at < rush)
    return Report(
        name=group.name,
        published=len(published),
        processed=len(live),
        replayed=len(replayed),
        lost=lost(published, live) + lost(again, replayed),
        doubled=sum(map(doubled, passes)),
        out_of_order=sum(map(out_of_order, passes)),
        wrong=group.wrong(expected),
        rate=rate(mark.handled_at for mark in marks if mark.handled_at >= rush),
        p50=percentile(waits, 50),
        p99=percentile(waits, 99),
    )


def wrong_flights(expected: Expected) -> int:
    """Flights whose business row is wrong, and types of which the log holds too few or too many."""
    types = Counter(dict.fromkeys(expected.published, 0))
    types.update(Message.objects.values_list("type", flat=True))
    states = dict(Flight.objects.values_list("number", "state"))
    return differences(expected.published, types) + differences(expected.board, states)


def wrong_logbooks(expected: Expected) -> int:
    legs: defaultdict[str, list[int]] = defaultdict(list)
    miles: dict[str, int] = {}
    entries = LogbookEntry.objects.order_by("id")
    for tail, flight, leg, total in entries.values_list("tail", "flight", "legs", "miles"):
        if leg == len(legs[tail]) + 1:
            legs[tail].append(flight)
        miles[tail] = total
    flown = {tail: total for tail, total in miles.items() if total}
    return differences(expected.legs, legs) + differences(expected.miles, flown)


def wrong_delays(expected: Expected) -> int:
    return differences(
        expected.delays,
        {
            (day.carrier, str(day.day)): (day.arrivals, day.diverted, day.minutes)
            for day in CarrierDay.objects.all()
        },
    )


def wrong_boards(expected: Expected) -> int:
    lines = BoardLine.objects.order_by("id").values_list("flight", "text")
    return differences(expected.board, {flight: text.split()[0] for flight, text in lines})


def wrong_alerts(expected: Expected) -> int:
    return differences(expected.alerts, dict(Alert.objects.values_list("flight", "minutes")))


GROUPS = [
    Group("logbook", LogbookEntry, ("Departed", "Arrived"), wrong_logbooks, key="tail"),
    Group("delays", DelayTrace, ("Arrived",), wrong_delays, is_reset=True),
    Group("board", BoardLine, ("Departed", "Arrived", "Cancelled"), wrong_boards),
    Group("alerts", Alert, ("DelayAlert",), wrong_alerts),
]
