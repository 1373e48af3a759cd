"""Relays, each beside the bare loop of its client library that sends the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import outbox
from benchmarks import bare_senders, consume, harness
from benchmarks.events import CHANNEL
from outbox.relays import Origin, Record
from outbox.worker import Worker
from tests.relays import destinations

GOAL = 0.5
ROUNDS = {"sns": 500, "sqs": 500, "webhook": 1_000}
"""Messages in a turn, for destinations that take a request for each message or ten of them."""
ROUND = 5_000


class _Kept:
    """A sink that keeps the records, for the bare loop to send them again."""

    to = "{channel}"
    most_together = None

    def __init__(self) -> None:
        self.records: list[Record] = []

    def position(self, origin: Origin, to: str | None) -> None:
        """Return None: nothing is remembered."""

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Keep the records."""
        self.records += records

    def close(self) -> None:
        """Do nothing."""


def run(*, quick: bool) -> None:
    """Print the rate of a relay to each destination that this machine can start."""
    turns = 3 if quick else 7
    consume.load(ROUND)
    kept = _Kept()
    Worker([outbox.Relay("kept", channels=[CHANNEL], to=kept)]).drain()
    rows = []
    for name, destination in destinations.ALL.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(_measure(name, destination(Path(folder)), kept.records, turns))
            except destinations.NotToBeHad as error:
                rows.append([name, f"skipped: {error}", "", "", ""])
    harness.show(
        "Relays",
        ["batches of 500 to", "relay", "bare loop", "ratio", "goal"],
        rows,
        " The server runs on the same machine, the relay is one worker.",
    )


def _measure(
    name: str, server: destinations.Destination, records: Sequence[Record], turns: int
) -> list[str]:
    count = ROUNDS.get(name, ROUND)
    server.command()
    try:
        server.start()
        consume.load((turns + 1) * count + consume.BATCH)
        relay = outbox.Relay(f"to-{name}", channels=[CHANNEL], to=server.open_sink())
        send = consume.consumer(relay)
        with bare_senders.OF[name](server, records[:count]) as bare:
            send(min(count, consume.BATCH))
            bare()
            figures = harness.alternate(
                {
                    "relay": lambda: harness.rate(count, send),
                    "bare": lambda: harness.rate(count, lambda _: bare()),
                },
                turns,
            )
        relay.to.close()
    finally:
        server.stop()
    return [
        name,
        harness.per_second(figures["relay"]),
        harness.per_second(figures["bare"]),
        *harness.against(GOAL, harness.ratio(figures["relay"], figures["bare"])),
    ]
