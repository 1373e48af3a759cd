"""The CSV as a timeline: every departure, arrival and cancellation, in the order of actual time.

The order, exactly. All instants are New York time (January has no change of the clocks).
- A flight departs at its scheduled time plus its departure delay.
- It arrives the first time after its departure that the clock at its destination reads `arr_time`,
  so an arrival may fall on the next day and is always later than its departure.
- It is cancelled at its scheduled time.
- At the same instant cancellations come first, then arrivals, then departures; within these the
  order of the file decides.

A flight without `arr_time` never arrives. One with `arr_time` but without `arr_delay` was diverted.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

CSV = Path(__file__).parent.parent / "data" / "flights-2013-01.csv.gz"
NEW_YORK = timezone(timedelta(hours=-5), "EST")

# Hours that a clock there is ahead of New York's in January; elsewhere both read the same.
HOURS_AHEAD = {
    airport: hours
    for hours, airports in {
        -5: "HNL",
        -3: "BUR LAS LAX LGB OAK PDX PSP SAN SEA SFO SJC SMF SNA",
        -2: "BZN DEN EGE HDN JAC MTJ PHX SLC",
        -1: "AUS BHM BNA DFW DSM HOU IAH MCI MDW MEM MKE MSN MSP MSY OKC OMA ORD SAT STL TUL XNA",
        +1: "BQN PSE SJU STT",
    }.items()
    for airport in airports.split()
}


class Kind(IntEnum):
    """What can happen to a flight; the values are the order at the same instant."""

    CANCELLED = 1
    ARRIVED = 2
    DEPARTED = 3


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """One line of the CSV. `number` is the line's number from 1: it identifies the flight."""

    number: int
    carrier: str
    tail: str | None
    origin: str
    dest: str
    miles: int
    scheduled: datetime
    departed: datetime | None
    departure_delay: int | None
    arrived: datetime | None
    arrival_delay: int | None

    @property
    def day(self) -> date:
        return self.scheduled.date()


class Step(NamedTuple):
    """One business event; steps sort into the order of the timeline."""

    at: datetime
    kind: Kind
    number: int
    flight: FlightRecord


def read_flights(limit: int | None = None, path: Path = CSV) -> list[FlightRecord]:
    """Read the first `limit` flights of the CSV, or all of them."""
    with gzip.open(path, "rt", newline="") as lines:
        return [
            parse(number, row) for number, row in enumerate(islice(csv.DictReader(lines), limit), 1)
        ]


def parse(number: int, row: dict[str, str]) -> FlightRecord:
    """Turn one line of the CSV into a record; `NA` becomes None."""
    fields = ("year", "month", "day", "hour", "minute")
    year, month, day, hour, minute = (int(row[field]) for field in fields)
    scheduled = datetime(year, month, day, hour, minute, tzinfo=NEW_YORK)
    departure_delay = _number(row["dep_delay"])
    departed = None if departure_delay is None else scheduled + timedelta(minutes=departure_delay)
    clock = _number(row["arr_time"])
    return FlightRecord(
        number=number,
        carrier=row["carrier"],
        tail=None if row["tailnum"] == "NA" else row["tailnum"],
        origin=row["origin"],
        dest=row["dest"],
        miles=int(row["distance"]),
        scheduled=scheduled,
        departed=departed,
        departure_delay=departure_delay,
        arrived=None
        if departed is None or clock is None
        else next_reading(departed, clock, row["dest"]),
        arrival_delay=_number(row["arr_delay"]),
    )


def next_reading(after: datetime, clock: int, airport: str) -> datetime:
    """The first instant later than `after` at which the clock at `airport` reads `clock`.

    `clock`: hhmm; 2400 is midnight.
    """
    zone = timezone(NEW_YORK.utcoffset(None) + timedelta(hours=HOURS_AHEAD.get(airport, 0)))
    local = after.astimezone(zone)
    reading = local.replace(hour=clock // 100 % 24, minute=clock % 100)
    if reading <= local:
        reading += timedelta(days=1)
    return reading.astimezone(NEW_YORK)


def timeline(flights: list[FlightRecord]) -> list[Step]:
    """Everything that happened to these flights, in order."""
    return sorted(step for flight in flights for step in steps(flight))


def steps(flight: FlightRecord) -> Iterator[Step]:
    """What happened to one flight."""
    if flight.departed is None:
        yield Step(flight.scheduled, Kind.CANCELLED, flight.number, flight)
        return
    yield Step(flight.departed, Kind.DEPARTED, flight.number, flight)
    if flight.arrived is not None:
        yield Step(flight.arrived, Kind.ARRIVED, flight.number, flight)


def share(timeline: list[Step], part: int, parts: int) -> list[Step]:
    """The steps of publisher `part` of `parts`, from 1; an aircraft's are all with the same one."""
    keys = [step.flight.tail or str(step.number) for step in timeline]
    return [
        step
        for step, key in zip(timeline, keys, strict=True)
        if crc32(key.encode()) % parts == part - 1
    ]


def _number(text: str) -> int | None:
    return None if text == "NA" else int(text)
