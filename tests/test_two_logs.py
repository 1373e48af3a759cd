"""Two logs in two schemas of one database, as with a schema per tenant, under load and kills."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.amounts import amount
from tests.support.harness import execute, value
from tests.support.processes import driver, open_session, wait_until
from tests.support.project import Project

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900)]

SCHEMAS = {"one": 1000, "two": 3 * 2**32 + 1000}
"""Each with the number at which its sequence begins: as locks hold floors, the same numbers."""
PUBLISHERS = 8
"""Of each log."""
KILLS = amount(6, 100)
"""Of publishers and workers, of each log."""
GROUPS = {"wide": ["a", "b"], "single": ["b"]}
POLL = "600"
"""Seconds: longer than any test waits, so that a lost wake-up fails it."""
CONSUMERS = """
from django.db import connection
import outbox

def declare(name, channels, **options):
    group = outbox.ConsumerGroup(name, channels=channels, start="earliest", **options)

    @group.handler("Item")
    def handle(payload, message):
        with connection.cursor() as cursor:
            cursor.execute(
                'INSERT INTO effect ("group", position) VALUES (%s, %s)', [name, message.position]
            )

declare("wide", ["a", "b"], parallelism=4)
declare("single", ["b"])
"""
PENDING = """
    SELECT count(*) FROM outbox_cursor AS c JOIN outbox_message AS m USING (channel)
    WHERE m.position > c.position AND m.slot BETWEEN c.slot_from AND c.slot_to
