"""Promise 4: a handler's writes and the cursor's advance are one transaction."""

import os
import signal

import pytest
from django.db import DatabaseError, connection, transaction

import outbox
from tests.shop.consumers import Broken
from tests.shop.events import OrderPlaced
from tests.shop.models import Effect, Fault
from tests.support.amounts import amount
from tests.support.harness import (
    cursor_of,
    drain,
    due_now,
    execute,
    exhaust,
    handled,
    insert,
    stored,
    terminate,
    worker,
)
from tests.support.processes import wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def work_until_cut(*names):
    """Run a worker whose session will be cut; whether that shows as an error is not what is
    tested."""
    try:
        return worker(*names).run_once()
    except (DatabaseError, outbox.OutboxError):
        return None


def test_each_message_is_handled_once():
    """Every message is handled, and asking again handles nothing."""
    positions = publish_orders(notes=["", "", ""])
    counts = [drain("billing"), drain("billing")]

    assert counts == [3, 0]
    assert handled("billing") == positions


def test_effects_and_cursor_become_visible_together(background, close_gate):
    """In the middle of a batch another session sees neither the effects nor the cursor's advance,
    then it sees both."""
    drain("billing")
    before = cursor_of("billing").position
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "", "gate", ""])
    claim = background(worker("billing").run_once)
    wait_until(gate.waiting)
    seen_in_the_middle = handled("billing"), cursor_of("billing").position
    gate.open()
    advanced = claim.result()
    seen_after_it, reached = handled("billing"), cursor_of("billing").position

    assert seen_in_the_middle == ([], before)
    assert seen_after_it == positions[:advanced]
    assert reached >= seen_after_it[-1] >= positions[2]


def test_a_failing_handler_leaves_no_effect():
    """What a handler wrote before it failed is undone, and the cursor says which failure it waits
    for."""
    Fault.objects.create(group="billing")
    publish_orders(notes=["fragile"])
    drain("billing")
    cursor = cursor_of("billing")

    assert handled("billing") == []
    assert cursor.attempts == 1
    assert cursor.retry_at is not None
    assert Broken.__name__ in cursor.last_error
    assert "billing fails on" in cursor.last_error


def test_messages_before_a_failing_one_are_handled_once():
    """When message k of a batch fails, the messages before it are done, each once, and none after
    it is."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["", "", "fragile", "", ""])
    drain("billing")
    handled_meanwhile, reached = handled("billing"), cursor_of("billing").position
    Fault.objects.all().delete()
    due_now("billing")
    drain("billing")

    assert handled_meanwhile == positions[:2]
    assert positions[1] <= reached < positions[2]
    assert handled("billing") == positions


def test_a_message_that_fails_again_and_again_is_handled_once_in_the_end():
    """Each failed attempt is undone whole; the attempt that succeeds is the only one that left
    anything."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["", "fragile", ""])
    attempts = []
    for _ in range(3):
        drain("billing")
        attempts.append(cursor_of("billing").attempts)
        due_now("billing")
    Fault.objects.all().delete()
    drain("billing")

    assert attempts == [1, 2, 3]
    assert handled("billing") == positions
    assert Effect.objects.get(position=positions[1]).attempt == 4
    assert cursor_of("billing").attempts == 0


def test_two_failing_messages_of_a_batch_do_not_double_their_neighbours():
    """The prefix rule holds again and again within one batch."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["", "fragile", "", "", "fragile", ""])
    for _ in range(2):
        drain("billing")
        due_now("billing")
    Fault.objects.all().delete()
    drain("billing")

    assert handled("billing") == positions


def test_a_swallowed_database_error_counts_as_a_failure():
    """A handler that hides an error that broke its transaction has failed: nothing is half done,
    nothing is lost."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["", "swallow", ""])
    drain("billing")
    handled_meanwhile, cursor = handled("billing"), cursor_of("billing")
    Fault.objects.all().delete()
    due_now("billing")
    drain("billing")

    assert handled_meanwhile == positions[:1]
    assert cursor.attempts == 1
    assert handled("billing") == positions


