"""Promise 2: a cursor never gets past what can be read, and nothing but a reset moves it back."""

import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import CommandError, SystemCheckError
from django.db import IntegrityError, connection, transaction
from django.db.models import F

import outbox
from outbox import positions
from outbox.exceptions import ImpossiblePosition, PositionTaken
from outbox.models import Cursor, Message
from outbox.operations import audit, doctor, replay, status
from outbox.testing import drain
from outbox.worker import Worker
from tests.shop.events import OrderPlaced
from tests.support.harness import (
    cursor_of,
    execute,
    exhaust,
    handled,
    insert,
    stored,
    terminate,
    value,
    worker,
)
from tests.support.processes import start_manage, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

EMPTY_LOG = """
    TRUNCATE outbox_message, outbox_cursor, outbox_parked_message RESTART IDENTITY
"""
TRUNCATES = {
    "as the hint says": "TRUNCATE outbox_message, outbox_cursor",
    "with identities": "TRUNCATE outbox_message, outbox_cursor RESTART IDENTITY",
}


@pytest.fixture
def session(connect):
    return connect()


def publish(count):
    """Publish orders, each in a transaction of its own; return the positions."""
    positions_ = []
    for number in range(count):
        with transaction.atomic():
            positions_.append(outbox.publish(OrderPlaced(order_id=number)))
    return positions_


def set_sequence(session, position):
    execute(session, "SELECT setval('outbox_message_position_seq', %s)", position)


@pytest.mark.parametrize("by", [1, 7])
def test_a_cursor_does_not_move_back_within_its_generation(by):
    """The database refuses it, whoever asks; with a new generation, as a reset does, it moves."""
    publish(8)
    drain("billing")
    rows = Cursor.objects.filter(group="billing", channel="orders")
    with pytest.raises(IntegrityError, match="moves back"):
        rows.update(position=F("position") - by)
    with pytest.raises(IntegrityError, match="moves back"):
        rows.update(position=F("position") - by, generation=F("generation") - 1)
    rows.update(position=F("position") - by, generation=F("generation") + 1)

    assert drain("billing") == by


def test_a_cursor_does_not_get_above_the_sequence():
    """An UPDATE is refused with and without a new generation, and so is a new row."""
    [*_, last] = publish(3)
    drain("billing")
    rows = Cursor.objects.filter(group="billing", channel="orders")
    for generation in (0, 1):
        with pytest.raises(IntegrityError, match="cannot be at"):
            rows.update(position=last + 1, generation=F("generation") + generation)
    with pytest.raises(IntegrityError, match="cannot be at"):
        Cursor.objects.create(
            group="other", channel="orders", slot_from=0, slot_to=32767, position=last + 1,
            counted_from=0, max_position=0,
        )  # fmt: skip

    assert rows.get().position == last


def restore_without_the_log(session):
    """Leave what a backup without the log's rows leaves: the cursors, and a sequence that begins."""
    execute(session, "CREATE TABLE kept AS SELECT * FROM outbox_cursor")
    execute(session, EMPTY_LOG)
    execute(session, "INSERT INTO outbox_cursor SELECT * FROM kept")
    execute(session, "DROP TABLE kept")


def test_a_staging_copy_without_the_log_is_refused_until_it_is_mended(session, capsys):
    """Worker, groups, check and doctor name the cursor and the statement; after it every message is
    handled, those that were published before it too."""
    publish(40)
    drain("billing")
    old = len(handled("billing"))
    restore_without_the_log(session)
    published = publish(5)
    with pytest.raises(ImpossiblePosition, match="outbox_mend_positions"):
        Worker(["billing"]).run_once()
    found = [each for each in checks.run_checks(databases=["default"]) if each.id == "outbox.E011"]
    [finding] = [each for each in doctor.run_checks("default") if each.check == "positions"]
    states = {state.group: state for state in status.list_groups()}
    call_command("outbox", "groups")
    said = capsys.readouterr().err
    with pytest.raises(SystemCheckError, match=r"outbox\.E011"):
        call_command("consume", "billing", "--drain")
    with pytest.raises(CommandError, match="is at 10"):
        call_command("outbox", "check", "billing", "--lag", "1000000")
    execute(session, finding.fix)
    drain("billing")
    audited = audit.audit("billing")

    assert [each.hint for each in found] == [positions.MEND]
    assert (finding.level, finding.fix) == ("fail", positions.MEND)
    assert "above the log's last position" in finding.detail
    assert (states["billing"].status, positions.MEND in said) == ("invalid", True)
    assert handled("billing")[old:] == published
    assert audited.passed
    assert positions.find_faults("default") == []


