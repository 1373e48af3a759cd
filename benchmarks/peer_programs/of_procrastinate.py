"""Procrastinate with its Django integration, over psycopg 3."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from psycopg.conninfo import conninfo_to_dict

from benchmarks.peer_programs import serving

CONCURRENCY = 20
"""Jobs that its worker runs at a time."""
numbers = itertools.count(1_000_000)


def main() -> None:
    """Serve the commands."""
    parts = conninfo_to_dict(sys.argv[1])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": parts.get("port", ""),
    }
    settings.configure(
        INSTALLED_APPS=["procrastinate.contrib.django"],
        DATABASES={"default": database},
        USE_TZ=True,
    )
    django.setup()
    from procrastinate.contrib.django import app

    handle = app.task(name="handle")(_handle)
    stamp = app.task(name="stamp", queue="stamps")(_stamp)

    def publish(task: object = handle) -> int:
        """Publish a message beside a business row; return when COMMIT was sent."""
        order = serving.order(next(numbers))
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(
                    serving.INSERT.format("%s", "%s"), [order["customer"], order["total"]]
                )
            task.defer(order=order)
            return time.monotonic_ns()

    def bulk(count: int) -> float:
        orders = [{"order": serving.order(number)} for number in range(count)]

        def publish_all() -> None:
            with transaction.atomic():
                handle.batch_defer(*orders)

        return serving.seconds(publish_all)

    def run_worker(*, wait: bool, queues: list[str]) -> None:
        worker_app = app.with_connector(app.connector.get_worker_connector())

        async def run() -> None:
            async with worker_app.open_async():
                await worker_app.run_worker_async(
                    queues=queues,
                    concurrency=CONCURRENCY,
                    wait=wait,
                    install_signal_handlers=False,
                    delete_jobs="successful",
                )

        asyncio.run(run())

    def consume(count: int) -> float:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE procrastinate_jobs CASCADE")
        bulk(count)
        return serving.seconds(lambda: run_worker(wait=False, queues=["default"]))

    def install(_: int) -> None:
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(serving.TABLE)

    commands = {
        "install": install,
        "single": lambda count: serving.seconds(lambda: [publish() for _ in range(count)]),
        "bulk": bulk,
        "consume": consume,
        "latencies": serving.latencies(lambda: publish(stamp)),
    }
    serving.serve(commands, lambda: run_worker(wait=True, queues=["stamps"]))


def _handle(order: dict[str, object]) -> None:
    """Do nothing."""


def _stamp(order: dict[str, object]) -> None:
    serving.stamp()


if __name__ == "__main__":
    main()
