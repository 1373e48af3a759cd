"""Batches of several ranges: exactly once, in order, and alone where something fails."""

from __future__ import annotations

import random

import pytest
from django.db import connection

import outbox
from outbox import observers
from outbox.consuming import claims, in_flight, shared, windows
from outbox.models import Cursor, Message, ParkedMessage
from outbox.operations import replay, scaling
from outbox.operations.reset_targets import RangePosition
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.shop.models import Effect
from tests.support.harness import Background, value
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

RANGES = 64


@pytest.fixture(autouse=True)
def _time_for_slow_machines(monkeypatch):
    """A shared batch takes as long as it needs, and so do all of a queue."""
    monkeypatch.setattr(shared, "SECONDS", 60.0)
    monkeypatch.setattr(claims, "QUEUE_SECONDS", 60.0)


@pytest.fixture
def many():
    """A group of many ranges whose handler stores what it did."""
    with isolated_groups():
        group = outbox.ConsumerGroup(
            "many",
            ["orders"],
            parallelism=RANGES,
            retry=outbox.Retry(max_attempts=2, base=0, jitter=False),
        )
        group.faults = {}

        @group.handler("OrderPlaced")
        def note(payload, message):
            Effect.objects.create(
                group="many",
                channel="orders",
                position=message.position,
                key=message.key,
                type=message.type,
                attempt=message.attempt,
            )
            if message.position in group.faults:
                raise group.faults[message.position]

        yield group


@pytest.fixture
def batches():
    """How many messages each batch moved past, in order."""
    moved = []
    note = lambda group, channel, count, seconds: moved.append(count)  # noqa: E731
    observers.after_batch.append(note)
    yield moved
    observers.after_batch.remove(note)


def handled():
    return list(Effect.objects.order_by("id").values_list("position", flat=True))


def assert_in_order():
    """Each key's messages were handled in the order of their positions."""
    last = {}
    for key, position in Effect.objects.order_by("id").values_list("key", "position"):
        assert last.get(key, 0) < position
        last[key] = position


def run_at(position, statement, group):
    """Let the handler of a group run a statement with the message at a position, after its work."""
    note = group.routes("orders")["OrderPlaced"].handler
    group._routes.clear()

    @group.handler("OrderPlaced")
    def handle(payload, message):
        note(payload, message)
        if message.position == position:
            with connection.cursor() as cursor:
                cursor.execute(statement)


def finish(worker, positions):
    """Let a worker run until these messages are handled or parked."""
    for _ in range(2_000):
        worker.run_once()
        parked = ParkedMessage.objects.values_list("position", flat=True)
        if set(positions) <= {*handled(), *parked}:
            return
    raise AssertionError("not handled")


def uncounted():
    """Messages at or below the cursors that no counter of the group knows."""
    return value(
        connection,
        """
        SELECT sum((
            SELECT count(*) FROM outbox_message AS m
            WHERE m.channel = c.channel AND m.slot BETWEEN slot_from AND slot_to
              AND m.position > counted_from AND m.position <= c.position
        ) - processed - skipped - parked) FROM outbox_cursor AS c
        """,
    )


def test_ranges_with_little_to_do_share_batches(many, batches):
    """Two hundred messages of 64 ranges need fewer batches than ranges, and each key is in order."""
    worker = Worker([many])
    worker.register()
    positions = publish_orders([*range(100), *range(100)])
    finish(worker, positions)

    assert sorted(handled()) == positions
    assert len([count for count in batches if count]) <= windows.WINDOWS + 4
    assert uncounted() == 0
    assert_in_order()


def test_ranges_without_messages_are_not_written(many):
    """A message of one key moves few cursors; when more come, none of theirs is missed."""
    worker = Worker([many])
    worker.register()
    finish(worker, publish_orders(range(300)))
    before = dict(Cursor.objects.values_list("id", "last_commit_at"))
    finish(worker, publish_orders([1]))
    moved = [each.id for each in Cursor.objects.all() if each.last_commit_at != before[each.id]]
    positions = publish_orders(range(300))
    finish(worker, positions)

    assert len(moved) == 1
    assert len(handled()) == len(set(handled())) == 601
    assert uncounted() == 0


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_failing_message_falls_back_to_its_own_range(many, is_batch):
    """All others are handled once; the failing one has its tries and is parked."""
    if is_batch:
        note = many.routes("orders")["OrderPlaced"].handler
        many._routes.clear()
        many.batch_handler("OrderPlaced")(
            lambda payloads, messages: [
                note(*each) for each in zip(payloads, messages, strict=True)
            ]
        )
    worker = Worker([many])
    worker.register()
    positions = publish_orders(range(200))
    bad = positions[120]
    many.faults[bad] = ValueError("never")
    finish(worker, positions)

    assert sorted(handled()) == [each for each in positions if each != bad]
    assert ParkedMessage.objects.get().position == bad
    assert ParkedMessage.objects.get().attempts == 2
    assert uncounted() == 0


def test_a_commit_that_fails_is_charged_to_its_message_alone(many):
    """A constraint that is checked at commit fails the batch; each range is then handled alone."""
    worker = Worker([many])
    worker.register()
    positions = publish_orders(range(200))
    run_at(positions[100], "INSERT INTO shop_orderline (order_id) VALUES (-1)", many)
    finish(worker, positions)

    assert sorted(handled()) == [each for each in positions if each != positions[100]]
    assert ParkedMessage.objects.get().position == positions[100]
    assert uncounted() == 0


def test_a_lost_session_is_charged_to_its_message_alone(many):
    """A message that ends the session of its batch is parked; nothing is lost or done twice."""
    worker = Worker([many])
    worker.register()
    positions = publish_orders(range(200))
    run_at(positions[100], "SELECT pg_terminate_backend(pg_backend_pid())", many)
    worker.run(max_messages=200)

    assert sorted(handled()) == [each for each in positions if each != positions[100]]
    assert ParkedMessage.objects.get().position == positions[100]
    assert uncounted() == 0


