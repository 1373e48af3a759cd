"""`consume --processes`: workers in processes of their own, kept going and stopped cleanly."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from django.db import connection, transaction

import outbox
from outbox.models import Cursor, Message, ParkedMessage
from tests.shop.models import Effect
from tests.support.amounts import amount
from tests.support.harness import handled, stored, value
from tests.support.processes import MANAGE, manage, run_process, wait_until
from tests.support.publishing import publish_order, publish_orders
from tests.test_ranges import out_of_order, uncounted

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc"),
]

KILLS = amount(8, 60)
STORM_MESSAGES = amount(100, 300)
"""Published before each kill, so that each hits workers in the middle of a backlog."""
SIX_STARTS = 240
"""Seconds that six processes may take to start, one after the other, on a busy machine."""


def children(process):
    """The processes that a process started and that are alive."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split() if is_alive(int(pid))]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def is_at_work(group):
    """Whether a handler of the group is running: it holds a lock named after the group."""
    locks = "SELECT count(*) FROM pg_locks WHERE objsubid = 2 AND classid::bigint = hashtext(%s)::bigint & 4294967295"
    return value(connection, locks, group) > 0


def working(process, count):
    """Wait until a supervisor has `count` workers that have begun; return their process ids."""
    return wait_until(lambda: len(pids := children(process)) == count and pids)


def end(process, number=signal.SIGTERM, timeout=120):
    """Send a signal, wait for the end; return the exit code and what was written."""
    process.send_signal(number)
    written = "".join(process.communicate(timeout=timeout))
    return process.returncode, written


def test_workers_share_the_ranges_and_stop_when_told(start_command, close_gate):
    """Two processes work at the same time and handle everything once; after SIGTERM both have left,
    with exit code 0."""
    gate = close_gate("doomed")
    publish_orders(400, "gate")
    supervisor = start_command("consume", "doomed", "--processes", "2", "--batch-size", "20")
    workers = working(supervisor, 2)
    wait_until(lambda: len(gate.waiting()) == 2)
    gate.open()
    wait_until(lambda: Effect.objects.count() == 400)
    code, _ = end(supervisor)

    assert code == 0
    assert sorted(handled("doomed")) == stored()
    assert len(set(Effect.objects.values_list("backend", flat=True))) == 2
    assert not any(is_alive(pid) for pid in workers)


def test_a_stop_leaves_no_message_half_done(start_command):
    """SIGTERM in the middle of a backlog ends within the grace; what was done is committed once."""
    publish_orders(3_000)
    supervisor = start_command(
        "consume", "doomed", "--processes", "3", "--grace", "60", "--batch-size", "100"
    )
    wait_until(lambda: Effect.objects.count() > 300)
    code, _ = end(supervisor)
    positions = handled("doomed")

    assert code == 0, "it would be 5 after the grace"
    assert len(positions) == len(set(positions))
    assert uncounted("doomed") == 0
    assert sum(Cursor.objects.values_list("processed", flat=True)) == len(positions)


def test_a_dead_worker_is_started_again(start_command):
    """A worker that is killed while idle has a successor, and no message is blamed."""
    supervisor = start_command("consume", "doomed", "--processes", "2")
    before = working(supervisor, 2)
    publish_orders(10)
    wait_until(lambda: Effect.objects.count() == 10)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in children(supervisor))
    after = working(supervisor, 2)
    publish_orders(10)
    wait_until(lambda: Effect.objects.count() == 20)
    _, written = end(supervisor)

    assert before[1] in after
    assert f"pid {before[0]}) ended: killed by SIGKILL" in written
    assert not Cursor.objects.filter(attempts__gt=0).exists()


