"""`manage.py consume`: one worker in the foreground, its options, its ends and its exit codes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from outbox import groups
from outbox.consuming import cursors, in_flight
from outbox.consuming.in_flight import InFlight
from outbox.models import Cursor, ParkedMessage
from outbox.processes import heartbeat
from tests.shop.models import Effect, Fault
from tests.support.harness import execute, handled, stored, worker
from tests.support.processes import ROOT, manage, start_manage, start_process, wait_until
from tests.support.publishing import publish_orders
from tests.test_supervisor import is_at_work

pytestmark = pytest.mark.django_db(transaction=True)

DEBUG_SETTINGS = "from tests.settings import *\nDEBUG = True\n"


def end(process, number=signal.SIGTERM):
    """Send a signal, wait for the end; return the exit code and what was written."""
    process.send_signal(number)
    written = "".join(process.communicate(timeout=120))
    return process.returncode, written


def session_names():
    """The names of the workers' sessions in this database."""
    names = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
    names += " AND application_name LIKE 'outbox:%%'"
    return [name for (name,) in execute(connection, names)]


def test_an_unknown_group_is_refused_with_the_nearest():
    """A wrong group on the command line: exit code 2, the known groups and a suggestion."""
    refused = manage("consume", "biling")

    assert refused.returncode == 2
    assert "Did you mean 'billing'?" in refused.stderr
    assert "Known groups: audit, billing" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--drain", "--reload"], "leave out --drain"),
        (["--processes", "2", "--state-file", "x"], "--state-file is for one process"),
        (["--processes", "0"], "0 is not a whole number from 1 to"),
        (["--batch-size", "many"], "many is not a whole number from 1 to"),
        (["--grace", "-1"], "-1 is not a number of seconds above 0"),
        (["--poll-interval", "nan"], "nan is not a number of seconds above 0"),
        (["--max-outage", "inf"], "inf is not a number of seconds above 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, reason):
    """Options that contradict each other, or make no sense, end with exit code 2 and the reason."""
    refused = manage("consume", "billing", *arguments)

    assert refused.returncode == 2
    assert reason in refused.stderr


def test_processes_and_reload_are_for_the_command_line():
    """From `call_command` no other process can be started with the same arguments."""
    with pytest.raises(CommandError, match="use them there"):
        call_command("consume", "billing", processes=2)


def test_a_drain_handles_what_is_pending():
    """`--drain` ends when nothing is left, with exit code 0 and the number of messages."""
    publish_orders(30)
    drained = manage("consume", "billing", "shipping", "--drain")

    assert drained.returncode == 0
    assert "60 messages handled" in drained.stderr
    assert handled("billing") == handled("shipping") == stored()


def test_sigterm_lets_the_batch_in_hand_finish(start_command, close_gate):
    """The first signal ends the worker after its batch, which is kept."""
    gate = close_gate("billing")
    publish_orders(1, "gate")
    process = start_command("consume", "billing")
    wait_until(gate.waiting)
    process.send_signal(signal.SIGTERM)
    gate.open()
    process.communicate(timeout=120)

    assert process.returncode == 0
    assert handled("billing") == stored()


def test_past_the_grace_the_batch_is_rolled_back(start_command, close_gate):
    """A worker that does not finish in time leaves with exit code 5 and keeps nothing of the batch."""
    gate = close_gate("billing")
    publish_orders(2, "gate")
    process = start_command("consume", "billing", "--grace", "0.5")
    wait_until(gate.waiting)
    code, written = end(process)
    gate.open()

    assert code == 5
    assert "the grace period has ended" in written
    assert handled("billing") == []


def test_the_second_signal_ends_at_once(start_command, close_gate):
    """A worker that is deep in a database call leaves at the second signal, with its number."""
    gate = close_gate("billing")
    publish_orders(1, "gate")
    process = start_command("consume", "billing", "--grace", "600")
    [pid] = wait_until(gate.waiting)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not signal_is_pending(process.pid, signal.SIGINT))
    code, _ = end(process, signal.SIGINT)
    wait_until(lambda: pid not in gate.waiting())

    assert code == 128 + signal.SIGINT
    assert handled("billing") == []


def signal_is_pending(pid, number):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [pending] = [line.split()[1] for line in status if line.startswith("ShdPnd")]
    return bool(int(pending, 16) & (1 << (number - 1)))


def test_max_messages_ends_the_worker():
    """`--max-messages` ends it after the batch in which that many were reached, with exit code 0."""
    publish_orders(50)
    done = manage("consume", "billing", "--max-messages", "20", "--batch-size", "10")

    assert done.returncode == 0
    assert handled("billing") == stored()[:20]


def test_max_memory_ends_the_worker_with_its_own_code():
    """A process above the limit ends, between two batches, with exit code 4: start it again."""
    publish_orders(1)
    done = manage("consume", "billing", "--max-memory", "1")

    assert done.returncode == 4
    assert 10 < heartbeat.resident_megabytes() < 10_000


def test_the_session_says_who_works(start_command):
    """The application name has the groups and the process, cut to what the server keeps."""
    process = start_command("consume", "billing", "shipping")
    own = f":{process.pid}"
    [name] = wait_until(lambda: [each for each in session_names() if each.endswith(own)])
    end(process)
    long_name = cursors.session_name(group.name for group in groups.all_groups())

    assert name.startswith("outbox:billing,shipping ")
    assert len(long_name.encode()) <= 63
    assert "... " in long_name