def test_a_reset_between_two_shared_batches_is_obeyed(many):
    """Ranges that were moved back while they were in a window are handled again from there."""
    worker = Worker([many], batch_size=20)
    worker.register()
    positions = publish_orders(range(300))
    while len(handled()) < 100:
        worker.run_once()
    replay.reset(many, position=0)
    before = len(handled())
    while len(handled()) < before + 300:
        worker.run_once()

    assert set(handled()) == set(positions)
    assert sorted(handled()[before:]) == positions
    assert uncounted() == 0


def test_two_workers_share_the_ranges(many):
    """Beside each other, with messages that come meanwhile, they handle each message once."""
    Worker([many]).register()
    positions = publish_orders(range(200))

    def work():
        Worker([many], batch_size=random.randint(5, 60)).run(until_idle=True)

    for _ in range(4):
        pair = [Background(work), Background(work)]
        positions += publish_orders(range(200))
        for each in pair:
            each.result()
    work()

    assert sorted(handled()) == sorted(positions)
    assert uncounted() == 0
    assert_in_order()


def test_leased_ranges_are_claimed_one_by_one(batches):
    """A group that runs its handlers outside the transaction has no shared batches."""
    with isolated_groups():
        seen = []
        group = outbox.ConsumerGroup(
            "leased_many", ["orders"], parallelism=RANGES, delivery="at_least_once"
        )
        group.handler("OrderPlaced")(lambda payload, message: seen.append(message.position))
        worker = Worker([group])
        worker.register()
        positions = publish_orders(range(100))
        for _ in range(300):
            worker.run_once()

    assert sorted(seen) == positions
    assert max(batches) < 20


def test_parked_keys_and_paused_groups_are_left_out(many):
    """A message behind a parked one of its key is parked too, while its neighbours share batches."""
    worker = Worker([many])
    worker.register()
    positions = publish_orders(range(200))
    many.faults[positions[120]] = outbox.PermanentError("never")
    finish(worker, positions)
    [behind] = publish_orders([120])
    others = publish_orders([*range(120), *range(121, 200)])
    finish(worker, [behind, *others])

    assert set(handled()) == {*positions, *others} - {positions[120]}
    assert len(handled()) == len(set(handled()))
    assert set(ParkedMessage.objects.values_list("position", flat=True)) == {positions[120], behind}
    assert uncounted() == 0


def test_one_range_that_is_reset_while_it_is_in_a_window_is_handled_again(many):
    """Its generation is another one when it has a message; the others go on."""
    worker = Worker([many], batch_size=20)
    worker.register()
    first = publish_orders(range(300))
    while len(handled()) < 150:
        worker.run_once()
    reset = Cursor.objects.filter(last_commit_at__isnull=False).order_by("-last_commit_at")[0]
    mine = Message.objects.filter(slot__range=(reset.slot_from, reset.slot_to))
    places = [
        RangePosition(
            "orders", each.slot_from, each.slot_to, 0 if each.id == reset.id else each.position
        )
        for each in Cursor.objects.all()
    ]
    replay.reset(many, places=places)
    before = len(handled())
    again = list(mine.values_list("position", flat=True))
    later = publish_orders(range(300))
    finish(worker, [*first, *later])
    for _ in range(200):
        if set(again) <= set(handled()[before:]):
            break
        worker.run_once()

    assert again
    assert set(again) <= set(handled()[before:])
    assert set(handled()) == {*first, *later}
    assert uncounted() == 0


def test_ranges_are_split_and_merged_while_windows_are_open(many):
    """Nothing is lost, doubled or out of order when an operator scales the group."""
    Worker([many]).register()
    positions = []
    for count in (128, 40, 90):
        positions += publish_orders(range(200))
        work = Background(lambda: Worker([many], batch_size=30).run(until_idle=True))
        scaling.scale(many, count)
        positions += publish_orders(range(200))
        work.result()
    Worker([many]).run(until_idle=True)

    assert sorted(handled()) == positions
    assert uncounted() == 0
    assert_in_order()


def test_a_message_in_flight_is_recorded_with_its_own_range(many, monkeypatch):
    """A supervisor that finds the process dead charges the message to its cursor."""
    own = in_flight.record_to(in_flight.new_file())
    monkeypatch.setattr(in_flight, "_own", own)
    seen = []
    route = many.routes("orders")["OrderPlaced"].handler
    many._routes.clear()

    @many.handler("OrderPlaced")
    def handle(payload, message):
        seen.append(own.read())
        route(payload, message)

    worker = Worker([many])
    worker.register()
    finish(worker, publish_orders(range(200)))
    slots = dict(Message.objects.values_list("position", "slot"))
    wrong = [
        each.position
        for each in seen
        if not Cursor.objects.filter(
            id=each.cursor,
            slot_from__lte=slots[each.position],
            slot_to__gte=slots[each.position],
        )
    ]

    assert len(seen) == 200
    assert wrong == []
    assert own.read().position == 0


def test_a_group_of_one_range_is_not_kept_waiting(many):
    """It has its turn between the windows of a group of many ranges."""
    single = outbox.ConsumerGroup("single", ["orders"])
    turns = []
    single.handler("OrderPlaced")(lambda payload, message: turns.append(len(handled())))
    worker = Worker([many, single], batch_size=20)
    worker.register()
    positions = publish_orders(range(300))
    while len(turns) < 300 or len(handled()) < 300:
        worker.run_once()

    assert sorted(handled()) == positions
    assert turns[-1] < 300
