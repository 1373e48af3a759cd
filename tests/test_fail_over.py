"""Fail-over to a real standby: the primary is killed while publishers and a worker run."""

from __future__ import annotations

import collections
import json
import re
import signal
import sys

import pytest

from outbox.embedded import find_programs
from tests.support.amounts import amount
from tests.support.harness import execute, value
from tests.support.processes import MANAGE, run_process, start_process, wait_until
from tests.support.standby import NAME, replicated

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        sys.platform != "linux", reason="the processes of a server are read in /proc"
    ),
]
PUBLISHERS = 3
GROUPS = ["ledger", "crew"]
"""A range with a batch handler, and four ranges whose handlers get single messages."""
ENOUGH = amount(60, 1000)
"""Messages before and after the fail-over."""
NUMBERS = """
    SELECT position, payload ->> 'note' FROM outbox_message WHERE channel = 'orders' ORDER BY position
"""
HANDLED = 'SELECT position, key FROM shop_effect WHERE "group" = %s ORDER BY id'
PENDING = """
    SELECT count(*) FROM outbox_cursor AS c JOIN outbox_message AS m USING (channel)
    WHERE m.position > c.position AND m.slot BETWEEN c.slot_from AND c.slot_to
"""


@pytest.fixture
def pair():
    if not (find_programs() / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL comes without pg_basebackup")
    with replicated() as pair:
        yield pair


@pytest.fixture
def run(pair):
    """Run Python at the pair, until it ends or in the background; nothing outlives the test."""
    variables = {"DATABASE_URL": pair.url, "OUTBOX_TEST_DB": NAME}
    started = []

    def start(*arguments):
        started.append(start_process(*arguments, **variables))
        return started[-1]

    def run_to_the_end(*arguments):
        return run_process(*arguments, **variables)

    start.to_the_end = run_to_the_end
    yield start
    for process in started:
        process.kill()
        process.communicate()


class Site:
    """Publishers and a worker at the pair, and what they did."""

    def __init__(self, pair, run, folder):
        self.pair, self.run = pair, run
        self.files = [folder / f"{number}.txt" for number in range(PUBLISHERS)]
        done = run.to_the_end(MANAGE, "migrate", "--verbosity", "0")
        assert done.returncode == 0, done.stderr
        self.worker = run(MANAGE, "consume", *GROUPS)
        program = ("-m", "tests.support.persistent_publisher")
        self.publishers = [run(*program, str(n), str(file)) for n, file in enumerate(self.files)]

    def confirmed(self):
        """The messages whose commit was confirmed."""
        return [line for file in self.files if file.exists() for line in file.read_text().split()]

    def let_it_run(self, session):
        """Wait until some more messages were published and handled by every group."""
        published = len(self.confirmed()) + ENOUGH
        handled = [len(execute(session, HANDLED, group)) + ENOUGH for group in GROUPS]
        wait_until(lambda: len(self.confirmed()) >= published, 120)
        for group, enough in zip(GROUPS, handled, strict=True):
            wait_until(lambda g=group, n=enough: len(execute(session, HANDLED, g)) >= n, 120)

    def end(self):
        """Stop the publishers, let the worker finish, and stop it."""
        session = self.pair.standby
        for process in self.publishers:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, process.communicate()
        wait_until(lambda: value(session, PENDING) == 0, 120)
        self.worker.send_signal(signal.SIGTERM)
        _, errors = self.worker.communicate(timeout=120)
        assert self.worker.returncode == 0, errors

    def doctor(self):
        """The findings of the checks at the server that is the primary now."""
        done = self.run.to_the_end(MANAGE, "outbox", "doctor", "--json")
        return {each["check"]: each["level"] for each in json.loads(done.stdout)}

    def audit(self):
        """What the audit of each group prints, if it finds anything."""
        done = [self.run.to_the_end(MANAGE, "outbox", "audit", group) for group in GROUPS]
        return [each.stdout + each.stderr for each in done if each.returncode]


@pytest.fixture
def site(pair, run, tmp_path):
    def begin():
        return Site(pair, run, tmp_path)

    return begin


def faults(session, confirmed):
    """What is lost, doubled, invented or out of order, at the server that is the primary now."""
    stored = dict(execute(session, NUMBERS))
    found = {"lost": len(set(confirmed) - set(stored.values()))}
    for group in GROUPS:
        rows = execute(session, HANDLED, group)
        counts = collections.Counter(position for position, _ in rows)
        keys = collections.defaultdict(list)
        for position, key in rows:
            keys[key].append(position)
        found[group] = {
            "lost": len(set(stored) - set(counts)),
            "doubled": sum(count - 1 for count in counts.values()),
            "invented": len(set(counts) - set(stored)),
            "out of order": sum(positions != sorted(positions) for positions in keys.values()),
        }
    return found


NOTHING = {"lost": 0, "doubled": 0, "invented": 0, "out of order": 0}


def test_a_synchronous_standby_loses_and_doubles_nothing(pair, site, record_property, capsys):
    """Each message whose commit was confirmed is there after the promotion, and every group handles
    it once: the processes that ran go on by themselves."""
    pair.make_synchronous()
    running = site()
    running.let_it_run(pair.primary)
    pair.kill_primary()
    before = len(running.confirmed())
    pair.promote()
    running.let_it_run(pair.standby)
    running.end()
    confirmed = running.confirmed()
    found = faults(pair.standby, confirmed)
    numbers = {"confirmed before": before, "confirmed": len(confirmed), **found}
    record_property("numbers", numbers)
    with capsys.disabled():
        print(f"\nsynchronous standby: {numbers}")

    assert found == {"lost": 0, **dict.fromkeys(GROUPS, NOTHING)}
    assert running.doctor()["positions"] == "ok"
    assert running.audit() == []


def test_an_asynchronous_standby_loses_messages_with_what_was_made_of_them(
    pair, site, record_property, capsys
):
    """What the standby had not received is gone: messages, effects and cursors up to one point. No
    group passes a message over that is there, or handles it twice, also where positions are given
    out again; and no cursor is above the log."""
    running = site()
    running.let_it_run(pair.primary)
    pair.cut()
    running.let_it_run(pair.primary)
    pair.kill_primary()
    pair.promote()
    running.let_it_run(pair.standby)
    running.end()
    confirmed = running.confirmed()
    found = faults(pair.standby, confirmed)
    numbers = {"confirmed": len(confirmed), **found}
    record_property("numbers", numbers)
    with capsys.disabled():
        print(f"\nasynchronous standby: {numbers}")

    assert found["lost"] > 0
    assert {group: found[group] for group in GROUPS} == dict.fromkeys(GROUPS, NOTHING)
    assert running.doctor()["positions"] == "ok"
    assert running.audit() == []


def test_a_cursor_above_the_promoted_log_is_noticed(pair, run):
    """As after a promotion of a copy whose sequence did not come along: the worker refuses to start
    and doctor fails, each with the statement that mends it."""
    session = pair.primary
    done = run.to_the_end(MANAGE, "migrate", "--verbosity", "0")
    assert done.returncode == 0, done.stderr
    publish = "SELECT outbox_publish_v1('orders', '1', 'OrderPlaced', '{\"order_id\": 1}', '{}')"
    for _ in range(100):
        execute(session, publish)
    assert run.to_the_end(MANAGE, "consume", "ledger", "--drain").returncode == 0
    execute(session, "SELECT setval('outbox_message_position_seq', 50)")
    current = value(session, "SELECT pg_current_wal_lsn()")
    reached = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
    wait_until(lambda: value(pair.standby, reached, current))
    pair.kill_primary()
    pair.promote()
    worker = run.to_the_end(MANAGE, "consume", "ledger", "--drain")
    doctor = run.to_the_end(MANAGE, "outbox", "doctor")

    assert worker.returncode != 0
    assert re.search("above the log's last position 50.*outbox_mend_positions", worker.stderr, re.S)
    assert "outbox_mend_positions" in doctor.stdout + doctor.stderr
