"""A session with an old snapshot (a dump, a report) does not slow the claims of workers."""

import pytest
from django.db import connection

from outbox.operations import status
from outbox.testing import drain
from tests.support.amounts import amount
from tests.support.harness import backend, execute, worker
from tests.support.processes import manage
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

BATCHES = amount(150, 600)


def buffers_per_batch(batches):
    """Handle so many batches of one message; return the pages that each of them read in the cursors' table."""
    with connection.cursor() as cursor:
        before = pages(cursor)
        turner = worker("billing", batch_size=1)
        moved = sum(turner.run_once() or 0 for _ in range(batches))
        after = pages(cursor)
    assert moved == batches
    return (after - before) / batches


def pages(cursor):
    if connection.pg_version >= 150000:
        cursor.execute("SELECT pg_stat_force_next_flush()")
    cursor.execute(
        "SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read"
        " FROM pg_statio_user_tables WHERE relname = 'outbox_cursor'"
    )
    return cursor.fetchone()[0]


def test_a_claim_reads_as_few_pages_beside_an_old_snapshot(connect):
    """The dead versions of a cursor row that a held snapshot keeps are not walked through."""
    publish_orders(3 * BATCHES)
    buffers_per_batch(50)
    alone = buffers_per_batch(BATCHES)
    held = connect()
    execute(held, "BEGIN ISOLATION LEVEL REPEATABLE READ")
    execute(held, "SELECT count(*) FROM outbox_cursor")
    buffers_per_batch(BATCHES)
    beside = buffers_per_batch(BATCHES // 2)
    execute(held, "ROLLBACK")

    assert beside < 2 * alone


def test_describe_names_the_session_with_the_oldest_snapshot(connect):
    """Its pid, user, state, age and query: an operator can end it."""
    publish_orders(1)
    drain("billing")
    held = connect()
    execute(held, "BEGIN ISOLATION LEVEL REPEATABLE READ")
    execute(held, "SELECT count(*) FROM outbox_cursor")
    found = status.describe("billing").oldest_snapshot
    written = manage("outbox", "describe", "billing").stdout
    execute(held, "ROLLBACK")

    assert (found.pid, found.state) == (backend(held), "idle in transaction")
    assert found.query == "SELECT count(*) FROM outbox_cursor"
    assert f"the oldest is held by pid {found.pid}" in written