@pytest.mark.parametrize(
    ("note", "error"), [("exit", "exited with code 1"), ("segfault", "killed by SIGSEGV")]
)
def test_a_message_that_kills_workers_is_parked(start_command, note, error):
    """A handler that ends its process costs its message the usual tries; all others are handled."""
    others, killer = publish_orders(range(299)), publish_order(note=note)
    supervisor = start_command("consume", "doomed", "--processes", "2")
    parked = wait_until(ParkedMessage.objects.first, SIX_STARTS)
    wait_until(lambda: Effect.objects.count() == 299)
    code, _ = end(supervisor)

    assert code == 0
    assert (parked.position, parked.attempts, parked.reason) == (killer, 5, "failed")
    assert error in parked.error
    assert sorted(handled("doomed")) == others
    assert uncounted("doomed") == 0


def test_of_a_batch_only_the_message_that_kills_is_parked(start_command):
    """After a death in a batch handler its messages come one by one, so the next death names one."""
    before, killer = publish_orders(range(99)), publish_order(99 % 97, "exit")
    after = publish_orders(number % 97 for number in range(100))
    blocked = [
        m.position for m in Message.objects.filter(position__in=after) if m.key == str(99 % 97)
    ]
    supervisor = start_command("consume", "stackers", "--processes", "1")
    wait_until(lambda: Effect.objects.count() == 200 - 1 - len(blocked), SIX_STARTS)
    code, written = end(supervisor)
    failed = ParkedMessage.objects.get(reason="failed")

    assert code == 0
    assert (failed.position, failed.attempts) == (killer, 5)
    assert handled("stackers") == [p for p in [*before, *after] if p not in blocked]
    assert written.count("exited with code 1") <= 6 * 4


def test_a_handler_that_hangs_is_ended_at_its_time_limit(start_command):
    """The worker is killed, the message fails as `timed out`, its successor handles the others."""
    others, hanging = publish_orders(19), publish_order(19, "hang")
    supervisor = start_command("consume", "hasty", "--processes", "2")
    parked = wait_until(ParkedMessage.objects.filter(position=hanging).first, SIX_STARTS)
    wait_until(lambda: Effect.objects.count() == 19)
    code, _ = end(supervisor)

    assert code == 0
    assert "timed out after 1 s" in parked.error
    assert sorted(handled("hasty")) == others


def test_a_handler_that_hangs_in_the_database_is_ended_there_too(start_command, close_gate):
    """When its worker is killed, a statement that waits for a lock ends and gives the range free."""
    gate = close_gate("hasty")
    publish_order(1, "gate")
    supervisor = start_command("consume", "hasty", "--processes", "1")
    [first] = wait_until(gate.waiting)
    wait_until(lambda: first not in gate.waiting())
    wait_until(Cursor.objects.filter(attempts__gt=0).exists)
    gate.open()
    wait_until(Effect.objects.exists)
    code, _ = end(supervisor)

    assert code == 0
    assert Effect.objects.get().attempt > 1


def test_no_worker_outlives_its_parent(start_command):
    """When the supervisor is killed with SIGKILL, its workers leave by themselves."""
    publish_order(note="hang")
    supervisor = start_command("consume", "doomed", "billing", "--processes", "3")
    workers = working(supervisor, 3)
    wait_until(lambda: is_at_work("billing"))
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in workers))

    assert Effect.objects.count() == 0


def test_a_worker_past_its_grace_is_ended(start_command):
    """A handler that does not return is given up when the grace is over: nothing of it is kept."""
    publish_order(note="hang")
    supervisor = start_command("consume", "billing", "--processes", "1", "--grace", "1")
    workers = working(supervisor, 1)
    wait_until(lambda: is_at_work("billing"))
    began = time.monotonic()
    code, _ = end(supervisor)

    assert code == 5
    assert time.monotonic() - began > 0.9
    assert not is_alive(workers[0])
    assert not Cursor.objects.filter(attempts__gt=0).exists()


def test_a_second_signal_ends_all_at_once(start_command):
    """SIGINT twice: no grace; the exit code tells the signal."""
    publish_order(note="hang")
    supervisor = start_command("consume", "billing", "--processes", "2", "--grace", "600")
    workers = working(supervisor, 2)
    wait_until(lambda: is_at_work("billing"))
    supervisor.send_signal(signal.SIGINT)
    wait_until(lambda: len(children(supervisor)) == 1)
    code, _ = end(supervisor, signal.SIGINT)

    assert code == 128 + signal.SIGINT
    assert not any(is_alive(pid) for pid in workers)


