"""Groups that have not read hold retention back; workers stand aside; nothing unread goes."""

from __future__ import annotations

import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from outbox.exceptions import ArchiveBroken
from outbox.models import Cursor, Message
from outbox.operations import doctor, pauses, replay, retention_status, status
from outbox.retention import log_lock, maintenance, removals, rules
from outbox.worker import Worker
from tests.retention.conftest import run
from tests.retention.test_maintenance import publish
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def aged(small_log, settings):
    """350 messages of two days ago, of which a rule keeps one day."""
    settings.OUTBOX = {"KEEP": "1 day"}
    publish(350, days=2)
    return small_log


def cursor(group, position):
    Cursor.objects.create(
        group=group,
        channel="goods",
        slot_from=0,
        slot_to=32767,
        position=position,
        counted_from=position,
        max_position=position,
    )


def waiting_for_claims():
    return run("SELECT count(*) FROM pg_locks WHERE NOT granted AND classid = 20294")[0][0]


def positions():
    return list(Message.objects.order_by("position").values_list("position", flat=True))


def test_new_claims_stand_aside_for_maintenance_and_open_ones_end_first(
    aged, declare_group, background
):
    """A worker in a batch delays the removal, another one waits for it, and both lose nothing."""
    group = declare_group("slow", "goods")
    inside, go_on, handled = threading.Event(), threading.Event(), []

    @group.handler("Made")
    def handle(event, message):
        handled.append(message.position)
        inside.set()
        assert go_on.wait(120)

    def work():
        worker = Worker(groups=[group], batch_size=350)
        worker.register()
        return worker.run_once()

    first = background(work)
    assert inside.wait(120)
    maintained = background(maintenance.maintain, "default")
    wait_until(waiting_for_claims)
    second = background(work)
    wait_until(lambda: waiting_for_claims() > 1)
    go_on.set()

    first.result()
    second.result()
    maintained.result()
    assert handled == list(range(1, 351))
    assert positions()[0] in (1, 300)
    assert maintenance.maintain("default").held == []


def test_a_paused_group_holds_retention_back(aged, declare_group):
    """What a paused group has not read stays, and `groups` names it."""
    declare_group("slow", "goods")
    cursor("slow", 0)
    pauses.pause("slow", reason="")

    done = maintenance.maintain("default")

    assert done.dropped == []
    assert [(hold.group, hold.segments) for hold in done.held] == [("slow", 3)]


def test_a_dead_group_holds_retention_back_until_it_is_forgotten(aged, capsys):
    """`groups` and `doctor` say who and since when; forgetting it lets the segments go."""
    cursor("dead", 120)
    (hold,) = maintenance.maintain("default").held

    call_command("outbox", "groups")

    assert f"Retention is held back: {hold}." in capsys.readouterr().err
    (found,) = (each for each in doctor.run_checks() if each.check == "retention")
    assert (found.level, found.detail) == ("warn", str(hold))
    call_command("outbox", "forget", "dead", "--execute")
    assert maintenance.maintain("default").dropped == ["outbox_message_100", "outbox_message_200"]
    assert retention_status.see().holds == []


def test_a_reset_into_a_range_that_is_to_be_dropped_keeps_it(aged, declare_group, background):
    """The removal waits for the open reset, sees the cursor, and leaves the segments."""
    declare_group("late", "goods")
    cursor("late", 350)
    with transaction.atomic():
        replay.reset("late", position=50)
        maintained = background(maintenance.maintain, "default")
        wait_until(waiting_for_claims)

    assert maintained.result().dropped == []
    assert positions()[0] == 1
    assert Cursor.objects.get().position == 50


def test_a_reset_during_a_removal_waits_and_is_clamped(aged, declare_group, background):
    """It reads what was removed only when the removal has ended: no reader meets a gap."""
    declare_group("late", "goods")
    cursor("late", 350)
    removing, go_on = threading.Event(), threading.Event()

    def slowly():
        removing.set()
        assert go_on.wait(120)
        run("SELECT outbox_drop_segment_v1(1)")
        run("INSERT INTO outbox_channel_retention VALUES ('goods', 99)")

    removal = background(log_lock.run, slowly, "default")
    assert removing.wait(120)
    moved = background(lambda: replay.reset("late", position=0))
    wait_until(waiting_for_claims)
    go_on.set()
    removal.result()

    (move,) = moved.result()
    assert (move.new, move.clamped) == (99, True)


