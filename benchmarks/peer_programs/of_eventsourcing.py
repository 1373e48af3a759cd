"""eventsourcing over psycopg 3: its recorders, without aggregates.

Its events are the rows of the business: there is no other row beside them.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import uuid

from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresProcessRecorder
from psycopg.conninfo import conninfo_to_dict

from benchmarks.peer_programs import serving

CHUNK = 1_000
"""Events in a transaction: with 10,000 the call did not return."""
numbers = itertools.count(1_000_000)


def main() -> None:
    """Serve the commands."""
    parts = conninfo_to_dict(sys.argv[1])
    store = PostgresDatastore(
        dbname=str(parts["dbname"]),
        host=str(parts.get("host", "")),
        port=str(parts.get("port", "")),
        user=str(parts.get("user", "")),
        password=str(parts.get("password", "")),
        pool_size=2,
        max_overflow=4,
    )
    recorder = PostgresProcessRecorder(
        store, events_table_name="orders", tracking_table_name="tracking"
    )

    def publish() -> int:
        """Store an event; return when that began, which is before its INSERT and COMMIT."""
        event = _event(next(numbers))
        began = time.monotonic_ns()
        recorder.insert_events([event])
        return began

    def bulk(count: int) -> float:
        events = [_event(number) for number in range(count)]

        def insert() -> None:
            for start in range(0, count, CHUNK):
                recorder.insert_events(events[start : start + CHUNK])

        return serving.seconds(insert)

    def consume(count: int) -> float:
        start = recorder.max_notification_id()
        bulk(count)

        def handle() -> None:
            with recorder.subscribe(gt=start) as subscription:
                for notification in itertools.islice(subscription, count):
                    json.loads(notification.state)
                    recorder.insert_tracking(Tracking("reader", notification.id))

        return serving.seconds(handle)

    def work() -> None:
        with recorder.subscribe(gt=recorder.max_notification_id()) as subscription:
            for _ in subscription:
                serving.stamp()

    commands = {
        "install": lambda _: recorder.create_table(),
        "single": lambda count: serving.seconds(lambda: [publish() for _ in range(count)]),
        "bulk": bulk,
        "consume": consume,
        "latencies": serving.latencies(publish),
    }
    serving.serve(commands, work)


def _event(number: int) -> StoredEvent:
    state = json.dumps(serving.order(number)).encode()
    return StoredEvent(uuid.uuid4(), 1, "orders:OrderPlaced", state)


if __name__ == "__main__":
    main()
