"""What claims and looks at the cursors cost while a session holds an old snapshot (a dump, a report)."""

from __future__ import annotations

import time
from collections.abc import Callable

import outbox
from benchmarks import harness
from benchmarks.consume import load
from benchmarks.events import CHANNEL, OrderPlaced
from outbox import message_log
from outbox.consuming import cursors
from outbox.consuming.idle_ranges import IdleRanges
from outbox.operations import status
from outbox.worker import Worker

USING = "default"
TURNS = 5
AGE = """
    DO $$ BEGIN
        FOR batch IN 1..{batches} LOOP
            UPDATE outbox_cursor SET last_commit_at = clock_timestamp() WHERE "group" = 'watched';
            COMMIT;
        END LOOP;
    END $$
"""
"""Each batch leaves a dead version of its cursor row; so does each of these transactions."""

watched = outbox.ConsumerGroup("watched", channels=[CHANNEL])


@watched.handler(OrderPlaced)
def do_nothing(event: OrderPlaced, message: outbox.Message) -> None:
    """Cost nothing: what is left is the outbox."""


def run(*, quick: bool) -> None:
    """Print the cost of a batch and of the looks before and beside a held snapshot."""
    batches, count = (10_000, 100) if quick else (100_000, 400)
    load((2 * TURNS + 2) * count)
    harness.execute("ANALYZE outbox_message")
    worker = Worker([watched], batch_size=1)
    last = message_log.last_position(USING)
    state = message_log.LogState("", last, {CHANNEL: last})

    def claim() -> None:
        assert worker.run_once(), "the backlog is used up"

    actions: dict[str, tuple[Callable[[], object], int]] = {
        "a batch of one message": (claim, count),
        "when to look again": (
            lambda: cursors.next_look([watched], state, IdleRanges(), USING),
            count,
        ),
        "wait_for, a look": (lambda: outbox.wait_for(watched, 1, timeout=0), count),
        "status of all groups": (status.list_groups, 5),
    }
    for _ in range(count):
        claim()
    alone = {name: _milliseconds(*action) for name, action in actions.items()}
    session = harness.open_session()
    with session.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM outbox_cursor")
    harness.execute(AGE.format(batches=batches))
    beside = {name: _milliseconds(*action) for name, action in actions.items()}
    session.close()
    goals = {"a batch of one message": 2.0}
    harness.show(
        f"Claims beside a held snapshot, after {batches:,} batches",
        ["", "alone", "beside it", "ratio", "goal"],
        [
            [
                name,
                f"{alone[name]:.2f} ms",
                f"{beside[name]:.2f} ms",
                *harness.against(goals.get(name), beside[name] / alone[name], most=True),
            ]
            for name in actions
        ],
        f" The row versions of {batches:,} batches are made by as many small transactions. The least "
        f"mean of {TURNS} turns.",
    )


def _milliseconds(action: Callable[[], object], count: int) -> float:
    """Return the least mean time of an action, over some turns: other work on the machine adds only."""
    means = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(count):
            action()
        means.append((time.perf_counter() - began) / count)
    return 1000 * min(means)
