"""Promise 1: a message exists if and only if the transaction (or savepoint) that published it
committed."""

import random

import pytest
from django.db import DatabaseError, IntegrityError, transaction

import outbox
from outbox.models import Message
from tests.shop.events import OrderPlaced
from tests.shop.models import Order, OrderLine
from tests.support.harness import backend, drain, execute, handled, insert, stored, terminate
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Rolls the enclosing block back."""


def publish_one():
    return [outbox.publish(OrderPlaced(order_id=1))]


def publish_several():
    return list(outbox.publish_many([OrderPlaced(order_id=1), OrderPlaced(order_id=2)]))


def publish_untyped():
    return [outbox.publish_raw("orders", "OrderImported", {"id": 1}, key="1")]


ways_to_publish = pytest.mark.parametrize(
    "publish", [publish_one, publish_several, publish_untyped]
)


@ways_to_publish
def test_commit_stores_the_message(publish):
    """What a committed transaction published is in the log, at the positions that were returned."""
    with transaction.atomic():
        positions = publish()

    assert stored() == positions
    assert all(isinstance(position, int) for position in positions)


@ways_to_publish
def test_rollback_stores_nothing(publish):
    """What a rolled back transaction published is nowhere."""
    with pytest.raises(Undo), transaction.atomic():
        publish()
        raise Undo

    assert not Message.objects.exists()


@ways_to_publish
def test_a_rolled_back_savepoint_takes_only_its_own_messages(publish):
    """Rolling back to a savepoint takes back what was published after it, not what came before, or
    comes later."""
    with transaction.atomic():
        before = publish()
        with pytest.raises(Undo), transaction.atomic():
            publish()
            raise Undo
        after = publish()

    assert stored() == before + after


@ways_to_publish
def test_publishing_outside_a_transaction_is_refused(publish):
    """Without a transaction there is nothing for the message to be part of, so it is refused and
    not stored."""
    with pytest.raises(outbox.TransactionRequired):
        publish()

    assert not Message.objects.exists()


def random_work(dice, depth=0):
    """Publish in randomly nested blocks, some of which are undone; return the positions that shall
    survive."""
    surviving = []
    for _ in range(dice.randint(1, 4)):
        if depth < 4 and dice.random() < 0.5:
            try:
                with transaction.atomic():
                    inner = random_work(dice, depth + 1)
                    if dice.random() < 0.5:
                        raise Undo
                surviving += inner
            except Undo:
                pass
        else:
            surviving.append(outbox.publish(OrderPlaced(order_id=dice.randint(1, 5))))
    return surviving


@pytest.mark.parametrize("seed", range(20))
def test_random_savepoints_store_exactly_what_they_commit(seed):
    """Whatever the nesting of savepoints, what was released is stored and handled, what was undone
    is not."""
    with transaction.atomic():
        surviving = random_work(random.Random(seed))
    drain("billing")

    assert stored() == surviving
    assert handled("billing") == surviving


def test_a_failed_business_write_takes_the_message_with_it():
    """The message published before a business write that the database refuses is not stored."""
    Order.objects.create(reference=1)

    with pytest.raises(IntegrityError), transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
        Order.objects.create(reference=1)

    assert not Message.objects.exists()


def test_a_commit_that_fails_takes_the_message_with_it():
    """A deferred constraint that fails in the commit itself leaves no message."""
    with pytest.raises(IntegrityError), transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
        OrderLine.objects.create(order_id=404)

    assert not Message.objects.exists()


def test_a_refused_message_leaves_the_business_write_to_its_savepoint():
    """When the log refuses a message, the savepoint is gone and the transaction around it can still
    commit."""
    with transaction.atomic():
        Order.objects.create(reference=1)
        with pytest.raises((outbox.OutboxError, DatabaseError)), transaction.atomic():
            outbox.publish_raw("", "OrderImported", {"id": 1}, key="1")

    assert Order.objects.count() == 1
    assert not Message.objects.exists()


def test_an_uncommitted_message_is_not_there(connect):
    """Neither a query nor a consumer sees a message before its transaction commits."""
    publisher = connect()
    execute(publisher, "BEGIN")
    position = insert(publisher)
    seen_before_commit = stored(), drain("billing"), handled("billing")
    execute(publisher, "COMMIT")
    drain("billing")

    assert seen_before_commit == ([], 0, [])
    assert handled("billing") == [position]


def test_a_handler_sees_the_business_row_of_its_message():
    """The business row is committed with the message, so the handler finds it."""
    with transaction.atomic():
        order = Order.objects.create(reference=7)
        outbox.publish(OrderPlaced(order_id=order.pk))
    found = Order.objects.filter(pk__in=[int(message.key) for message in Message.objects.all()])

    assert list(found) == [order]


def test_a_publisher_that_dies_stores_nothing_and_holds_up_nobody(connect, observer):
    """A publisher whose session is cut in its transaction leaves no message, and its floor goes
    with it."""
    victim, publisher = connect(), connect()
    execute(victim, "BEGIN")
    insert(victim)
    pid = backend(victim)
    position = insert(publisher)
    terminate(observer, pid)
    wait_until(lambda: not execute(observer, "SELECT FROM pg_stat_activity WHERE pid = %s", pid))
    drain("billing")

    assert stored() == [position]
    assert handled("billing") == [position]
