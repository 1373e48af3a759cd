"""What a message takes on disk, and what consuming leaves behind."""

from __future__ import annotations

from django.db import connection

from benchmarks import consumers, harness
from benchmarks.consume import consumer, load
from benchmarks.events import orders
from outbox.encoding import encode

BYTES = """
    SELECT
        sum(pg_table_size(inhrelid))::float8 / %(count)s,
        sum(pg_indexes_size(inhrelid))::float8 / %(count)s
    FROM pg_inherits
    WHERE inhparent = 'outbox_message'::regclass
"""
PAYLOAD = (
    "SELECT avg(pg_column_size(payload)), avg(pg_column_size(payload::jsonb)) FROM outbox_message"
)
SPREAD = """
    INSERT INTO outbox_message (channel, key, type, payload, headers)
    SELECT 'lane-' || n %% 8, n::text, 'OrderPlaced', %(payload)s::json, '{}'
    FROM generate_series(1000001, 1000000 + %(count)s) AS n
"""
DEAD = """
    SELECT sum(n_dead_tup), sum(n_tup_upd + n_tup_del)
    FROM pg_stat_user_tables
    WHERE relid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox_message'::regclass)
"""
PAGES = "SELECT pg_relation_size('outbox_cursor') / current_setting('block_size')::bigint"


def run(*, quick: bool) -> None:
    """Print the bytes of a message, and what is left after three groups have read all."""
    backlog = 40_000 if quick else 200_000
    load(backlog, beside=0)
    for group in (consumers.look, consumers.look_again, consumers.look_further):
        consumer(group)(backlog)
    connection.close()  # a session's counts are complete when it ends
    table, indexes = harness.execute(BYTES, {"count": backlog})[0]
    stored, as_jsonb = harness.execute(PAYLOAD)[0]
    dead, changed = harness.execute(DEAD)[0]
    pages = harness.execute(PAGES)[0][0]
    harness.empty_log()
    payload = encode(orders(1)[0], "payload")
    harness.execute(SPREAD, {"payload": payload, "count": backlog})
    spread_table, spread_indexes = harness.execute(BYTES, {"count": backlog})[0]
    harness.show(
        "Storage",
        ["", "figure", "goal"],
        [
            [
                f"bytes of a message: {table:.0f} in the table, {indexes:.0f} in the indexes",
                *harness.against(300, table + indexes, most=True),
            ],
            [
                f"the same in 8 channels: {spread_table:.0f} and {spread_indexes:.0f}",
                *harness.against(None, spread_table + spread_indexes, most=True),
            ],
            ["dead tuples of the log after three groups have read it", str(dead), "0"],
            ["its tuples updated or deleted", str(changed), "0"],
            ["pages of the cursor table then", str(pages), "a few"],
        ],
        f" {backlog:,} messages; a payload takes {stored:.0f} bytes, {as_jsonb:.0f} as jsonb.",
    )
