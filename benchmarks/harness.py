"""What the benchmarks share: the database, alternating runs, and the tables they print.

The measured code and its floor take turns in one process on one server, so that whatever else
the machine does hits both. A rate is the median of its turns, a ratio the median of the turns'
ratios.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import django
from django.core.management import call_command
from django.db import connection

from outbox.embedded import Server

NAME = "outbox_benchmarks"
T = TypeVar("T")
SERVER = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}


@contextlib.contextmanager
def database() -> Iterator[None]:
    """Set Django up on a fresh database, with synchronous_commit off, and drop it in the end."""
    with contextlib.ExitStack() as stack:
        if "DATABASE_URL" not in os.environ:
            server = stack.enter_context(Server(durable=True, options=SERVER))
            os.environ["DATABASE_URL"] = server.url
        django.setup()
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {NAME}")
            cursor.execute(f"CREATE DATABASE {NAME}")
        set_options(synchronous_commit="off")
        call_command("migrate", run_syncdb=True, verbosity=0)
        yield
        connection.close()
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE {NAME}")


def set_options(**options: str) -> None:
    """Change server settings for all sessions of the database that begin from now on."""
    for name, value in options.items():
        execute(f"ALTER DATABASE {NAME} SET {name} = {value}")
    connection.close()


def execute(sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def open_session() -> Any:
    """Return a new connection of the bare driver, in autocommit mode."""
    raw = connection.get_new_connection(connection.get_connection_params())
    raw.autocommit = True
    return raw


def empty_log() -> None:
    """Forget all messages and cursors; the positions go on rising."""
    execute("TRUNCATE outbox_message, outbox_cursor")


def paced(count: int, gap: float) -> Iterator[None]:
    """Yield `count` times, `gap` seconds apart."""
    due = time.monotonic()
    for _ in range(count):
        time.sleep(max(0, due - time.monotonic()))
        yield
        due += gap


def rate(count: int, work: Callable[[int], None]) -> float:
    """Return how many things `work` does per second, when it is to do `count` of them."""
    gc.collect()
    began = time.perf_counter()
    work(count)
    return count / (time.perf_counter() - began)


def alternate(variants: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """Let the variants take turns, in alternating order, and return the figures of each."""
    figures: dict[str, list[T]] = {name: [] for name in variants}
    for turn in range(turns):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            figures[name].append(variants[name]())
    return figures


def ratio(ours: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median ratio of figures that were measured in turns."""
    return statistics.median(a / b for a, b in zip(ours, floor, strict=True))


def per_second(figures: Sequence[float]) -> str:
    """Return the median of rates for a table."""
    return f"{statistics.median(figures):,.0f}/s"


def against(goal: float | None, value: float, *, most: bool = False) -> tuple[str, str]:
    """Return the cells of a value and its goal, the least it should be, or the most."""
    if goal is None:
        return f"{value:.2f}", "stated"
    met = value <= goal if most else value >= goal
    return f"{value:.2f}", f"{'<=' if most else '>='} {goal:g}, {'met' if met else 'MISSED'}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print one table in Markdown, with the conditions of its figures."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join(padded)} |"

    print(f"\n### {title}\n\n{conditions()}{note}\n")
    print(line(columns), line(["-" * width for width in widths]), *map(line, rows), sep="\n")
    print(flush=True)


def conditions() -> str:
    """Return the server's version and durability, and the driver."""
    shown = [execute(f"SHOW {name}")[0][0] for name in ("server_version", "fsync")]
    shown.append(execute("SHOW synchronous_commit")[0][0])
    driver = importlib.import_module(type(connection.connection).__module__.partition(".")[0])
    server = "PostgreSQL {}, fsync {}, synchronous_commit {}".format(*shown)
    return f"{server}; {driver.__name__} {driver.__version__.split()[0]}, {os.cpu_count()} cores."
