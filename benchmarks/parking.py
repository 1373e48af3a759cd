"""What the look for parked keys costs a worker while nothing is parked, and while something is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from unittest import mock

import outbox
from benchmarks import harness
from benchmarks.consume import BATCH, consumer, load
from benchmarks.events import CHANNEL, OrderPlaced
from outbox.consuming.batch import Batch

FIRST = 1_000_000
"""The number of the first order that `load` publishes."""

unchecked = outbox.ConsumerGroup("unchecked", channels=[CHANNEL])
checked = outbox.ConsumerGroup("checked", channels=[CHANNEL])
blocked = outbox.ConsumerGroup("blocked", channels=[CHANNEL])


@unchecked.handler(OrderPlaced)
@checked.handler(OrderPlaced)
def do_nothing(event: OrderPlaced, message: outbox.Message) -> None:
    """Cost nothing: what is left is the outbox."""


@blocked.handler(OrderPlaced)
def refuse_the_first(event: OrderPlaced, message: outbox.Message) -> None:
    """Let one message be parked, so that every later batch looks for its key."""
    if event.order_id == FIRST:
        raise outbox.PermanentError("the first order of the benchmark")


def run(*, quick: bool) -> None:
    """Print the rates with the look and without it."""
    turns, count = (12, 2_500) if quick else (60, 5_000)
    load(turns * count)
    harness.execute("ANALYZE outbox_message")
    without, with_look, while_parked = consumer(unchecked), consumer(checked), consumer(blocked)

    def without_look(count: int) -> None:
        with mock.patch.object(Batch, "prepare", lambda batch: None):
            without(count)

    variants: dict[str, Callable[[int], None]] = {
        "without": without_look,
        "with": with_look,
        "parked": while_parked,
    }
    rates = harness.alternate({name: _rate(count, work) for name, work in variants.items()}, turns)
    harness.show(
        "The look for parked keys",
        ["", "with the look", "without it", "ratio", "goal"],
        [
            [
                what,
                harness.per_second(rates[name]),
                harness.per_second(rates["without"]),
                *harness.against(goal, harness.ratio(rates[name], rates["without"])),
            ]
            for what, name, goal in (
                ("nothing is parked", "with", 0.95),
                ("a message of one key is parked", "parked", None),
            )
        ],
        f" A handler that does nothing, batches of {BATCH}; the spread of the turns without the "
        f"look is {_spread(rates['without']):.0%}.",
    )


def _rate(count: int, work: Callable[[int], None]) -> Callable[[], float]:
    return lambda: harness.rate(count, work)


def _spread(rates: list[float]) -> float:
    quarters = statistics.quantiles(rates, n=4)
    return (quarters[2] - quarters[0]) / quarters[1]
