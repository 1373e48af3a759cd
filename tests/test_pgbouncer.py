"""PgBouncer in transaction mode: publishing and poll-only consuming work, LISTEN is not tried."""

from __future__ import annotations

import pytest
from django.db import connection

from tests.support.processes import run_code, start_manage, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PUBLISH = """
import outbox
from django.db import transaction
from tests.shop.events import OrderPlaced
with transaction.atomic():
    print(outbox.publish(OrderPlaced(order_id=1)))
"""


def effects() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT position FROM shop_effect WHERE \"group\" = 'billing' ORDER BY id")
        return [position for (position,) in cursor.fetchall()]


def locks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        return cursor.fetchone()[0]


def test_poll_only_works_through_a_pooler(pooled):
    """Publishing and consuming through the pooler, without LISTEN."""
    worker = start_manage("consume", "billing", "--no-listen", "--poll-interval", "0.2", **pooled)
    try:
        position = int(run_code(PUBLISH, **pooled).stdout)
        wait_until(lambda: effects() == [position])
    finally:
        worker.terminate()
        _, narration = worker.communicate(timeout=120)

    assert "pooler" not in narration


def test_a_worker_behind_a_pooler_says_so_and_polls(pooled):
    """LISTEN would get lost, so the worker tells the way out, polls, and leaves no lock behind."""
    worker = start_manage("consume", "billing", "--poll-interval", "0.2", **pooled)
    try:
        warning = next(line for line in worker.stderr if "pooler" in line)
        position = int(run_code(PUBLISH, **pooled).stdout)
        wait_until(lambda: effects() == [position])
        wait_until(lambda: locks() == 0)  # what is left behind stays; maintenance may hold one now
    finally:
        worker.terminate()
        worker.communicate(timeout=120)

    assert "OUTBOX['LISTEN']" in warning