def test_a_drain_with_several_processes_ends_when_all_is_done():
    """`--drain --processes` handles the backlog and exits."""
    publish_orders(1000)
    drained = manage("consume", "doomed", "--processes", "3", "--drain", "--batch-size", "50")

    assert drained.returncode == 0, drained.stderr
    assert sorted(handled("doomed")) == stored()


MANY_OPEN_FILES = f"""
import os, resource, runpy, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
read, write = os.pipe()
held = [os.dup(read) for _ in range(1100)]
sys.argv = [{str(MANAGE)!r}, *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_processes_with_more_than_1024_open_files_work(processes):
    """The supervisor and the watch over a worker take descriptors that select() refuses."""
    publish_orders(100)
    drained = run_process("-c", MANY_OPEN_FILES, "consume", "doomed", "--drain", *processes)

    assert drained.returncode == 0, drained.stderr
    assert sorted(handled("doomed")) == stored()
    assert "out of range" not in drained.stderr


def test_a_worker_that_has_handled_enough_makes_room_for_a_new_one(start_command):
    """With `--max-messages` workers are replaced after that many messages, without a pause."""
    publish_orders(400)
    supervisor = start_command(
        "consume", "doomed", "--processes", "1", "--max-messages", "100", "--batch-size", "25"
    )
    wait_until(lambda: Effect.objects.count() == 400, SIX_STARTS)
    code, written = end(supervisor)

    assert code == 0
    assert len(set(Effect.objects.values_list("backend", flat=True))) >= 4
    assert "ended: exited with code 0" in written


def test_the_heartbeat_needs_every_worker(start_command, tmp_path):
    """The file is touched while all workers turn, and no more once one of them hangs."""
    heart = tmp_path / "heart"
    supervisor = start_command(
        "consume",
        "audit",
        "--processes",
        "2",
        "--poll-interval",
        "0.1",
        "--heartbeat-file",
        str(heart),
    )
    wait_until(heart.exists)
    beat = heart.stat().st_mtime_ns
    wait_until(lambda: heart.stat().st_mtime_ns > beat)
    publish_order(note="hang")
    wait_until(lambda: is_at_work("audit"))
    wait_until(lambda: time.time_ns() - touched_after_a_message(heart) > 2 * 10**9, 240)
    last = heart.stat().st_mtime_ns
    beats = [touched_after_a_message(heart) for _ in range(3)]
    supervisor.kill()

    assert beats == [last, last, last]


def touched_after_a_message(heart):
    """When the file was touched last, after a worker has handled another message."""
    done = Effect.objects.count()
    with transaction.atomic():
        outbox.publish_raw("payments", "PaymentTaken", {"order_id": 1})
    wait_until(lambda: Effect.objects.count() > done)
    return heart.stat().st_mtime_ns


def test_a_storm_of_kills_loses_and_doubles_nothing(start_command):
    """Random workers are killed with SIGKILL over a backlog: effects exactly once, keys in order."""
    dice, published = random.Random(5), 0
    supervisor = start_command("consume", "doomed", "--processes", "4", "--batch-size", "50")
    for _ in range(KILLS):
        done = Effect.objects.count()
        published += len(publish_orders(number % 97 for number in range(STORM_MESSAGES)))
        pids = wait_until(lambda: children(supervisor))
        os.kill(dice.choice(pids), signal.SIGKILL)
        wait_until(lambda done=done: Effect.objects.count() >= done + STORM_MESSAGES // 2, 240)
    wait_until(lambda: Effect.objects.count() + ParkedMessage.objects.count() == published, 240)
    code, _ = end(supervisor)

    assert code == 0
    assert not ParkedMessage.objects.exists()
    assert sorted(handled("doomed")) == stored()
    assert out_of_order("doomed") == 0
    assert not Effect.objects.filter(overlapped=True).exists()
    assert uncounted("doomed") == 0