def test_a_sequence_that_stayed_behind_is_refused_until_it_is_mended(session):
    """A logical upgrade brings rows and cursors: publish says why it fails, nothing is handled again
    and what is published after the statement is handled."""
    [first, *_, last] = publish(6)
    drain("billing")
    set_sequence(session, first - 1 + 2)
    with pytest.raises(PositionTaken, match="outbox_mend_positions"):
        publish(1)
    with pytest.raises(ImpossiblePosition, match="below the log's last row"):
        Worker(["billing"]).run_once()
    execute(session, positions.MEND)
    new = publish(1)
    exhaust(worker("billing"))

    assert new == [last + 1]
    assert handled("billing") == stored()


def test_the_cursor_above_an_empty_log_is_mended_by_the_sequence(session):
    """Without a message below the cursor the sequence goes above it, and nothing is handled twice."""
    publish(3)
    drain("billing")
    last = cursor_of("billing").position
    restore_without_the_log(session)
    execute(session, positions.MEND)

    assert publish(1) == [last + 1]
    assert drain("billing") == 1


@pytest.mark.parametrize("truncate", TRUNCATES)
@pytest.mark.parametrize("rows", [1, 3, 30])
def test_a_worker_goes_on_in_a_log_that_was_emptied(session, truncate, rows):
    """It makes its cursors again and forgets what it knew of the old log: each new message is
    handled, whether the new log is shorter than the old one was or longer."""
    a_worker = worker("billing")
    publish(10)
    exhaust(a_worker)
    [insert(session, channel="other") for _ in range(5)]
    exhaust(a_worker)
    old = len(handled("billing"))
    execute(session, TRUNCATES[truncate])
    published = publish(rows)
    exhaust(a_worker)

    assert handled("billing")[old:] == published
    assert audit.audit("billing").passed


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_group_that_starts_at_the_end_reads_a_new_log_from_its_beginning(session, start):
    """It had a cursor, so all that comes after the log was emptied is new to it."""
    from outbox.groups import ConsumerGroup

    seen = []
    group = ConsumerGroup("newcomer", channels=["orders"], start=start)
    group.handler(OrderPlaced)(lambda event, message: seen.append(message.position))
    try:
        a_worker = Worker([group])
        publish(2)
        exhaust(a_worker)
        seen.clear()
        execute(session, TRUNCATES["with identities"])
        published = publish(3)
        exhaust(a_worker)
    finally:
        from outbox import groups

        groups._registry.pop("newcomer", None)

    assert seen == published


def test_what_was_learnt_from_a_session_dies_with_it(session):
    """A crash may take the sequence back: positions that another session saw to be empty are read
    again, also far behind the old horizon."""
    [*_, first] = publish(2)
    a_worker = worker("billing")
    exhaust(a_worker)
    set_sequence(session, first + 500)
    exhaust(a_worker)
    terminate(session, connection.connection.info.backend_pid)
    set_sequence(session, first)
    connection.close()
    [lost] = publish(1)
    set_sequence(session, first + 20_000)
    exhaust(a_worker)

    assert lost == first + 1
    assert handled("billing")[-1] == lost