"""
PUBLISH = "SELECT outbox_publish_v1(%s, '1', 'Item', '{}', '{}')"
RAW = "INSERT INTO outbox_message (channel, type, payload) VALUES ('b', 'Item', '{}')"


class Tenant:
    """A schema with a log, the project that uses it, and its processes."""

    def __init__(self, schema, database, folder):
        self.folder = folder / schema
        options = {**database["OPTIONS"], "options": f"-c search_path={schema}"}
        entry = {**database, "OPTIONS": options}
        self.session = open_session(database)
        execute(self.session, f"CREATE SCHEMA {schema}")
        execute(self.session, f"SET search_path = {schema}")
        apps = ["pgtrigger", "outbox", "notes"]
        self.project = Project(self.folder, {"default": entry}, INSTALLED_APPS=apps)
        self.project.write("notes/consumers.py", CONSUMERS)
        self.project.run("from django.core.management import call_command; call_command('migrate')")
        execute(
            self.session,
            'CREATE TABLE effect (id bigserial, "group" text, position bigint NOT NULL)',
        )
        execute(self.session, "SELECT setval('outbox_message_position_seq', %s)", SCHEMAS[schema])
        self.dsn = f"dbname={database['NAME']} host={database['HOST']} port={database['PORT']} "
        # Raw INSERTs send no NOTIFY by themselves where the server allows prepared transactions.
        settings = f"-c search_path={schema} -c outbox.notify=on"
        self.dsn += f"user={database['USER'] or 'postgres'} options='{settings}'"
        self.files, self.processes = [], []

    def start_publisher(self):
        """Start a publisher with a seed of its own."""
        self.files.append(self.folder / f"{len(self.files)}.txt")
        program = Path(__file__).parent / "support" / "bare_publisher.py"
        seed = str(len(self.files))
        return self._start(program, driver.__name__, self.dsn, seed, self.files[-1])

    def start_worker(self):
        """Start a worker of all groups that nothing but a NOTIFY wakes."""
        return self._start("-m", "django", "consume", *GROUPS, "--poll-interval", POLL)

    def _start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **self.project.environment()},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "errors.txt").open("a"),
        )
        self.processes.append(process)
        return process

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.session.close()

    def confirmed(self):
        return {line for file in self.files if file.exists() for line in file.read_text().split()}

    def handled(self, group):
        rows = execute(self.session, 'SELECT position FROM effect WHERE "group" = %s', group)
        return [position for (position,) in rows]

    def is_done(self):
        return value(self.session, PENDING) == 0

    def faults(self):
        """What is lost and doubled of this log."""
        rows = execute(
            self.session, "SELECT position, channel, payload ->> 'n' FROM outbox_message"
        )
        stored = {number for *_, number in rows}
        found = {"not in the log": len(self.confirmed() - stored)}
        for group, channels in GROUPS.items():
            counts = collections.Counter(self.handled(group))
            wanted = {position for position, channel, _ in rows if channel in channels}
            found[group] = (len(wanted - set(counts)), sum(counts.values()) - len(counts))
        return found


NOTHING = {"not in the log": 0, **dict.fromkeys(GROUPS, (0, 0))}


@pytest.fixture
def tenants(empty_database, tmp_path):
    started = []
    try:
        for schema in SCHEMAS:
            started.append(Tenant(schema, empty_database, tmp_path))
        yield started
    finally:
        for tenant in started:
            tenant.close()


def test_two_logs_lose_nothing_beside_each_other(tenants, record_property, capsys):
    """Eight publishers and two workers of each are killed again and again: each log has what was
    confirmed, and each group handles each message of its own log once."""
    dice = random.Random(14)
    running = {
        tenant: [
            [tenant.start_publisher, [tenant.start_publisher() for _ in range(PUBLISHERS)]],
            [tenant.start_worker, [tenant.start_worker() for _ in range(2)]],
        ]
        for tenant in tenants
    }
    for number in range(KILLS):
        for tenant, kinds in running.items():
            reached = len(tenant.handled("wide")) + 10
            wait_until(lambda t=tenant, n=reached: len(t.handled("wide")) >= n, 120)
            start, processes = kinds[number % 2]
            victim = dice.randrange(len(processes))
            processes[victim].kill()
            processes[victim].wait()
            processes[victim] = start()
    for kinds in running.values():
        for process in kinds[0][1]:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    for tenant in tenants:
        wait_until(tenant.is_done, 120)
    numbers = {
        schema: {"confirmed": len(tenant.confirmed()), **tenant.faults()}
        for schema, tenant in zip(SCHEMAS, tenants, strict=True)
    }
    record_property("numbers", numbers)
    with capsys.disabled():
        print(f"\ntwo logs, {KILLS} kills in each; (lost, doubled): {numbers}")

    for tenant in tenants:
        assert tenant.faults() == NOTHING, (tenant.folder / "errors.txt").read_text()[-2000:]
        assert min(tenant.handled("wide")) > SCHEMAS[tenant.folder.name]


def test_an_open_transaction_of_one_log_delays_no_group_of_the_other(tenants):
    """A raw INSERT that stays open in one log holds back all of its groups, and none of the other's,
    whose sleeping workers are woken for each message."""
    for tenant in tenants:
        tenant.start_worker()
        first = value(tenant.session, PUBLISH, "b")
        wait_until(partial(has_handled, tenant, first))
    for busy, other in (tenants, tenants[::-1]):
        execute(busy.session, "BEGIN")
        execute(busy.session, RAW)
        free = []
        for _ in range(5):
            free.append(value(other.session, PUBLISH, "b"))
            wait_until(partial(has_handled, other, free[-1]))
        reader = open_session_of(busy)
        behind = value(reader, PUBLISH, "b")
        horizons = value(reader, "SELECT horizons FROM outbox_horizons_v1('{a,b}')")
        handled_meanwhile = has_handled(busy, behind)
        execute(busy.session, "COMMIT")
        wait_until(partial(has_handled, busy, behind))
        reader.close()

        assert not handled_meanwhile
        assert all(horizon < behind - 1 for horizon in horizons)


def open_session_of(tenant):
    session = driver.connect(tenant.dsn)
    session.autocommit = True
    return session


def has_handled(tenant, position):
    return all(position in tenant.handled(group) for group in GROUPS)
