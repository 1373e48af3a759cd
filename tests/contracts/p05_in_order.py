"""Promise 5: within a group, messages of one key are handled in position order, one at a time, by
any number of workers."""

import itertools
import random
import threading

import pytest
from django.db import connection, transaction

import outbox
from outbox.models import Cursor, Message
from tests.shop.events import OrderPlaced, OrderShipped
from tests.shop.models import Effect, Fault
from tests.support.harness import drain, due_now, exhaust, handled, insert, stored, value, worker
from tests.support.processes import wait_until
from tests.support.publishing import publish_order

pytestmark = pytest.mark.django_db(transaction=True)

WORKERS = 3


SLOT_EXPRESSION = """
    SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
    WHERE adrelid = 'outbox_message'::regclass AND attname = 'slot'
"""


def key_of_slot(slot):
    """A number that as a key has the wanted slot, found with the expression of the log's own
    generated column."""
    expression = value(connection, SLOT_EXPRESSION)
    keys = "SELECT number::text AS key FROM generate_series(1, 2000000) AS number"
    return value(
        connection, f"SELECT key::int FROM ({keys}) AS keys WHERE ({expression}) = {slot} LIMIT 1"
    )


def publish_randomly(messages, keys):
    """Publish messages of random keys in transactions of random size."""
    dice = random.Random(5)
    left = messages
    while left:
        size = min(left, dice.randint(1, 20))
        with transaction.atomic():
            for _ in range(size):
                kind = dice.choice([OrderPlaced, OrderShipped])
                outbox.publish(kind(order_id=dice.randint(1, keys)))
        left -= size


def compete(background, group, total, batch_size):
    """Let several workers, started together, handle everything; each has handled a batch before any
    handles its second. Return how many messages each advanced over."""
    together = threading.Barrier(WORKERS)

    def work():
        competitor = worker(group, batch_size=batch_size)
        together.wait(120)
        advanced = 0
        while not advanced:
            advanced = competitor.run_once() or 0
        together.wait(120)
        while Effect.objects.filter(group=group).count() < total:
            advanced += competitor.run_once() or 0
        return advanced

    return [competitor.result(120) for competitor in [background(work) for _ in range(WORKERS)]]


def keys_out_of_order(group):
    """The keys of which some message was handled after a later one."""
    return [
        key
        for key in Effect.objects.filter(group=group).values_list("key", flat=True).distinct()
        if (in_turn := handled(group, key=key)) != sorted(in_turn)
    ]


def test_one_range_is_handled_in_position_order(background):
    """A group with one slot range sees the whole channel in position order, however many workers
    compete."""
    publish_randomly(400, keys=10)
    compete(background, "billing", 400, batch_size=7)

    assert handled("billing") == stored()


def test_parallel_ranges_keep_the_order_of_each_key(background):
    """With four slot ranges and three workers each key is handled in position order, and never
    twice at a time."""
    publish_randomly(800, keys=40)
    advanced = compete(background, "crew", 800, batch_size=7)

    assert Cursor.objects.filter(group="crew", channel="orders").count() == 4
    assert sorted(handled("crew")) == stored()
    assert keys_out_of_order("crew") == []
    assert not Effect.objects.filter(overlapped=True).exists()
    assert all(advanced)


def test_parallel_ranges_divide_the_slots():
    """The ranges of a group neither overlap nor leave a slot out."""
    publish_order(1)
    drain("crew")
    cursors = Cursor.objects.filter(group="crew").order_by("slot_from")
    ranges = list(cursors.values_list("slot_from", "slot_to"))
    gaps = {later[0] - earlier[1] for earlier, later in itertools.pairwise(ranges)}

    assert ranges[0][0] == 0
    assert gaps == {1}
    assert ranges[-1][1] == 32767


@pytest.mark.parametrize("slot", [0, 8191, 8192, 16383, 16384, 24575, 24576, 32767])
def test_messages_at_the_edge_of_a_range_are_handled_once(slot):
    """The first and the last slot of each range belong to exactly one cursor."""
    key = key_of_slot(slot)
    with transaction.atomic():
        position = outbox.publish(OrderPlaced(order_id=key))
    drain("crew")

    assert Message.objects.get().slot == slot
    assert handled("crew") == [position]


def test_a_key_is_not_handled_by_two_workers_at_a_time(background, close_gate):
    """While a message of a key is being handled, no other worker handles a later one of that
    key."""
    gate = close_gate("crew")
    first = publish_order(1, "gate")
    claim = background(worker("crew").run_once)
    wait_until(gate.waiting)
    second = publish_order(1)
    exhaust(worker("crew"))
    handled_meanwhile = handled("crew")
    gate.open()
    claim.result()
    exhaust(worker("crew"))

    assert handled_meanwhile == []
    assert handled("crew") == [first, second]


def test_a_busy_range_holds_up_no_other_range(background, close_gate):
    """While one range's worker is busy, the keys of the other ranges are handled."""
    gate = close_gate("crew")
    busy_key, other_key = key_of_slot(1), key_of_slot(30000)
    busy = publish_order(busy_key, "gate")
    claim = background(worker("crew").run_once)
    wait_until(gate.waiting)
    other = publish_order(other_key)
    exhaust(worker("crew"))
    handled_meanwhile = handled("crew")
    gate.open()
    claim.result()

    assert handled_meanwhile == [other]
    assert handled("crew") == [other, busy] or sorted(handled("crew")) == [busy, other]


def test_a_failing_message_is_not_overtaken_by_its_key():
    """A later message of the key waits until the failing one is done."""
    Fault.objects.create(group="crew")
    failing = publish_order(1, "fragile")
    later = publish_order(1)
    for _ in range(3):
        drain("crew")
        due_now("crew")
    handled_meanwhile = handled("crew")
    Fault.objects.all().delete()
    drain("crew")

    assert handled_meanwhile == []
    assert handled("crew") == [failing, later]


def test_a_failing_range_holds_up_no_other_range():
    """The keys of other ranges go on while one range backs off."""
    Fault.objects.create(group="crew")
    publish_order(key_of_slot(1), "fragile")
    other = publish_order(key_of_slot(30000))
    drain("crew")

    assert handled("crew") == [other]


def test_a_backlog_of_one_range_does_not_starve_another():
    """A worker serves the range that waited longest, not the one that has most to do."""
    backlog = [publish_order(key_of_slot(1)) for _ in range(3)]
    other = publish_order(key_of_slot(30000))
    fair = worker("crew", batch_size=1)
    for _ in range(2):
        fair.run_once()

    assert sorted(handled("crew")) == [backlog[0], other]


def test_batches_of_one_keep_the_order(connect):
    """The order does not depend on the batch size."""
    session = connect()
    positions = [insert(session, order_id=number % 3) for number in range(20)]
    exhaust(worker("billing", batch_size=1))

    assert handled("billing") == positions


def test_messages_without_a_key_share_slot_zero():
    """A message without a key has slot 0, so a group with one range or with many handles them in
    order."""
    with transaction.atomic():
        positions = [outbox.publish_raw("countdowns", "Countdown", {"left": 0}) for _ in range(10)]
    drain("countdown")

    assert set(Message.objects.values_list("key", "slot")) == {(None, 0)}
    assert handled("countdown") == positions
