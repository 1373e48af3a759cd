"""PgQueuer over asyncpg, the driver that it recommends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.peer_programs import serving

QUEUE = "orders"
BATCH = 500

runner = asyncio.Runner()
numbers = itertools.count(1_000_000)


def main() -> None:
    """Serve the commands."""
    connection = runner.run(asyncpg.connect(sys.argv[1]))
    queries = Queries(AsyncpgDriver(connection))
    commands = {
        "install": lambda _: runner.run(_install(connection, queries)),
        "single": lambda count: serving.seconds(lambda: _repeat(count, connection, queries)),
        "bulk": lambda count: runner.run(_bulk(count, queries)),
        "consume": lambda count: runner.run(_consume(count, queries)),
        "latencies": serving.latencies(lambda: runner.run(_publish(connection, queries))),
    }
    serving.serve(commands, lambda: runner.run(_work()))


async def _install(connection: asyncpg.Connection, queries: Queries) -> None:
    await queries.install()
    await connection.execute(serving.TABLE)


async def _publish(connection: asyncpg.Connection, queries: Queries) -> int:
    """Publish a message beside a business row; return when COMMIT was sent."""
    order = serving.order(next(numbers))
    block = connection.transaction()
    await block.start()
    await connection.execute(serving.INSERT.format("$1", "$2::text::numeric"), *_row(order))
    await queries.enqueue(QUEUE, json.dumps(order).encode())
    sent = time.monotonic_ns()
    await block.commit()
    return sent


def _row(order: dict[str, object]) -> tuple[object, object]:
    return order["customer"], order["total"]


def _repeat(count: int, connection: asyncpg.Connection, queries: Queries) -> None:
    async def repeat() -> None:
        for _ in range(count):
            await _publish(connection, queries)

    runner.run(repeat())


async def _bulk(count: int, queries: Queries) -> float:
    payloads: list[bytes | None] = [
        json.dumps(serving.order(number)).encode() for number in range(count)
    ]
    began = time.perf_counter()
    await queries.enqueue([QUEUE] * count, payloads, [0] * count)
    return time.perf_counter() - began


async def _consume(count: int, queries: Queries) -> float:
    """Return the seconds until the last of `count` messages is handled, in one process."""
    await queries.clear_queue()
    await _bulk(count, queries)
    connection = await asyncpg.connect(sys.argv[1])
    queue, left, ended = PgQueuer(AsyncpgDriver(connection)), count, 0.0

    @queue.entrypoint(QUEUE)
    async def handle(job: Job) -> None:
        nonlocal left, ended
        json.loads(job.payload or b"")
        left -= 1
        if left == 0:
            ended = time.perf_counter()
            queue.shutdown.set()

    began = time.perf_counter()
    await queue.run(dequeue_timeout=timedelta(seconds=1), batch_size=BATCH)
    await connection.close()
    return ended - began


async def _work() -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(sys.argv[1])))

    @queue.entrypoint(QUEUE)
    async def handle(job: Job) -> None:
        serving.stamp()

    with contextlib.suppress(asyncio.CancelledError):
        await queue.run(batch_size=BATCH)


if __name__ == "__main__":
    main()
