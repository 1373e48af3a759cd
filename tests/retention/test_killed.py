"""Maintenance, restore and erasure killed at every step, and run again."""

from __future__ import annotations

import itertools
import os
import signal

import pytest
from django.core.files.storage import FileSystemStorage
from django.db import connection, connections

from outbox.models import ArchivedSegment
from outbox.operations import erasures
from outbox.retention import maintenance
from tests.retention.conftest import empty_log, run
from tests.support.amounts import amount
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
STRIDE = amount(12, 1)
"""Of so many steps one is tried; the long form tries all of them, in a few minutes."""
VICTIM = "killed on purpose"
_inherited = []
"""Sessions of the parent, which a child process must not close."""


class Steps:
    """Kills this process before the step of a number: a statement, or an access to a storage."""

    def __init__(self, last):
        self.last, self.count = last, 0

    def step(self):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(self, execute, sql, *arguments):
        self.step()
        return execute(sql, *arguments)

    def storage(self, method):
        def call(*arguments, **options):
            self.step()
            return method(*arguments, **options)

        return call


def killed_at(number, function):
    """Run a function in a process that is killed before a step; tell whether it came that far."""
    child = os.fork()
    if child == 0:
        _inherited.append(connection.connection)
        connection.connection = None
        steps = Steps(number)
        try:
            run(f"SET application_name = '{VICTIM}'")
            connection.execute_wrappers.append(steps.statement)
            for name in ("save", "open", "delete", "exists"):
                setattr(FileSystemStorage, name, steps.storage(getattr(FileSystemStorage, name)))
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = %s"
    wait_until(lambda: run(gone, VICTIM)[0][0])
    return os.WIFSIGNALED(status)


def state(folder):
    """All that maintenance changes: segments, messages, what was removed, tables, files."""
    segments = run(
        "SELECT child.relname, pg_get_expr(child.relpartbound, child.oid) FROM pg_inherits "
        "JOIN pg_class AS child ON child.oid = inhrelid "
        "WHERE inhparent = 'outbox_message'::regclass ORDER BY 1"
    )
    rows = run(
        "SELECT count(*), md5(string_agg(m::text, '' ORDER BY position)) FROM outbox_message AS m"
    )
    removed = run("SELECT channel, removed_to FROM outbox_channel_retention ORDER BY 1")
    files = ArchivedSegment.objects.order_by("first_position", "last_position").values_list(
        "lower", "upper", "messages", "first_position", "last_position", "checksum", "is_obsolete"
    )
    tables = run("SELECT relname FROM pg_class WHERE relname ~ '^outbox_message.*_(new|fresh)$'")
    promises = run("SELECT count(*) FROM pg_constraint WHERE conname = 'outbox_segment_range'")
    on_disk = {path.name for path in folder.rglob("*.gz")}
    named = {
        os.path.basename(name) for name in ArchivedSegment.objects.values_list("name", flat=True)
    }
    return segments, rows, removed, list(files), tables, promises, on_disk == named


def publish(count, channel, days, first=1):
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, created_at) "
        "SELECT %s, 'key-' || n %% 5, 'Made', jsonb_build_object('n', n), "
        "timestamptz '2026-01-01 12:00' - make_interval(days => %s) FROM generate_series(1, %s) AS n",
        channel,
        days,
        count,
    )


def fill(folder):
    """A segment to drop, one to compact, one to keep, and messages in the default segment."""
    for path in folder.rglob("*.gz"):
        path.unlink()
    empty_log()
    publish(99, "goods", 400)
    publish(50, "goods", 400)
    publish(50, "ledgers", 400)
    publish(220, "ledgers", 1)


def maintain():
    maintenance.maintain("default")


def killed_everywhere(folder, prepare, work):
    """The states after a run that was killed at each step and then repeated, and the right one."""
    prepare()
    work()
    right = state(folder)
    found = {}
    for number in itertools.count(1, STRIDE):
        prepare()
        if not killed_at(number, work):
            break
        work()
        found[number] = state(folder)
    connections.close_all()
    return right, found


@pytest.fixture
def with_archive(settings, small_log):
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "30 days"}}, "ARCHIVE": "cold"}
    return small_log


def test_maintenance_killed_at_any_step_ends_in_the_same_state_when_run_again(with_archive):
    """Promote, archive, compact and drop: no message, table, file or row is left over or lost."""
    right, found = killed_everywhere(with_archive, lambda: fill(with_archive), maintain)

    assert len(found) > 40 // STRIDE
    assert {number: each for number, each in found.items() if each != right} == {}


def test_restore_killed_at_any_step_ends_in_the_same_state_when_run_again(with_archive):
    """A dropped and a compacted segment come back whole, whatever was half done before."""

    def removed():
        fill(with_archive)
        maintain()

    def restore():
        records = ArchivedSegment.objects.filter(restored_until=None)
        if records:
            erasures.bring_back(
                min(each.first_position for each in records), 2**62, using="default"
            )

    right, found = killed_everywhere(with_archive, removed, restore)

    assert len(found) > 20 // STRIDE
    assert {number: each for number, each in found.items() if each != right} == {}


def test_erasure_killed_at_any_step_ends_in_the_same_state_when_run_again(with_archive):
    """The key is gone from log and files, and no old file stays behind."""

    def prepared():
        fill(with_archive)
        maintain()

    def erase():
        erasures.erase("goods", "key-1", reason="asked", using="default")

    right, found = killed_everywhere(with_archive, prepared, erase)

    assert len(found) > 20 // STRIDE
    assert {number: each for number, each in found.items() if each != right} == {}
    assert erasures.erase("goods", "key-1", reason="", using="default", execute=False).files == []
