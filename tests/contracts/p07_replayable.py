"""Promise 7: a cursor can be moved to any retained position while workers run."""

import pytest
from django.core.management import call_command

from outbox.models import Cursor
from tests.support.harness import cursor_of, drain, execute, handled, insert, stored, worker
from tests.support.processes import wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def reset(group, *arguments):
    call_command("outbox", "reset", group, *[str(argument) for argument in arguments])


def test_reset_to_earliest_handles_everything_again():
    """After a reset to the earliest position the group handles every message again, in order."""
    positions = publish_orders(notes=["", "", ""])
    drain("billing")
    reset("billing", "--to-earliest", "--execute")
    drain("billing")

    assert handled("billing") == positions * 2


def test_reset_to_latest_skips_what_is_pending():
    """After a reset to the latest position only later messages are handled."""
    drain("billing")
    publish_orders(notes=["", ""])
    reset("billing", "--to-latest", "--execute")
    drain("billing")
    later = publish_orders(notes=[""])
    drain("billing")

    assert handled("billing") == later


def test_reset_to_latest_passes_no_open_publisher(connect):
    """The latest position is the horizon: a message that is still being published is handled when
    it appears."""
    drain("billing")
    open_publisher, publisher = connect(), connect()
    insert(publisher)
    execute(open_publisher, "BEGIN")
    held = insert(open_publisher)
    passed = insert(publisher)
    reset("billing", "--to-latest", "--execute")
    execute(open_publisher, "COMMIT")
    drain("billing")

    assert handled("billing") == [held, passed]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_reset_to_a_position_handles_what_comes_after_it(index):
    """The next message handled is the first with a greater position."""
    positions = publish_orders(notes=["", "", ""])
    drain("billing")
    reset("billing", "--to-position", positions[index], "--execute")
    drain("billing")

    assert handled("billing") == positions + positions[index + 1 :]


def test_reset_forward_skips_what_lies_between():
    """A reset may also move a cursor forward."""
    drain("billing")
    positions = publish_orders(notes=["", "", ""])
    reset("billing", "--to-position", positions[1], "--execute")
    drain("billing")

    assert handled("billing") == positions[2:]


@pytest.mark.parametrize("group", ["billing", "crew"])
def test_a_group_that_never_ran_starts_where_it_was_reset_to(group):
    """A reset before the first worker's start counts: what it skipped is not handled."""
    publish_orders(notes=["", ""])
    reset(group, "--to-latest", "--execute")
    later = publish_orders(notes=[""])
    drain(group)

    assert handled(group) == later


def test_without_execute_nothing_is_moved():
    """A reset is a dry run unless `--execute` is given."""
    positions = publish_orders(notes=["", "", ""])
    drain("billing")
    before = list(Cursor.objects.values())
    reset("billing", "--to-earliest")
    unchanged = list(Cursor.objects.values()) == before
    drain("billing")

    assert unchanged
    assert handled("billing") == positions


def test_a_reset_moves_every_range_of_the_group():
    """A group with parallel ranges handles everything again, each message once more."""
    positions = publish_orders(notes=["", "", "", "", "", ""])
    drain("crew")
    reset("crew", "--to-earliest", "--execute")
    drain("crew")

    assert sorted(handled("crew")) == sorted(positions * 2)


def test_a_reset_waits_for_the_open_batch_and_is_not_overwritten_by_it(
    background, close_gate, observer
):
    """A reset during a batch takes effect after it: the batch's advance does not undo the reset."""
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "gate", ""])
    claim = background(worker("billing").run_once)
    (consumer,) = wait_until(gate.waiting)
    resetting = background(reset, "billing", "--to-earliest", "--execute")
    wait_until(
        lambda: execute(
            observer,
            "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
            consumer,
        )
    )
    gate.open()
    claim.result()
    resetting.result()
    reached, in_the_batch = cursor_of("billing").position, handled("billing")
    drain("billing")

    assert reached < positions[0]
    assert in_the_batch == positions[: len(in_the_batch)] != []
    assert handled("billing") == in_the_batch + positions


def test_a_reset_is_seen_by_a_worker_that_goes_on():
    """A worker that runs on handles the replayed messages, whatever it remembers of the horizon."""
    running = worker("billing", batch_size=1)
    positions = publish_orders(notes=["", "", ""])
    running.run_once()
    running.run_once()
    reset("billing", "--to-earliest", "--execute")
    counts = [running.run_once() for _ in range(4)]

    assert counts == [1, 1, 1, None]
    assert handled("billing") == positions[:2] + positions


def test_a_replay_changes_nothing_in_the_log():
    """Replaying reads the log and leaves it as it is."""
    positions = publish_orders(notes=["", "", ""])
    drain("billing")
    reset("billing", "--to-earliest", "--execute")
    drain("billing")

    assert stored() == positions


def test_a_replay_counts_anew():
    """`processed` counts the messages since the last reset, so that it can be held against the
    log."""
    publish_orders(notes=["", "", ""])
    drain("billing")
    reset("billing", "--to-earliest", "--execute")
    drain("billing")

    assert cursor_of("billing").processed == 3