def test_an_idle_worker_keeps_its_heartbeat_fresh(start_command, tmp_path):
    """The file is touched while the loop turns, also without messages, and not while a handler hangs."""
    heart = tmp_path / "heart"
    process = start_command(
        "consume", "billing", "--heartbeat-file", str(heart), "--poll-interval", "0.2"
    )
    wait_until(heart.exists)
    beat = heart.stat().st_mtime_ns
    wait_until(lambda: heart.stat().st_mtime_ns > beat)
    publish_orders(1, "hang")
    wait_until(lambda: is_at_work("billing"))
    last = heart.stat().st_mtime_ns
    end(process, signal.SIGKILL)

    assert heart.stat().st_mtime_ns == last


def test_a_lone_worker_blames_what_killed_its_predecessor(tmp_path):
    """With a state file the next process counts a failure of the message that ended the last one."""
    *others, killer = [*publish_orders(5), *publish_orders(1, "exit")]
    state, codes = str(tmp_path / "state"), []
    while not ParkedMessage.objects.exists() and len(codes) < 12:
        Cursor.objects.update(retry_at=None)
        drained = manage("consume", "doomed", "--drain", "--batch-size", "3", "--state-file", state)
        codes.append(drained.returncode)
    parked = ParkedMessage.objects.get()

    assert codes.count(1) == 5
    assert codes[-1] == 0
    assert (parked.position, parked.attempts) == (killer, 5)
    assert sorted(handled("doomed")) == [p for p in stored() if p != killer and p in others]


def test_a_worker_that_is_told_to_leave_blames_nothing(start_command, tmp_path):
    """The end of the grace is no failure of the message in hand."""
    state = tmp_path / "state"
    publish_orders(1, "hang")
    process = start_command("consume", "billing", "--grace", "0.3", "--state-file", str(state))
    wait_until(lambda: is_at_work("billing"))
    code, _ = end(process)
    fd = os.open(state, os.O_RDWR)

    assert code == 5
    assert InFlight(fd).read().position == 0


def test_two_workers_cannot_share_a_state_file(start_command, tmp_path):
    """The second one is refused with exit code 2."""
    state = str(tmp_path / "state")
    start_command("consume", "billing", "--state-file", state)
    wait_until(Cursor.objects.filter(group="billing").exists)
    refused = manage("consume", "shipping", "--state-file", state)

    assert refused.returncode == 2
    assert "give each its own --state-file" in refused.stderr


def test_what_is_in_hand_is_seen_by_another_process(background, close_gate):
    """While a handler runs the shared numbers name its message; afterwards none."""
    fd = in_flight.new_file()
    try:
        seen = in_flight.record_to(os.dup(fd))
        gate = close_gate("billing")
        [*_, position] = publish_orders(3), *publish_orders(1, "gate")
        claim = background(worker("billing").run_once)
        wait_until(gate.waiting)
        meanwhile = InFlight(fd).read()
        gate.open()
        claim.result()
    finally:
        in_flight._own = None

    assert meanwhile.position == position
    assert meanwhile.cursor == Cursor.objects.get().id
    assert seen.read().position == 0


def test_logs_carry_their_facts(caplog):
    """A failure is logged with group, channel and position as attributes of the record."""
    from tests.shop.models import Fault

    Fault.objects.create(group="billing")
    [position] = publish_orders(1, "fragile")
    worker("billing").run_once()
    [record] = [each for each in caplog.records if getattr(each, "position", None) == position]

    assert (record.group, record.channel) == ("billing", "orders")


def test_the_worker_starts_again_when_code_changes(tmp_path):
    """In DEBUG a changed module restarts the worker, which goes on with the new code."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "debug_settings.py").write_text(DEBUG_SETTINGS)
    watched = project / "watched.py"
    watched.write_text("")
    (project / "manage.py").write_text(
        "import sys, watched\nfrom django.core.management import execute_from_command_line\n"
        "execute_from_command_line(sys.argv)\n"
    )
    process = start_process(
        project / "manage.py",
        "consume",
        "billing",
        DJANGO_SETTINGS_MODULE="debug_settings",
        PYTHONPATH=f"{ROOT}{os.pathsep}{project}",
    )
    try:
        publish_orders(1)
        wait_until(lambda: Effect.objects.count() == 1)
        wait_until(lambda: len(session_names()) == 1)  # one of a test before may just be ending
        [before] = session_names()
        wait_until(lambda: watched.touch() or before not in session_names())
        publish_orders(1)
        wait_until(lambda: Effect.objects.count() == 2)
    finally:
        _, written = end(process)

    assert "changed, reloading" in written
    assert handled("billing") == stored()


def test_a_drain_under_a_steady_stream_ends():
    """`drain` handles what was published before it began, while each turn brings another message."""
    publish_orders(3)
    last = stored()[-1]
    drainer = worker("billing", batch_size=1)
    drainer.each_turn = lambda: publish_orders(1)
    moved = drainer.drain()

    assert moved == 3
    assert Cursor.objects.get(group="billing").position == last
    assert len(stored()) > 6


def test_a_drain_tells_what_it_left_behind_a_failed_message():
    """Exit code 3; a line names group, channel, position, attempt, error and how much is left."""
    Fault.objects.create(group="shipping")
    first, *_ = publish_orders(3, notes="fragile")
    drained = manage("consume", "shipping", "--drain")

    assert drained.returncode == 3
    assert (
        f"group shipping, channel orders: the message at {first} failed (attempt 1: "
        in drained.stderr
    )
    assert "3 messages are left" in drained.stderr


def test_a_worker_logs_its_start_and_its_stop():
    """At INFO: groups, channels, database and process; at the end how many messages were handled."""
    publish_orders(2)
    process = start_manage("consume", "billing", "--drain")
    errors = process.communicate(timeout=120)[1]

    assert (
        f"worker started: groups billing, channels orders, database 'default', pid {process.pid}"
        in errors
    )
    assert "worker stopped: 2 messages handled" in errors
