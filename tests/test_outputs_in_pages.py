"""Commands in the pages for operators: each is run, and writes what the page shows but for its numbers."""

from __future__ import annotations

import datetime
import re
import threading

import pytest
from django.db import connection, transaction
from django.utils import timezone

import outbox
from outbox.consuming.cursors import register
from outbox.models import ParkedMessage
from outbox.operations import pauses
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.shop import consumers
from tests.support import flight_log, pages
from tests.support.harness import Background, drain, execute
from tests.support.processes import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

IMPORT = "insert into outbox_message(channel,type,payload) values('imports','Row','{}');"
WORKER = "outbox:logbook,board,alerts web-1:29331"
BROKEN = """
    INSERT INTO outbox_message (channel, key, type, payload) VALUES
        ('flights', 'N711ZX', 'Departed', '{"flight": "no number"}'),
        ('flights', 'N711ZX', 'Departed', '{"flight": 1}'),
        ('flights', 'N14998', 'Departed', '{"flight": "no number"}')
"""
OF_DAYS = """
    INSERT INTO outbox_message (channel, key, type, payload, created_at)
    SELECT channel, n::text, 'Made', json_build_object('n', n), now() - make_interval(days => n % 9)
    FROM unnest(ARRAY['ledgers', 'orders', 'prices']) AS channel, generate_series(1, 2000) AS n
"""


class Departed(outbox.Event, channel="flights"):
    flight: int


class Airline:
    """The groups of `examples/flights`, in the states that docs/operations.md shows."""

    def __init__(self) -> None:
        options = {"start": "earliest", "on_unknown": "skip"}
        declare = outbox.ConsumerGroup
        self.logbook = declare("logbook", ["flights"], parallelism=4, **options)
        self.board, self.delays = (
            declare(name, ["flights"], **options) for name in ("board", "delays")
        )
        self.alerts = declare("alerts", ["board"], **options)
        self.at_work, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.board.handler(Departed)(self.handle)
        for group, name in (
            (self.logbook, "Departed"),
            (self.delays, "Departed"),
            (self.alerts, "DelayAlert"),
        ):
            group.handler(name)(self.handle)

    def handle(self, event: object, message: outbox.Message) -> None:
        self.at_work.set()
        assert self.go_on.wait(120)

    def publish(self, flights: int) -> None:
        """Publish the steps of some flights, as if 20 seconds ago."""
        steps = flight_log.steps(flights)
        ago = timezone.now() - datetime.timedelta(seconds=20)
        flight_log.publish(steps, at=[ago] * len(steps))

    def hold(self) -> None:
        """Let the next handler wait until the end of the test."""
        self.at_work.clear()
        self.go_on.clear()


@pytest.fixture
def airline():
    """Messages, three broken ones, and a group that was paused early."""
    with isolated_groups():
        made = Airline()
        made.publish(100)
        drain(made.logbook, made.board, made.delays)
        pauses.pause("delays", reason="")
        execute(connection, BROKEN)
        with transaction.atomic():
            for airport, minutes in (("JFK", 176), ("EWR", 136), ("EWR", 106)):
                alert = {"flight": 1685, "airport": airport, "minutes": minutes}
                outbox.publish_raw("board", "DelayAlert", alert, key=airport)
        made.publish(600)
        drain(made.logbook, made.board, made.alerts)
        yield made
        made.go_on.set()


@pytest.fixture
def stuck(airline, connect):
    """A transaction that published and stays open, with messages behind it and a worker connected."""
    importer, worker = connect(), connect()
    execute(worker, "SELECT set_config('application_name', %s, false)", WORKER)
    execute(importer, "SET application_name = 'nightly import'")
    execute(importer, "BEGIN")
    execute(importer, IMPORT)
    airline.publish(30)
    execute(connection, "UPDATE outbox_cursor SET last_commit_at = now() - interval '30 s'")


@pytest.fixture
def operator(tmp_path, settings):
    settings.OUTBOX = {"OPERATOR": "ann"}
    return pages.Operator(tmp_path, {'"flights"': f'"{connection.settings_dict["NAME"]}"'})


def sections(page):
    """The parts of a page, by their headings."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part for part in text.split("\n## ")}


OPERATIONS = sections("operations.md")


def test_a_stuck_log_looks_as_the_page_shows_it(stuck, operator):
    """Groups, thresholds, parked messages, one group in full, the log, and the doctor."""
    first = ParkedMessage.objects.earliest("position").position
    operator.names["4983"] = str(first)
    for heading in (
        "What is late",
        "Thresholds",
        "Parked messages",
        "Why",
        "The log itself",
        "Is the database fit for it?",
    ):
        operator.follow(OPERATIONS[heading].partition("`--ranges`")[0])


def test_the_ranges_and_workers_of_a_group_look_as_the_page_shows_them(airline, operator):
    """While a worker is in a batch of one range."""
    airline.publish(40)
    airline.hold()
    worker = Worker([airline.logbook, airline.board])
    working = Background(worker.run)
    assert airline.at_work.wait(120)
    operator.follow(OPERATIONS["Why"].partition("`--ranges`")[2])
    worker.stop()
    airline.go_on.set()
    working.result()


def test_what_moves_a_group_writes_what_the_page_shows(airline, operator):
    """Replay, pause and skip, more ranges, audit, and a channel that is forgotten."""
    airline.publish(10)
    following = "SELECT min(position) FROM outbox_message WHERE channel = 'flights' AND position > "
    following += "(SELECT position FROM outbox_cursor WHERE \"group\" = 'board')"
    operator.names["4983"] = str(execute(connection, following)[0][0])
    tomorrow = timezone.now() + datetime.timedelta(days=1)
    operator.names["2026-12-01T06:00:00+01:00"] = tomorrow.isoformat()
    register([consumers.billing], "default")
    execute(connection, "UPDATE outbox_cursor SET channel = 'refunds' WHERE \"group\" = 'billing'")
    for heading in ("Replay", "Pause, resume, skip"):
        operator.follow(OPERATIONS[heading])
    pauses.pause("delays", reason="")
    for heading in ("More workers", "Is it right?", "Groups and channels that left the code"):
        operator.follow(OPERATIONS[heading])


def test_the_disk_of_channels_looks_as_the_page_shows_it(operator, settings):
    """Kept for ever, for days, and the latest of each key."""
    channels = {"orders": {"keep": "5 days"}, "prices": {"keep": "latest"}}
    settings.OUTBOX = {"CHANNELS": channels}
    execute(connection, OF_DAYS)
    operator.follow(sections("retention.md")["Disk"])


@pytest.mark.parametrize("page", ["workers.md", "monitoring.md"])
def test_the_other_commands_of_a_page_write_what_it_shows(operator, page):
    """Those that do not serve until they are stopped."""
    register([consumers.billing], "default")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n.*?^```$", text, re.MULTILINE | re.DOTALL)
    done = operator.follow("\n".join(blocks))

    assert done
