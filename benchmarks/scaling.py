"""More processes and ranges, and what a claim costs with many ranges and a long log."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from django.db import transaction

import outbox
from benchmarks import consumers, harness
from outbox import message_log
from outbox.consuming import outcomes
from outbox.consuming.claims import Claims
from outbox.operations import scaling

WAIT, CHURN = consumers.WAIT, consumers.CHURN
HOT = 500
"""Messages of one key between two claims."""

LOAD = """
    INSERT INTO outbox_message (channel, key, type, payload)
    SELECT %s, 'key-' || number, 'Worked', '{}'
    FROM generate_series(%s::bigint, %s::bigint) AS number
"""
HEAT = """
    INSERT INTO outbox_message (channel, key, type, payload)
    SELECT %s, 'hot', 'Worked', '{}' FROM generate_series(1, %s)
"""


def run(*, quick: bool) -> None:
    """Print the gain by processes, and the cost of a claim."""
    seconds, turns = (2, 1) if quick else (5, 3)
    _show_processes(seconds, turns)
    lengths, claims = ((20_000, 200_000), 50) if quick else ((1_000_000, 10_000_000), 300)
    _show_claims(lengths, claims)


def _show_processes(seconds: int, turns: int) -> None:
    waits = {n: _rates(consumers.waiters, n, 450 * n * seconds, turns) for n in (1, 2, 4, 8)}
    churns = {n: _rates(consumers.churners, n, 900 * n * seconds, turns) for n in (1, 2)}
    rows = []
    for n in (2, 4, 8):
        gain = harness.ratio(waits[n], waits[1])
        rows.append(_gain(f"waits {WAIT * 1000:g} ms", n, waits, gain, 0.85 * n))
    gain = harness.ratio(churns[2], churns[1])
    rows.append(_gain(f"computes {CHURN * 1000:g} ms", 2, churns, gain, 1.7))
    harness.show(
        "More processes",
        ["handler", "processes and ranges", "rate", "one process", "gain", "goal"],
        rows,
        " One supervisor; from the commit of a backlog to the last message handled.",
    )


def _gain(
    handler: str, processes: int, rates: dict[int, list[float]], gain: float, goal: float
) -> list[str]:
    ours, one = harness.per_second(rates[processes]), harness.per_second(rates[1])
    return [handler, str(processes), ours, one, *harness.against(goal, gain)]


def _rates(group: outbox.ConsumerGroup, processes: int, count: int, turns: int) -> list[float]:
    """Return the rates at which processes, already waiting, handle a backlog that appears."""
    harness.empty_log()
    scaling.scale(group, processes)
    with _workers(group, processes):
        return [_turn(group, count) for _ in range(turns)]


@contextlib.contextmanager
def _workers(group: outbox.ConsumerGroup, processes: int) -> Iterator[None]:
    arguments = ["-m", "django", "consume", group.name, "--processes", str(processes)]
    supervisor = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        while _idle_workers() < processes:
            time.sleep(0.05)
        yield
    finally:
        supervisor.terminate()
        supervisor.wait()


def _idle_workers() -> int:
    """Count the workers that sleep; each holds the idle lock of its one channel."""
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    return int(harness.execute(held)[0][0])


def _turn(group: outbox.ConsumerGroup, count: int) -> float:
    handled = _handled(group)
    with transaction.atomic():
        harness.execute(LOAD, [consumers.WORK, 1, count])
    began = time.perf_counter()
    while _handled(group) < handled + count:
        time.sleep(0.005)
    return count / (time.perf_counter() - began)


def _handled(group: outbox.ConsumerGroup) -> int:
    sums = 'SELECT sum(processed) FROM outbox_cursor WHERE "group" = %s'
    return int(harness.execute(sums, [group.name])[0][0])


def _show_claims(lengths: tuple[int, int], claims: int) -> None:
    costs: dict[int, tuple[float, float]] = {}
    harness.empty_log()
    scaling.scale(consumers.waiters, 64)
    scaling.scale(consumers.churners, 1)
    length = 0
    for goal in lengths:
        while length < goal:
            harness.execute(LOAD, [consumers.WORK, length + 1, length + 200_000])
            length += 200_000
        costs[goal] = _costs(claims)
    rows = [
        [
            f"{length:,}",
            f"{many * 1e6:,.0f} us",
            f"{one * 1e6:,.0f} us",
            *harness.against(3, many / one, most=True),
        ]
        for length, (many, one) in costs.items()
    ]
    short, long = (costs[length] for length in lengths)
    rows.append(
        [
            "long against short",
            *(f"{b / a:.2f}" for a, b in zip(short, long, strict=True)),
            "",
            "stated",
        ]
    )
    harness.show(
        "A claim",
        ["messages in the log", "64 ranges, one with work", "1 range", "ratio", "goal"],
        rows,
        f" The mean of {claims} claims, each after {HOT} new messages of one key, with all that it"
        " takes to know which ranges are idle.",
    )
    harness.empty_log()


def _costs(claims: int) -> tuple[float, float]:
    """Return the seconds of a claim with 64 ranges and with one, by turns."""
    harness.execute("UPDATE outbox_cursor SET position = %s", [message_log.horizon("default")])
    groups = (consumers.waiters, consumers.churners)
    claimers = [_claimer(group) for group in groups]
    seconds: list[list[float]] = [[], []]
    for _ in range(claims):
        harness.execute(HEAT, [consumers.WORK, HOT])
        for spent, claim in zip(seconds, claimers, strict=True):
            spent.append(claim())
    return statistics.mean(seconds[0]), statistics.mean(seconds[1])


def _claimer(group: outbox.ConsumerGroup) -> Callable[[], float]:
    """Return a function that claims a range as a worker does, moves it on, and returns the cost."""
    claims = Claims("default")

    def claim() -> float:
        horizon = message_log.horizon("default")
        with transaction.atomic():
            began = time.perf_counter()
            claims.advance_idle()
            found = claims.claim([group], 1)
            spent = time.perf_counter() - began
            assert found is not None and found[0].limit == horizon
            outcomes.write(outcomes.Outcome(found[0], horizon, processed=HOT), "default")
        return spent

    return claim
