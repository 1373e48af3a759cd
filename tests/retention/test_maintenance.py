"""Maintenance: segments ahead, the default segment, and what the rules remove."""

from __future__ import annotations

import gzip
import json

import pytest
from django.core.files.storage import storages
from django.core.management import call_command
from django.db import DatabaseError

import outbox
from outbox.consuming import cursors
from outbox.exceptions import ArchiveBroken
from outbox.models import ArchivedSegment, ChannelRetention, Message, OperatorAction
from outbox.operations import replay
from outbox.retention import erasure, maintenance, restore, rules, segments
from tests.retention.conftest import run

pytestmark = pytest.mark.django_db(transaction=True)


def publish(count, channel="goods", key=None, days=0):
    """Publish messages of some days ago; what is under test reads the time in the row."""
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, created_at) "
        "SELECT %s, COALESCE(%s, 'key-' || n %% 5), 'Made', jsonb_build_object('n', n), "
        "clock_timestamp() - make_interval(days => %s) FROM generate_series(1, %s) AS n",
        channel,
        key,
        days,
        count,
    )


def names():
    return [each.name for each in segments.list_segments()]


def test_segments_are_made_ahead(small_log):
    """Two empty segments lie ahead of the head, whatever was published."""
    publish(150)

    done = maintenance.maintain("default")

    assert done.created == []
    publish(200)
    assert len(maintenance.maintain("default").created) == 2


def test_what_fell_into_the_default_segment_gets_its_own(small_log):
    """Messages beyond the last segment come out of the default one without being copied."""
    publish(450)
    publish(10, "late")
    assert segments.default_has_rows()
    before = list(Message.objects.order_by("position").values_list("position", "channel"))

    done = maintenance.maintain("default")

    assert done.promoted == ["outbox_message_400"]
    assert not segments.default_has_rows()
    assert before == list(Message.objects.order_by("position").values_list("position", "channel"))
    publish(1000)
    assert Message.objects.count() == 1460
    with pytest.raises(DatabaseError, match="append-only"):
        run("DELETE FROM outbox_message_400")


def test_nothing_goes_unless_somebody_asked(small_log):
    """The default rule keeps messages for ever."""
    publish(350, days=1000)

    done = maintenance.maintain("default")

    assert done.dropped == done.compacted == []
    assert Message.objects.count() == 350


def test_a_segment_whose_messages_are_all_too_old_is_dropped(small_log, settings):
    """Whole segments go; the open one stays whatever its age."""
    settings.OUTBOX = {"KEEP": "30 days"}
    publish(350, days=40)

    done = maintenance.maintain("default")

    assert done.dropped == ["outbox_message_1", "outbox_message_100", "outbox_message_200"]
    assert Message.objects.count() == 51
    assert ChannelRetention.objects.get().removed_to == 299


def test_a_segment_of_kept_and_expired_messages_is_rewritten(small_log, settings):
    """Kept messages stay as they are, byte by byte; the table has no dead rows."""
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "30 days"}}}
    publish(50, days=40)
    publish(49, "ledgers", days=40)
    publish(10)
    kept = run(
        "SELECT m::text FROM outbox_message AS m WHERE channel = 'ledgers' ORDER BY position"
    )

    done = maintenance.maintain("default")

    assert done.compacted == ["outbox_message_1"]
    found = run("SELECT m::text FROM outbox_message AS m WHERE position < 100 ORDER BY position")
    assert found == kept
    assert run("SELECT pg_stat_get_dead_tuples('outbox_message_1'::regclass)") == [(0,)]
    assert maintenance.maintain("default").compacted == []


def test_latest_keeps_the_newest_message_of_each_key(small_log, settings):
    """A closed segment keeps what has no newer message of its key."""
    settings.OUTBOX = {"CHANNELS": {"prices": {"keep": "latest"}}}
    publish(99, "prices")
    publish(10, "prices", key="key-1")

    maintenance.maintain("default")

    rest = run("SELECT key, position FROM outbox_message WHERE position < 100 ORDER BY 1")
    assert [key for key, _ in rest] == ["key-0", "key-2", "key-3", "key-4"]
    assert Message.objects.filter(key="key-1").count() == 10


def test_nothing_unread_is_removed(small_log, settings):
    """A group with a cursor holds retention back, and is named."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(250, days=2)
    run(
        'INSERT INTO outbox_cursor ("group", channel, slot_from, slot_to, position, '
        "counted_from, max_position) VALUES ('slow', 'goods', 0, 32767, 120, 0, 120)"
    )

    done = maintenance.maintain("default")

    assert done.dropped == ["outbox_message_1"]
    (hold,) = done.held
    assert (hold.channel, hold.group, hold.position, hold.segments) == ("goods", "slow", 120, 1)


def test_a_reset_is_clamped_to_what_the_channel_still_has(small_log, settings):
    """A reset to before what was removed goes to the first position from which all is there."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(50, "ledgers")
    publish(200, days=2)
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "1 day"}}}
    maintenance.maintain("default")
    run(
        'INSERT INTO outbox_cursor ("group", channel, slot_from, slot_to, position, '
        "counted_from, max_position) VALUES ('late', 'goods', 0, 32767, 240, 0, 240)"
    )

    (move,) = replay.reset("late", position=0)

    assert (move.new, move.clamped) == (199, True)


