"""Logs with many segments, with a full default segment, and beyond the last segment."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid

import pytest
from django.core.management import call_command
from django.db import connection, transaction

import outbox
from outbox.models import ArchivedSegment, Message, ParkedMessage
from outbox.operations import erasures, replay
from outbox.retention import maintenance, segments
from outbox.testing import drain
from tests.retention.conftest import empty_log, run
from tests.retention.test_maintenance import publish
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
STRAYS = int(os.environ.get("OUTBOX_TEST_STRAYS", "200000"))
"""Messages in the default segment."""
KEPT = int(os.environ.get("OUTBOX_TEST_COMPACTED", "20000"))
"""Messages in the segment that is compacted; one in ten is kept."""


def test_the_end_of_the_last_segment_is_nothing_special(small_log, declare_group):
    """Publishing goes on past position 80 million, and maintenance makes segments of what is there."""
    empty_log(size=segments.DEFAULT_SIZE, count=8)
    last = 8 * segments.DEFAULT_SIZE
    run(f"SELECT setval('outbox_message_position_seq', {last - 20})")
    group = declare_group("reader", "goods")
    handled = []
    group.handler("Made")(lambda event, message: handled.append(message.position))
    publish(100)
    assert segments.default_has_rows()

    done = maintenance.maintain("default")
    publish(100)

    assert done.promoted == [f"outbox_message_{last}"]
    assert not segments.default_has_rows()
    drain(group)
    assert handled == list(range(last - 19, last + 181))


def test_a_full_default_segment_keeps_no_publisher_waiting(small_log, connect):
    """Segments are added and strays moved while a publisher goes on; its lock time-out never fires.

    A scan of the default segment under its lock would last longer than that.
    """
    run("SELECT setval('outbox_message_position_seq', 1000)")
    publish(STRAYS)
    session, stop, published = connect().cursor(), threading.Event(), []
    session.execute("SET lock_timeout = '1s'")

    def keep_publishing():
        while not stop.is_set():
            session.execute(
                "INSERT INTO outbox_message (channel, type, payload) VALUES ('a', 'b', '{}')"
            )
            published.append(time.monotonic())

    publisher = threading.Thread(target=keep_publishing)
    publisher.start()
    try:
        wait_until(lambda: published)
        call_command("outbox", "segments", "--ahead", "2")
        done = maintenance.maintain("default")
        seen = len(published)
        wait_until(lambda: len(published) > seen or not publisher.is_alive())
    finally:
        stop.set()
        publisher.join(60)

    assert seen < len(published)
    assert done.dropped == []
    assert not segments.default_has_rows()
    assert Message.objects.count() == STRAYS + len(published)


class Notices:
    """What the server says on a session; psycopg2 would keep the last fifty in a list."""

    def __init__(self, session):
        self.texts = []
        if hasattr(session, "add_notice_handler"):
            session.add_notice_handler(lambda notice: self.append(notice.message_primary))
        else:
            session.notices = self

    def append(self, text):
        self.texts.append(text)


def test_attaching_a_segment_never_scans_the_default_one(small_log, connect):
    """The server itself says that the promised range stands for the scan."""
    publish(450)
    with connection.cursor() as cursor:
        cursor.execute("SET client_min_messages = debug1")
    notices = Notices(connection.connection).texts
    try:
        maintenance.maintain("default")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET client_min_messages")

    said = [each for each in notices if "is implied by existing constraints" in each]
    assert any('"outbox_message_400"' in each for each in said), said


def test_compaction_keeps_messages_byte_by_byte_and_groups_replay_exactly_those(
    small_log, settings, declare_group
):
    """Of a large segment one message in ten is kept; a replay sees what is left, in order."""
    empty_log(size=KEPT + 1, count=3)
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "1 day"}}}
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, headers, created_at) "
        "SELECT CASE WHEN n %% 10 = 0 THEN 'ledgers' ELSE 'goods' END, 'key-' || n %% 7, 'Made', "
        "jsonb_build_object('n', n, 'text', repeat(n::text, n %% 50)), jsonb_build_object('h', n), "
        "clock_timestamp() - interval '2 days' FROM generate_series(1, %s) AS n",
        KEPT,
    )
    publish(5, "other")
    group = declare_group("ledger", "ledgers")
    handled = []
    group.batch_handler("Made")(
        lambda events, messages: handled.extend((m.position, m.payload["n"]) for m in messages)
    )
    drain(group)
    first, handled[:] = list(handled), []
    kept = "SELECT count(*), md5(string_agg(m::text, '|' ORDER BY position)) FROM outbox_message AS m WHERE channel = 'ledgers'"
    before = run(kept)

    done = maintenance.maintain("default")
    replay.reset("ledger", position=0)
    drain(group)

    assert done.compacted == ["outbox_message_1"]
    assert run(kept) == before
    assert handled == first
    assert len(first) == KEPT // 10
    assert not Message.objects.filter(channel="goods").exists()


def files_with(secret):
    """The files of the server's data folder that hold a text, the write-ahead log excluded."""
    folder = run("SHOW data_directory")[0][0]
    run("CHECKPOINT")
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each != "pg_wal"]
        for name in names:
            path = os.path.join(place, name)
            try:
                with open(path, "rb") as file:
                    if secret in file.read():
                        found.append(os.path.relpath(path, folder))
            except OSError:
                continue
    return found


