"""The same work done by other libraries, each in an environment of its own, which this installs.

PgQueuer and Procrastinate are job queues: one worker takes each message, and it is gone. In
eventsourcing, as here, every reader sees all events. Left out: django-reliable-outbox, which needs
Python 3.12; django-domain-events and django-outbox-pattern, which deliver through Celery or STOMP.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import urllib.parse
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from django.db import connection

from benchmarks import consumers, harness, publish, wakeup
from benchmarks.consume import consumer, load
from benchmarks.processes import beside, work

ROOT = Path(__file__).parent.parent
PEERS = {
    "pgqueuer": ("PgQueuer 1.6.0", ["pgqueuer[asyncpg]==1.6.0"]),
    "procrastinate": ("Procrastinate 3.10.0", ["procrastinate[django]==3.10.0", "psycopg[binary]"]),
    "eventsourcing": ("eventsourcing 9.5.6", ["eventsourcing[postgres]==9.5.6", "psycopg[binary]"]),
}
DATABASE = "outbox_benchmarks_peer"
LINES = {
    "single": "publish one, with a business row, a transaction",
    "bulk": "publish 10,000 in one transaction",
    "consume": "consume a backlog, the handler does nothing",
}

Measure = Callable[[], Any]


def run(*, quick: bool) -> None:
    """Print the rates of four kinds of work, ours beside each peer's, and the latencies."""
    turns = 3 if quick else 5
    counts = {"single": 200, "bulk": 10_000, "consume": 1_000, "latencies": 20}
    if not quick:
        counts |= {"single": 500, "consume": 5_000, "latencies": 100}
    rates: list[list[str]] = []
    delays: list[list[str]] = []
    for name in PEERS:
        with _program(name) as ask:
            peers, ours = _of_peer(ask, counts), _of_product(counts)
            for what, title in LINES.items():
                figures = harness.alternate({"ours": ours[what], "peer": peers[what]}, turns)
                rates.append(_rate_row(title, PEERS[name][0], figures))
            both = {"ours": ours["latencies"], "peer": peers["latencies"]}
            delays.append(_delay_row(PEERS[name][0], harness.alternate(both, turns)))
    harness.show(
        "Peers: rates",
        ["", "peer", "outbox", "the peer", "ratio", "goal"],
        sorted(rates),
        f" One process each; the backlog has {counts['consume']:,} messages of 190 bytes.",
    )
    harness.show(
        "Peers: from COMMIT to the handler, idle",
        ["peer", "outbox p50", "p99", "the peer p50", "p99", "p50 to p50", "goal"],
        delays,
        " A message each 20 ms, a worker in another process.",
    )


def _of_product(counts: dict[str, int]) -> dict[str, Measure]:
    def consume() -> float:
        load(counts["consume"], beside=0)
        return harness.rate(counts["consume"], consumer(consumers.look))

    return {
        "single": publish.single(counts["single"], publish.publish),
        "bulk": partial(publish.publish_many, counts["bulk"]),
        "consume": consume,
        "latencies": partial(_latencies, counts["latencies"]),
    }


def _of_peer(ask: Callable[[str, int], Any], counts: dict[str, int]) -> dict[str, Measure]:
    def rate(what: str) -> float:
        return float(counts[what] / ask(what, counts[what]))

    measures: dict[str, Measure] = {what: partial(rate, what) for what in LINES}
    return measures | {"latencies": lambda: ask("latencies", counts["latencies"])}


def _latencies(count: int) -> list[float]:
    reading, writing = os.pipe()
    consumers.stamp_into(writing)
    try:
        with beside(work, consumers.stamp, True):
            wakeup.warm_up(wakeup.publish_one, reading)
            return wakeup.latencies(count, wakeup.ALONE, reading)
    finally:
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def _program(name: str) -> Iterator[Callable[[str, int], Any]]:
    """Give a function that lets the program of a peer run a command, on a database of its own."""
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {DATABASE}")
        cursor.execute(f"ALTER DATABASE {DATABASE} SET synchronous_commit = off")
    command = [_python(name), "-m", f"benchmarks.peer_programs.of_{name}", _dsn()]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(what: str, number: int) -> Any:
            print(json.dumps([what, number]), file=requests, flush=True)
            if not (line := answers.readline()):
                raise RuntimeError(f"the program of {PEERS[name][0]} ended during {what}")
            return json.loads(line)

        try:
            ask("install", 0)
            yield ask
        finally:
            requests.close()
            process.wait(60)
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def _python(name: str) -> Path:
    """Return the interpreter of a peer's environment; make that first where it is missing."""
    folder = ROOT / f".venv-peers-{name}"
    python = folder / "bin" / "python"
    installed = folder / "installed"
    needs = " ".join(PEERS[name][1])
    if not installed.exists() or installed.read_text() != needs:
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", *PEERS[name][1]]
        subprocess.run(install, check=True, stdout=sys.stderr)
        installed.write_text(needs)
    return python


def _dsn() -> str:
    parameters = connection.get_connection_params()
    names = {"host": "host", "port": "port", "user": "user", "password": "password"}
    query = {key: str(parameters[each]) for each, key in names.items() if parameters.get(each)}
    return f"postgresql:///{DATABASE}?{urllib.parse.urlencode(query)}"


def _rate_row(title: str, peer: str, figures: dict[str, list[float]]) -> list[str]:
    ours, theirs = figures["ours"], figures["peer"]
    compared = harness.against(1, harness.ratio(ours, theirs))
    return [title, peer, harness.per_second(ours), harness.per_second(theirs), *compared]


def _delay_row(peer: str, figures: dict[str, list[list[float]]]) -> list[str]:
    cells = [peer]
    for turns in (figures["ours"], figures["peer"]):
        percentiles = statistics.quantiles([each for turn in turns for each in turn], n=100)
        cells += [f"{percentiles[49]:.2f} ms", f"{percentiles[98]:.2f} ms"]
    medians = [[statistics.median(turn) for turn in figures[each]] for each in ("ours", "peer")]
    return cells + list(harness.against(1, harness.ratio(*medians), most=True))