def test_a_new_group_begins_behind_what_was_removed(small_log, settings):
    """Its first position is one from which the channel has lost nothing."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(250, days=2)
    maintenance.maintain("default")
    group = outbox.ConsumerGroup.__new__(outbox.ConsumerGroup)
    group.name, group.channels, group.start, group.parallelism = "new", ("goods",), "earliest", 1

    cursors.register([group], "default")

    assert run("SELECT position FROM outbox_cursor") == [(199,)]


@pytest.mark.parametrize("rule", ["90", "ninety days", "latest 0 days", 7, None, "forever!"])
def test_a_rule_that_is_none_is_refused(settings, rule):
    """The system check names the setting, the value and what a rule looks like."""
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": rule}}}

    (found,) = rules.check_rules(None)

    assert 'OUTBOX["CHANNELS"][\'goods\']["keep"]' in found.msg
    assert "90 days" in found.msg


def test_segments_tells_rules_and_growth(small_log, settings, capsys):
    """The verb maintains, lists, and says when the log reaches a disk allowance."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(150, days=2)

    call_command("outbox", "segments", "--maintain", "--budget", "50GB")

    out, err = capsys.readouterr()
    assert "outbox_message_100" in out
    assert "outbox_message_1 " not in out
    assert "dropped: outbox_message_1" in err
    assert "the rules remove as much as is published" in err


def test_erase_and_restore_are_dry_runs_without_execute(small_log, settings, capsys):
    """The commands tell what they would do; with --execute they do it and record it."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(150, days=2)
    maintenance.maintain("default")
    erase = ["outbox", "erase", "--channel", "goods", "--key", "key-2", "--reason", "asked"]

    call_command(*erase)
    call_command("outbox", "restore")

    assert "10 messages, 0 parked copies, 1 archived files" in capsys.readouterr().out
    assert not OperatorAction.objects.exists()
    call_command(*erase, "--execute")
    call_command("outbox", "restore", "--execute")
    assert list(OperatorAction.objects.values_list("action", flat=True)) == ["restore", "erase"]
    assert Message.objects.filter(position__lt=100).count() == 99
    assert {m.payload for m in Message.objects.filter(key="key-2")} == {None}
    call_command("outbox", "erase", "--channel", "goods", "--key", "nobody", "--reason", "asked")
    assert "Nothing to erase." in capsys.readouterr().err


def test_a_transaction_that_stays_open_is_named(small_log, settings, connect):
    """Maintenance gives up after its time, and says which session holds the log."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(150, days=2)
    other = connect()
    cursor = other.cursor()
    cursor.execute("BEGIN")
    cursor.execute("SELECT 1 FROM outbox_message LIMIT 1")

    with pytest.raises(outbox.exceptions.LogIsBusy, match="backend"):
        maintenance.maintain("default", give_up=0.5)

    cursor.execute("ROLLBACK")
    assert maintenance.maintain("default").dropped == ["outbox_message_1"]


def test_archive_drop_restore_replays_the_same(small_log, settings):
    """What was archived comes back at its positions, equal in every column."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(150, days=2)
    columns = "SELECT position, key, type, payload::text, headers::text, created_at, slot"
    before = run(f"{columns} FROM outbox_message WHERE position < 100 ORDER BY 1")
    maintenance.maintain("default")
    assert not Message.objects.filter(position__lt=100).exists()

    count = restore.restore(list(ArchivedSegment.objects.all()), "default")

    assert count == 99
    assert run(f"{columns} FROM outbox_message WHERE position < 100 ORDER BY 1") == before
    assert maintenance.maintain("default").dropped == []
    with pytest.raises(outbox.exceptions.CannotRestore):
        restore.restore(list(ArchivedSegment.objects.all()), "default")


def test_a_changed_file_is_refused(small_log, settings):
    """A flipped byte is found before anything is restored."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(150, days=2)
    maintenance.maintain("default")
    record = ArchivedSegment.objects.get()
    path = small_log / record.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(outbox.exceptions.ArchiveBroken):
        restore.restore([record], "default")
    assert not Message.objects.filter(position__lt=100).exists()


def test_an_archive_that_cannot_be_written_removes_nothing(small_log, settings):
    """The storage's error ends the maintenance; the segment is still there."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(150, days=2)
    (small_log / "outbox").write_text("a file where a folder should be")

    with pytest.raises(ArchiveBroken, match="FileExistsError"):
        maintenance.maintain("default")
    assert Message.objects.filter(position__lt=100).count() == 99


def test_erased_values_are_gone_from_log_and_archive(small_log, settings):
    """Position, type and key stay; payload and headers do not."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(99, days=2)
    maintenance.maintain("default")
    run(
        "INSERT INTO outbox_message (channel, key, type, payload) "
        "VALUES ('goods', 'key-1', 'Made', '{\"secret\": \"swordfish\"}')"
    )
    found = erasure.find("goods", "key-1", "default")
    assert found.messages == 1
    assert len(found.files) == 1

    erasure.erase("goods", "key-1", "default")

    assert erasure.find("goods", "key-1", "default") == erasure.Found(0, 0, [])
    assert run("SELECT payload::text, type FROM outbox_message WHERE key = 'key-1'") == [
        ("null", "Made")
    ]
    lines = [json.loads(line) for line in _lines(ArchivedSegment.objects.get())]
    assert {line["payload"] is None for line in lines if line["key"] == "key-1"} == {True}
    assert len(lines) == 99
    publish(5)
    assert Message.objects.count() == 6


def _lines(record):
    with storages[record.storage].open(record.name) as file:
        return gzip.decompress(file.read()).splitlines()