def test_a_worker_cut_off_in_its_batch_has_done_nothing(background, close_gate, observer):
    """When the server ends a worker's session in the middle of a batch, the next worker handles the
    batch once."""
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "", "gate", ""])
    victim = background(work_until_cut, "billing")
    (pid,) = wait_until(gate.waiting)
    terminate(observer, pid)
    wait_until(lambda: not gate.waiting())
    victim.result()
    seen_after_the_cut = handled("billing")
    gate.open()
    exhaust(worker("billing"))

    assert seen_after_the_cut == []
    assert handled("billing") == positions


def test_a_worker_process_killed_in_its_batch_has_done_nothing(start_command, close_gate, observer):
    """SIGKILL in the middle of a batch: no effect stays, no lock stays, and the next worker handles
    the batch once."""
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "", "gate", ""])
    process = start_command("consume", "billing")
    (pid,) = wait_until(gate.waiting)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gate.open()
    wait_until(lambda: not execute(observer, "SELECT FROM pg_stat_activity WHERE pid = %s", pid))
    seen_after_the_kill = handled("billing")
    drain("billing")

    assert seen_after_the_kill == []
    assert handled("billing") == positions


BACKLOG = amount(1_000, 3_000)
"""A hundred batches, so that each of three kills hits a worker in the middle of the backlog."""


def test_competing_worker_processes_survive_kill_after_kill(start_command, observer):
    """However often one of two workers is killed at work, each message is handled once."""
    with transaction.atomic():
        positions = list(
            outbox.publish_many([OrderPlaced(order_id=number % 7) for number in range(BACKLOG)])
        )
    survivor = start_command("consume", "crew", "--batch-size", "10")
    for done in (BACKLOG // 20, BACKLOG // 4, BACKLOG // 2):
        victim = start_command("consume", "crew", "--batch-size", "10")
        wait_until(lambda done=done: Effect.objects.count() >= done)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    wait_until(lambda: Effect.objects.count() >= len(positions), timeout=120)
    survivor.terminate()
    survivor.wait(120)
    drain("crew")

    assert sorted(handled("crew")) == positions
    assert not Effect.objects.filter(overlapped=True).exists()


def test_a_second_worker_leaves_a_claimed_cursor_alone(background, close_gate):
    """While one worker holds the claim, another finds nothing to do; it neither waits nor handles a
    message twice."""
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "gate", ""])
    first = background(worker("billing").run_once)
    wait_until(gate.waiting)
    second = worker("billing").run_once()
    gate.open()
    first.result()
    exhaust(worker("billing"))

    assert second is None
    assert handled("billing") == positions


def test_a_commit_whose_answer_is_lost_is_not_repeated(
    background, connect, unconfirmed_commits, observer
):
    """The batch is committed, but the worker's session dies before it hears so: the batch is not
    handled again."""
    drain("billing")
    positions = publish_orders(notes=["", "", ""])

    def work_unconfirmed():
        unconfirmed_commits.choose(connection)
        return work_until_cut("billing")

    others = set(unconfirmed_commits.waiting())
    victim = background(work_unconfirmed)
    (pid,) = wait_until(lambda: set(unconfirmed_commits.waiting()) - others)
    terminate(observer, pid)
    victim.result()
    unconfirmed_commits.end()
    seen_after_the_cut = handled("billing")
    exhaust(worker("billing"))

    assert seen_after_the_cut == positions
    assert handled("billing") == positions
    assert stored() == positions


def test_a_handler_sees_each_message_of_a_raw_insert_once(connect):
    """Messages of other programs are consumed under the same promise."""
    session = connect()
    positions = [insert(session, order_id=number) for number in range(3)]
    drain("billing")
    drain("billing")

    assert handled("billing") == positions
