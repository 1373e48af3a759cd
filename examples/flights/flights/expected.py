"""What must come out, worked out from the CSV with nothing but the standard library.

It shares no code with the rest of the example, so that a mistake there cannot hide here.
"""

import csv
import gzip
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

Row = dict[str, str]


@dataclass(frozen=True)
class Expected:
    """The right results. A flight is the number of its line in the CSV, from 1."""

    published: Counter[str]  # type of message: how many
    legs: dict[str, list[int]]  # aircraft: its flights, in the order in which they left
    miles: dict[str, int]  # aircraft: miles flown to an airport
    delays: dict[
        tuple[str, str], tuple[int, int, int]
    ]  # carrier, day: arrivals, diverted, minutes late
    board: dict[int, str]  # flight: the last word on the board
    alerts: dict[int, int]  # flight: minutes late


def expect(path: Path, limit: int | None = None) -> Expected:
    with gzip.open(path, "rt", newline="") as lines:
        rows = dict(enumerate(islice(csv.DictReader(lines), limit), 1))
    alerts = {flight: int(row["arr_delay"]) for flight, row in rows.items() if late(row)}
    board = {flight: last_word(row) for flight, row in rows.items()}
    return Expected(
        published=count(board, alerts),
        legs=legs(rows),
        miles=miles(rows),
        delays=delays(rows),
        board=board,
        alerts=alerts,
    )


def last_word(row: Row) -> str:
    if row["dep_time"] == "NA":
        return "cancelled"
    return "departed" if row["arr_time"] == "NA" else "arrived"


def late(row: Row) -> bool:
    return row["arr_delay"] != "NA" and int(row["arr_delay"]) > 60


def count(board: dict[int, str], alerts: dict[int, int]) -> Counter[str]:
    words = Counter(board.values())
    return Counter(
        Departed=words["departed"] + words["arrived"],
        Arrived=words["arrived"],
        Cancelled=words["cancelled"],
        DelayAlert=len(alerts),
    )


def legs(rows: dict[int, Row]) -> dict[str, list[int]]:
    left = defaultdict(list)
    for flight, row in rows.items():
        if row["dep_time"] != "NA" and row["tailnum"] != "NA":
            scheduled = (int(row["day"]) * 24 + int(row["hour"])) * 60 + int(row["minute"])
            left[row["tailnum"]].append((scheduled + int(row["dep_delay"]), flight))
    return {tail: [flight for _, flight in sorted(departures)] for tail, departures in left.items()}


def miles(rows: dict[int, Row]) -> dict[str, int]:
    flown: Counter[str] = Counter()
    for row in rows.values():
        if row["arr_time"] != "NA":
            flown[row["tailnum"]] += int(row["distance"])
    return dict(flown)


def delays(rows: dict[int, Row]) -> dict[tuple[str, str], tuple[int, int, int]]:
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows.values():
        if row["arr_time"] != "NA":
            total = sums[row["carrier"], f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}"]
            total[0] += 1
            total[1] += row["arr_delay"] == "NA"
            total[2] += 0 if row["arr_delay"] == "NA" else int(row["arr_delay"])
    return {
        key: (arrivals, diverted, minutes) for key, (arrivals, diverted, minutes) in sums.items()
    }