def test_a_sequence_that_goes_back_is_noticed_in_the_same_session(session):
    """Behind a pooler the session of the worker outlives the server's crash."""
    [*_, first] = publish(2)
    a_worker = worker("billing")
    exhaust(a_worker)
    set_sequence(session, first + 500)
    exhaust(a_worker)
    set_sequence(session, first)
    [lost] = publish(1)
    exhaust(a_worker)

    assert handled("billing")[-1] == lost


def test_a_range_that_is_known_to_be_idle_does_not_move_in_another_log(session):
    """The statement itself looks which log it is about to write about."""
    from outbox.consuming import cursors
    from outbox.consuming.idle_ranges import KnownRange

    publish(2)
    a_worker = worker("billing")
    exhaust(a_worker)
    known, before = a_worker.claims.idle, cursor_of("billing")
    known.move({"orders": before.position}, [], "another log")
    known.add(KnownRange(before.id, before.generation, "orders", 0, 32767), before.position)

    assert cursors.advance_idle(known, "default") == 0


def test_a_reset_clears_what_a_cursor_above_the_log_has_seen(session):
    """Moved by reset instead, its messages are not taken for replayed ones."""
    publish(30)
    drain("billing")
    old = len(handled("billing"))
    restore_without_the_log(session)
    published = publish(2)
    replay.reset("billing", to_earliest=True)
    cursor = cursor_of("billing")
    drain("billing")

    assert cursor.max_position == cursor.position
    assert handled("billing")[old:] == published


def test_cursor_ids_have_64_bits(session):
    """A claim shows in pg_locks by the low 32 bits, whatever the id is."""
    publish(1)
    worker("billing")
    big = 2**32 + 2**31 + 5
    execute(session, 'UPDATE outbox_cursor SET id = %s WHERE "group" = %s', big, "billing")

    assert drain("billing") == 1


def test_messages_keep_coming_to_a_running_worker_after_truncate(session):
    """The same with a real process that sleeps in LISTEN."""
    process = start_manage("consume", "billing", "--poll-interval", "1")
    try:
        publish(5)
        wait_until(lambda: len(handled("billing")) == 5)
        execute(session, TRUNCATES["with identities"])
        published = publish(4)
        wait_until(lambda: len(handled("billing")) == 9)
        alive = process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=120)

    assert alive
    assert handled("billing")[-4:] == published
    assert Message.objects.count() == 4
    assert value(session, "SELECT count(*) FROM outbox_cursor WHERE \"group\" = 'billing'") == 1


def test_a_running_worker_creates_the_cursors_that_were_deleted(session):
    """A DELETE by hand, unlike TRUNCATE, leaves the log as it is: the group begins anew."""
    process = start_manage("consume", "billing", "--poll-interval", "0.5")
    try:
        published = publish(5)
        wait_until(lambda: len(handled("billing")) == 5)
        execute(session, "DELETE FROM outbox_cursor WHERE \"group\" = 'billing'")
        wait_until(lambda: len(handled("billing")) == 10)
        process.terminate()
        _, written = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()

    assert handled("billing") == published + published
    assert "cursor rows of billing were deleted" in written


@pytest.mark.parametrize("is_running", [True, False])
def test_slots_without_a_cursor_are_refused_until_they_are_mended(
    session, declare_group, is_running
):
    """Messages there would never be handled: a worker ends, and the doctor says what to do."""
    group = declare_group("crew", "orders", parallelism=4, start="latest")
    turner = Worker([group])
    turner.register()
    if is_running:
        assert turner.run_once() is None
    execute(session, "DELETE FROM outbox_cursor WHERE \"group\" = 'crew' AND slot_from = 8192")
    with pytest.raises(ImpossiblePosition, match="no cursor for 8192 slots of channel 'orders'"):
        (turner if is_running else Worker([group])).run(max_messages=1)
    (found,) = (each for each in doctor.run_checks() if each.check == "positions")
    execute(session, found.fix)
    Worker([group]).register()

    assert found.level == "fail"
    assert value(session, "SELECT count(*) FROM outbox_cursor WHERE \"group\" = 'crew'") == 4
