"""Plans of the statements that run all the time: of many segments they read few."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection, transaction

import outbox
from outbox.consuming import windows
from outbox.operations import redrives, replay
from outbox.testing import drain
from outbox.worker import Worker
from tests.bank.models import Deposited
from tests.retention.conftest import empty_log, run
from tests.retention.test_maintenance import publish
from tests.support.notices import Notices

pytestmark = pytest.mark.django_db(transaction=True)
SEGMENTS = 40
SIZE = 200_000
"""Positions in a segment; a claim looks 100,000 positions ahead."""
MOST = 3
"""Segments that a statement may read: those of the ends of what it looks for, and a neighbour."""
SEGMENT_SCAN = re.compile(r"(?:Scan|Scan Backward)\b.*? on (outbox_message_\w+)(?: \S+)?  \((.*)")
ONCE = "SELECT max(position)"
"""When it starts, a worker compares the end of the log with the sequence."""


def segments_read(plan):
    """How many segments a plan read, one that it never executed (pruned at run time) left out."""
    found = SEGMENT_SCAN.finditer(plan)
    return len({match[1] for match in found if "never executed" not in match[2]})


@pytest.fixture
def groups(small_log, declare_group):
    """Groups of all kinds at the end of a log of many segments, and two in its middle."""
    empty_log(size=SIZE, count=SEGMENTS)
    for number in range(SEGMENTS - 1):
        run("SELECT setval('outbox_message_position_seq', %s)", max(1, number * SIZE))
        publish(95)
    faults = []

    def handle(event, message):
        for fault in faults:
            raise fault

    leases = {"delivery": "at_least_once"}
    declared = {
        name: declare_group(name, "goods", start="latest", **options)
        for name, options in {
            "reader": {},
            "leased": leases,
            "middle": {},
            "leased middle": leases,
            "parking": {"on_failure": "park", "retry": outbox.Retry(max_attempts=1)},
            "sharing": {"parallelism": 8},
        }.items()
    }
    for name, group in declared.items():
        group.handler("Made")(handle)
        drain(group)
        if "middle" in name:
            replay.reset(name, position=10 * SIZE)
    return declared, faults


@pytest.fixture
def plans(groups):
    """Collects the plan of each statement of this session, those inside functions too."""
    if not run("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0][0]:
        pytest.skip("auto_explain needs a superuser")
    run("LOAD 'auto_explain'")
    for line in ("min_duration = 0", "nested_statements = on", "analyze = on", "level = notice"):
        run(f"SET auto_explain.log_{line}")
    yield Notices(connection.connection).texts
    connection.close()


def plans_of(plans, function):
    """Call a function; return the plans of its statements that read many segments."""
    plans.clear()
    function()
    return [plan for plan in plans if ONCE not in plan and segments_read(plan) > MOST]


def test_what_runs_all_the_time_reads_few_of_many_segments(plans, groups, monkeypatch):
    """Publishing, claiming, leases, parking, redrives, waiting and streams: no plan reads more."""
    declared, faults = groups
    positions = []

    def publish_some():
        with transaction.atomic():
            positions.append(outbox.publish_raw("goods", "Made", {}, key="1"))
            outbox.publish(Deposited(account="17", amount=Decimal(1)))
            outbox.publish_many([Deposited(account="18", amount=Decimal(1))] * 3)

    def park_and_block():
        faults.append(ValueError("not today"))
        for _ in range(2):
            publish_some()
            drain(declared["parking"], raise_errors=False)
        faults.clear()

    def share():
        monkeypatch.setattr(windows, "LEAST_RANGES", 2)
        with transaction.atomic():
            for key in range(60):
                outbox.publish_raw("goods", "Made", {}, key=str(key))
        drain(declared["sharing"])
        assert any("width_bucket" in plan for plan in plans)

    def run_once(name):
        assert Worker(groups=[declared[name]], batch_size=50).run_once()

    work = {
        "publish": publish_some,
        "handle": lambda: drain(declared["reader"]),
        "handle with leases": lambda: drain(declared["leased"]),
        "handle in the middle": lambda: run_once("middle"),
        "handle with leases in the middle": lambda: run_once("leased middle"),
        "handle ranges together": share,
        "park and block": park_and_block,
        "redrive": lambda: redrives.redrive("parking", everything=True),
        "wait": lambda: outbox.wait_for("reader", positions[0], timeout=0),
        "read a stream": lambda: list(outbox.stream("accounts", "17").read()),
    }
    wide = {name: plans_of(plans, function) for name, function in work.items()}

    assert len(positions) == 3
    assert {name: texts for name, texts in wide.items() if texts} == {}
    assert any(segments_read(plan) for plan in plans)


def test_what_operators_ask_steps_into_each_segment_once(plans, groups):
    """The ends of the whole log and its last messages are looked for under a limit."""

    def ask():
        replay.reset("reader", shift_by=-5)
        call_command("outbox", "groups")
        call_command("outbox", "describe", "reader")
        call_command("outbox", "tail", "goods", "--lines", "5")

    wide = plans_of(plans, ask)

    assert wide
    assert [plan for plan in wide if "->  Limit" not in plan and "\nLimit" not in plan] == []
