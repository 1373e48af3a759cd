"""Logs with many segments, with a full default segment, and beyond the last segment."""

from __future__ import annotations

import os
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
from tests.support.amounts import amount
from tests.support.notices import Notices
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
STRAYS = amount(50_000, 10_000_000)
"""Messages in the default segment."""
COMPACTED = amount(5_000, 1_000_000)
"""Messages in the segment that is compacted; one in ten is kept."""


class Publisher:
    """Publishes one message after the other on a session of its own, inside the with statement.

    A lock that it waited a second for (in the long form) would end it.
    """

    def __init__(self, session):
        self.cursor, self.times, self.stop = session.cursor(), [], threading.Event()
        self.cursor.execute(f"SET lock_timeout = '{amount(30, 1)}s'")
        self.thread = threading.Thread(target=self.publish)

    def publish(self):
        while not self.stop.is_set():
            began = time.monotonic()
            self.cursor.execute(
                "INSERT INTO outbox_message (channel, type, payload) VALUES ('a', 'b', '{}')"
            )
            self.times.append(time.monotonic() - began)

    def goes_on(self):
        """Tell whether it publishes another message."""
        seen = len(self.times)
        wait_until(lambda: len(self.times) > seen or not self.thread.is_alive())
        return len(self.times) > seen

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.times or not self.thread.is_alive())
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(120)

    def __str__(self):
        times = [1000 * each for each in sorted(self.times)]
        p99 = times[int(0.99 * len(times))]
        return f"{len(times)} published, p99 {p99:.1f} ms, longest {times[-1]:.0f} ms"


def timed(function, *arguments):
    """Call a function; print how long it took; return what it returned."""
    began = time.monotonic()
    result = function(*arguments)
    print(f"{function.__name__} {time.monotonic() - began:.1f} s")
    return result


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


def test_the_promised_range_has_room_for_what_is_published_during_the_scan(small_log):
    """As many positions are free behind the head as are scanned, however small segments are."""
    publish(5_000)

    maintenance.maintain("default")

    promoted = next(each for each in segments.list_segments() if each.name == "outbox_message_400")
    assert promoted.upper > 5_000 + 4_600


@pytest.mark.timeout(amount(300, 1800))
def test_a_full_default_segment_keeps_no_publisher_waiting(small_log, connect):
    """Segments are added and strays moved while a publisher goes on; its lock time-out never fires.

    In the long form a scan of the default segment under its lock would last longer than that.
    """
    run("SELECT setval('outbox_message_position_seq', 1000)")
    publish(STRAYS)
    with Publisher(connect()) as publisher:
        timed(call_command, "outbox", "segments", "--ahead", "2")
        done = timed(maintenance.maintain, "default")
        is_alive = publisher.goes_on()
    print(publisher)

    assert is_alive
    assert done.dropped == []
    assert not segments.default_has_rows()
    assert Message.objects.count() == STRAYS + len(publisher.times)


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
    small_log, settings, declare_group, connect
):
    """Of a large segment one message in ten is kept; a replay sees what is left, in order.

    A publisher goes on meanwhile.
    """
    empty_log(size=COMPACTED + 1, count=3)
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "1 day"}}}
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, headers, created_at) "
        "SELECT CASE WHEN n %% 10 = 0 THEN 'ledgers' ELSE 'goods' END, 'key-' || n %% 7, 'Made', "
        "jsonb_build_object('n', n, 'text', repeat(n::text, n %% 50)), jsonb_build_object('h', n), "
        "clock_timestamp() - interval '2 days' FROM generate_series(1, %s) AS n",
        COMPACTED,
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

    with Publisher(connect()) as publisher:
        done = timed(maintenance.maintain, "default")
        is_alive = publisher.goes_on()
    print(publisher)
    replay.reset("ledger", position=0)
    timed(drain, group)

    assert is_alive
    assert done.compacted == ["outbox_message_1"]
    assert run(kept) == before
    assert handled == first
    assert len(first) == COMPACTED // 10
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