def test_after_an_erasure_no_file_of_the_server_holds_the_values(
    small_log, settings, declare_group
):
    """Log, parked copies, error texts and statistics: searched after a checkpoint."""
    if not os.access(run("SHOW data_directory")[0][0], os.R_OK):
        pytest.skip("the data folder of this server cannot be read")
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    secret = uuid.uuid4().hex
    group = declare_group(
        "careless", "people", on_failure="park", retry=outbox.Retry(max_attempts=1)
    )

    @group.handler("Moved")
    def fail(event, message):
        raise ValueError(f"cannot read {message.payload}")

    with transaction.atomic():
        for _ in range(3):
            outbox.publish_raw("people", "Moved", {"address": secret}, key="17")
        outbox.publish_raw("people", "Moved", {"address": "another"}, key="18")
    drain(group, raise_errors=False)
    assert ParkedMessage.objects.count()
    run("ANALYZE outbox_message")
    run("ANALYZE outbox_parked_message")
    run("ANALYZE outbox_cursor")
    assert files_with(secret.encode())

    erasures.erase("people", "17", reason="asked", using="default")

    assert files_with(secret.encode()) == []
    assert Message.objects.filter(key="17", payload=None).count() == 3
    assert Message.objects.get(key="18").payload == {"address": "another"}
    assert ArchivedSegment.objects.count() == 0


PLAN_NODE = re.compile(r"(?:Scan|Scan Backward)\b.*? on (outbox_message_\w+)(?: \S+)?  \((.*)")


def test_runtime_statements_read_few_of_many_segments(small_log, declare_group, connect):
    """The server's plans of publishing, claiming and advancing name few of 40 segments.

    What operators ask of the whole log (its ends, the last messages) steps into each segment once,
    under a limit. A segment that a plan names and never executes was pruned at run time.
    """
    empty_log(count=40)
    group = declare_group("reader", "goods")
    group.handler("Made")(lambda event, message: None)
    publish(3850)
    drain(group)
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if not cursor.fetchone()[0]:
            pytest.skip("auto_explain needs a superuser")
        for line in (
            "LOAD 'auto_explain'",
            "SET auto_explain.log_min_duration = 0",
            "SET auto_explain.log_nested_statements = on",
            "SET auto_explain.log_analyze = on",
            "SET auto_explain.log_level = notice",
        ):
            cursor.execute(line)
    plans = Notices(connection.connection).texts
    try:
        with transaction.atomic():
            outbox.publish_raw("goods", "Made", {}, key="1")
        drain(group)
        of_workers = len(plans)
        with transaction.atomic():
            replay.reset("reader", shift_by=-5)
        call_command("outbox", "groups")
        call_command("outbox", "describe", "reader")
        call_command("outbox", "tail", "goods", "--lines", "5")
    finally:
        connection.close()

    assert any("outbox_claim" in plan for plan in plans[:of_workers])
    # Once, when it starts, a worker compares the end of the log with the sequence.
    of_each_batch = [plan for plan in plans[:of_workers] if "SELECT max(position)" not in plan]
    assert [plan for plan in of_each_batch if segments_read(plan) > 3] == []
    wide = [plan for plan in plans[of_workers:] if segments_read(plan) > 3]
    assert [plan for plan in wide if "->  Limit" not in plan and "\nLimit" not in plan] == []


def segments_read(plan):
    """How many segments a plan read, one that it never executed left out."""
    found = PLAN_NODE.finditer(plan)
    return len({match[1] for match in found if "never executed" not in match[2]})
