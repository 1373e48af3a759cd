"""Captured model changes, against django-pgpubsub: what they cost the writer, how fast they are
consumed. Without it (extra `bench`) only the cost against a table without trigger is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from django.core.management import call_command
from django.db import connection, models

import outbox
from benchmarks import harness
from benchmarks.consume import consumer
from benchmarks.models import CapturedWork, NotifiedWork, PlainWork

IS_INSTALLED = importlib.util.find_spec("pgpubsub") is not None
MIGRATIONS = 100
"""Of a small project: django-pgpubsub reads their table for each notification."""
ROWS = 10_000
BACKLOG = 5_000

watch = outbox.ConsumerGroup("watch", channels=["works"])


@watch.handler(outbox.Change[CapturedWork])
def do_nothing(event: outbox.Change[CapturedWork], message: outbox.Message) -> None:
    """Cost nothing, as the listener beside it."""


def run(*, quick: bool) -> None:
    """Print what capture costs a writer, and how fast captured changes are consumed."""
    if IS_INSTALLED:
        _declare_channel()
        _apply_migrations()
    else:
        print("\ndjango-pgpubsub is not installed (pip install '.[bench]'): not compared.")
    call_command("pgtrigger", "install", verbosity=0)
    _show_cost("bulk_create", ROWS, _in_bulk, 5 if quick else 21, 3)
    _show_cost("save()", 25, _singly, 100 if quick else 800, 1)
    if IS_INSTALLED:
        _show_consumption(1 if quick else 3)


def _declare_channel() -> None:
    """Let django-pgpubsub capture inserts into a locking channel, with a listener that does nothing."""
    import dataclasses

    import pgpubsub

    @dataclasses.dataclass
    class Works(pgpubsub.TriggerChannel):
        model = NotifiedWork
        lock_notifications = True

    @pgpubsub.post_insert_listener(Works)
    def ignore(old: Any, new: Any) -> None:
        pass


def _apply_migrations() -> None:
    harness.execute(
        "INSERT INTO django_migrations (app, name, applied)"
        " SELECT 'app ' || n %% 10, 'migration ' || n, now() FROM generate_series(1, %s) AS n",
        [MIGRATIONS],
    )


def _show_cost(
    how: str, rows: int, write: Callable[[list[models.Model]], None], turns: int, goal: float
) -> None:
    tables: dict[str, type[models.Model]] = {"no trigger": PlainWork, "outbox": CapturedWork}
    if IS_INSTALLED:
        tables["django-pgpubsub"] = NotifiedWork

    def measured(model: type[models.Model]) -> Callable[[], float]:
        return lambda: _microseconds(rows, write, works(model, rows))

    figures = harness.alternate({name: measured(model) for name, model in tables.items()}, turns)
    best = {name: min(each) for name, each in figures.items()}
    cost = {name: each - best["no trigger"] for name, each in best.items()}
    rows_shown = []
    for name in tables:
        cells = [name, f"{best[name]:.1f}", f"{cost[name]:.1f}", "", ""]
        if name == "outbox" and IS_INSTALLED:
            cells[3:] = harness.against(goal, cost["django-pgpubsub"] / cost["outbox"])
        rows_shown.append(cells)
    harness.show(
        f"Capture cost: {how}",
        ["", "µs a row", "of which capture", "times cheaper", "goal"],
        rows_shown,
        f" {rows:,} rows a turn, the best of {turns} turns each; {MIGRATIONS} applied migrations.",
    )


def _in_bulk(rows: list[models.Model]) -> None:
    type(rows[0])._default_manager.bulk_create(rows, batch_size=len(rows))


def _singly(rows: list[models.Model]) -> None:
    for row in rows:
        row.save()


def works(model: type[models.Model], count: int) -> list[models.Model]:
    """Return rows as a catalogue has them, some 200 bytes each."""
    return [
        model(title=f"The works, volume {n}", text="x" * 100, price=n, stock=n, code=f"W-{n:06}")
        for n in range(count)
    ]


def _microseconds(
    count: int, write: Callable[[list[models.Model]], None], rows: list[models.Model]
) -> float:
    return 1e6 / harness.rate(count, lambda _: write(rows))


def _show_consumption(turns: int) -> None:
    figures = harness.alternate(
        {"ours": _ours, "live": _theirs_live, "recovery": _theirs_recovered}, turns
    )
    rows = [
        ("outbox: a worker", figures["ours"], None),
        ("django-pgpubsub: listen", figures["live"], 20),
        ("django-pgpubsub: listen --recover, all in one transaction", figures["recovery"], 20),
    ]
    harness.show(
        "Consuming captured changes",
        ["", "rate", "times as fast", "goal"],
        [
            [
                what,
                harness.per_second(rates),
                *(
                    harness.against(goal, harness.ratio(figures["ours"], rates))
                    if goal
                    else ("", "")
                ),
            ]
            for what, rates, goal in rows
        ],
        f" A backlog of {BACKLOG:,} inserts, a handler that does nothing, one process each.",
    )


def _ours() -> float:
    harness.empty_log()
    _in_bulk(works(CapturedWork, BACKLOG))
    return harness.rate(BACKLOG, consumer(watch))


def _theirs_live() -> float:
    """Notifications that its listener has heard already."""
    from pgpubsub.listen import listen_to_channels, process_notifications

    _forget()
    listener = listen_to_channels()
    _in_bulk(works(NotifiedWork, BACKLOG))
    return _rate_of_theirs(lambda: process_notifications(listener))


def _theirs_recovered() -> float:
    """Stored notifications that no listener heard of."""
    from pgpubsub.listen import listen_to_channels, process_notifications
    from pgpubsub.notify import process_stored_notifications

    _forget()
    _in_bulk(works(NotifiedWork, BACKLOG))
    listener = listen_to_channels()
    process_stored_notifications()
    return _rate_of_theirs(lambda: process_notifications(listener))


def _rate_of_theirs(process: Callable[[], None]) -> float:
    rate = harness.rate(BACKLOG, lambda _: process())
    left = harness.execute("SELECT count(*) FROM pgpubsub_notification")[0][0]
    assert left == 0, f"{left} notifications are left"
    return rate


def _forget() -> None:
    """Let no notification of an earlier turn be in the way: on a new connection."""
    connection.close()
    harness.execute("TRUNCATE pgpubsub_notification")
