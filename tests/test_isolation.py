"""Projects whose connections use a stricter isolation level than READ COMMITTED."""

from __future__ import annotations

import threading

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import IsolationLevel

from outbox import database
from tests.shop.models import Order
from tests.support.harness import cursor_of, exhaust, handled, worker
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)
LEVELS = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def isolated(request):
    """New connections of this process use the level; this thread's has none open."""
    connection.close()
    options = connections.settings["default"].setdefault("OPTIONS", {})
    options["isolation_level"] = request.param
    yield
    connection.close()
    del options["isolation_level"]


def test_competing_workers_go_on_after_a_conflict(isolated, background):
    """A cursor that another worker moved in between ends the transaction, not the worker: every
    message is handled once, in the order of its key."""
    positions = publish_orders([number % 7 for number in range(120)])
    worker("crew")
    start = threading.Barrier(3)

    def consume():
        start.wait()
        return exhaust(worker("crew", batch_size=1))

    threads = [background(consume) for _ in range(3)]
    total = sum(thread.result() for thread in threads)
    exhaust(worker("crew"))

    assert total <= 120
    assert sorted(handled("crew")) == positions
    for key in range(7):
        of_key = handled("crew", key=str(key))
        assert of_key == sorted(of_key)


def test_a_conflict_is_told_from_other_errors(isolated, background):
    """The server's code says that the transaction may be tried again; other errors say it not."""
    order = Order.objects.create(reference=1)
    with pytest.raises(OperationalError) as caught, transaction.atomic():
        assert Order.objects.count() == 1
        background(lambda: Order.objects.update(reference=2)).result()
        Order.objects.filter(pk=order.pk).update(reference=3)
    with pytest.raises(Exception) as other, connection.cursor() as cursor:
        cursor.execute("SELECT 1/0")

    assert database.is_conflict(caught.value)
    assert not database.is_conflict(other.value)
    assert not database.is_conflict(ValueError())


def test_one_worker_needs_no_second_try(isolated):
    """Alone it handles everything in one batch."""
    positions = publish_orders([number % 7 for number in range(20)])

    assert worker("billing").run_once() == 20
    assert handled("billing") == positions
    assert cursor_of("billing").attempts == 0
