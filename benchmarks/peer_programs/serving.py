"""What the programs share: their commands, the work, and the worker beside them.

`python -m benchmarks.peer_programs.NAME DSN` reads a command per line, a JSON list of its name and a
number, and answers each with a line of JSON. With a third argument `worker` it handles messages
until it is terminated, and writes the time at which each handler began, 8 bytes in nanoseconds.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

GAP = 0.02
"""Seconds between two messages whose latency is measured."""
STAMP = 8
ADDRESS = "c/o Lighthouse Trading Company Ltd, 128 Harbour Street, D-20457 Hamburg, Germany"
TABLE = "CREATE TABLE business_row (id bigserial PRIMARY KEY, customer text, total numeric)"
INSERT = "INSERT INTO business_row (customer, total) VALUES ({}, {})"
"""The business row that is written in the transaction of a single message."""

Command = Callable[[int], Any]


def order(number: int) -> dict[str, Any]:
    """Return the payload that the product's benchmarks publish, as plain values."""
    return {
        "order_id": number,
        "customer": f"customer-{number % 1000:03}",
        "total": f"{(number % 900 + 100) / 4 + 0.25:.2f}",
        "paid": number % 2 == 0,
        "address": ADDRESS,
    }


def stamp() -> None:
    """Write the present time."""
    os.write(1, time.monotonic_ns().to_bytes(STAMP))


def serve(commands: Mapping[str, Command], work: Callable[[], None]) -> None:
    """Answer commands until the input ends; as a worker, handle messages instead."""
    if sys.argv[2:] == ["worker"]:
        work()
        return
    for line in sys.stdin:
        name, number = json.loads(line)
        print(json.dumps(commands[name](number)), flush=True)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def latencies(publish: Callable[[], int]) -> Command:
    """Return the command that measures from a COMMIT to the handler in another process.

    `publish`: publishes a message, and returns the time at which it sent COMMIT, in nanoseconds.
    """

    def measure(count: int) -> list[float]:
        with subprocess.Popen(
            [sys.executable, "-m", _module(), sys.argv[1], "worker"], stdout=subprocess.PIPE
        ) as worker:
            assert worker.stdout is not None
            stamps = worker.stdout.fileno()
            try:
                while not select.select([stamps], [], [], 0.5)[0]:
                    publish()
                while select.select([stamps], [], [], 0.5)[0]:
                    os.read(stamps, STAMP)
                sent = []
                for _ in range(count):
                    time.sleep(GAP)
                    sent.append(publish())
                came = [int.from_bytes(_read(stamps)) for _ in sent]
            finally:
                worker.kill()
        return [(end - start) / 1e6 for start, end in zip(sent, came, strict=True)]

    return measure


def _read(stamps: int) -> bytes:
    read = b""
    while len(read) < STAMP:
        if not select.select([stamps], [], [], 30)[0]:
            raise TimeoutError("the worker handled no message for 30 s")
        read += os.read(stamps, STAMP - len(read))
    return read


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    return spec.name