def test_a_group_created_during_a_removal_begins_behind_it(aged, declare_group, background):
    """Its cursor is made when the removal has ended."""
    group = declare_group("new", "goods")
    removing, go_on = threading.Event(), threading.Event()

    def slowly():
        removing.set()
        assert go_on.wait(120)
        run("INSERT INTO outbox_channel_retention VALUES ('goods', 99)")

    removal = background(log_lock.run, slowly, "default")
    assert removing.wait(120)
    made = background(lambda: Worker(groups=[group]).register())
    wait_until(waiting_for_claims)
    go_on.set()
    removal.result()
    made.result()

    assert Cursor.objects.get().position == 99


def test_a_cursor_before_the_first_retained_message_has_a_state_of_its_own(aged, declare_group):
    """`behind retention` in groups and describe; check ends with 3; the doctor fails."""
    maintenance.maintain("default")
    declare_group("lost", "goods")
    cursor("lost", 10)

    (state,) = status.list_groups()

    assert state.status == "behind retention"
    assert "up to position 299 were removed" in state.why
    assert status.describe("lost").ranges[0].status == "behind retention"
    with pytest.raises(CommandError) as caught:
        call_command("outbox", "check", "lost", "--lag", "1000000")
    assert caught.value.returncode == 3
    (found,) = (each for each in doctor.run_checks() if each.check == "retention")
    assert found.level == "fail"
    replay.reset("lost", to_earliest=True)
    assert status.list_groups()[0].status != "behind retention"


def test_a_failed_maintenance_shows_until_one_succeeds(aged, settings, capsys):
    """An archive that cannot be written removes nothing: a note in groups, a failure in doctor."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    (aged / "outbox").write_text("a file where a folder should be")
    with pytest.raises(ArchiveBroken):
        maintenance.maintain("default")

    call_command("outbox", "groups")

    assert "Maintenance of the log failed: " in capsys.readouterr().err
    (found,) = (each for each in doctor.run_checks() if each.check == "retention")
    assert found.level == "fail"
    (aged / "outbox").unlink()
    maintenance.maintain("default")
    assert retention_status.see().error == ""


def test_a_transaction_that_stays_open_delays_the_removal_and_no_publisher(aged, connect):
    """A reader holds the log; publishers go on while maintenance waits, gives up after the seconds
    that it was given, and comes again."""
    reader = connect().cursor()
    reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM outbox_message LIMIT 1")
    with pytest.raises(log_lock.LogIsBusy, match="in its transaction") as busy:
        maintenance.maintain("default", give_up=0.5)

    publish(1)

    assert busy.value.seconds == 0.5
    assert positions()[0] == 1
    reader.execute("COMMIT")
    assert len(maintenance.maintain("default").dropped) == 3


def test_messages_without_a_key_go_after_the_duration_beside_latest(small_log, settings):
    """`latest 7 days` keeps the newest message of each key, and without a key for seven days."""
    settings.OUTBOX = {"CHANNELS": {"prices": {"keep": "latest 7 days"}}}
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO outbox_message (channel, key, type, payload, created_at) "
            "SELECT 'prices', CASE WHEN n > 90 THEN 'k' || n END, 'Made', '{}', "
            "clock_timestamp() - interval '8 days' FROM generate_series(1, 99) AS n"
        )
    publish(5)

    assert maintenance.maintain("default").compacted == ["outbox_message_1"]
    assert positions()[:9] == list(range(91, 100))


def test_streams_are_kept_for_ever_and_a_rule_for_them_is_an_error(settings):
    """E026 names the channel; maintenance follows no such rule."""
    from outbox.retention import rules

    settings.OUTBOX = {"KEEP": "1 day", "CHANNELS": {"accounts": {"keep": "90 days"}}}

    (found,) = rules.check_rules(None)

    assert found.id == "outbox.E026"
    assert "accounts" in found.msg
    assert rules.current().of("accounts") == rules.FOREVER


def test_a_reader_that_comes_back_before_the_removal_keeps_its_messages(aged):
    """Between the plan and the removal a group is reset: the readers are read again under the lock
    of the log, and nothing is removed."""
    cursor("readers", 350)
    planned = next(removals.removals("default", rules.current()))
    replay.reset("readers", position=0)
    maintenance.remove(planned, "default", maintenance.Done())
    after_reset = positions()
    replay.reset("readers", position=350)
    maintenance.remove(planned, "default", maintenance.Done())

    assert after_reset == list(range(1, 351))
    assert positions()[0] > 1
