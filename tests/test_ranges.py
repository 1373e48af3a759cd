"""Slot ranges that are split and merged while workers run."""

from __future__ import annotations

import csv
import datetime
import gzip
import itertools
import random
import threading
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.db.models import F

from outbox import groups
from outbox.consuming import claims, cursors, outcomes, windows
from outbox.consuming.claims import Claims
from outbox.consuming.idle_ranges import IdleRanges, KnownRange
from outbox.exceptions import InvalidGroup, ScaleUnfinished
from outbox.models import Cursor, Message
from outbox.operations import redrives, replay, status
from outbox.operations import scaling as ranges
from outbox.worker import Worker
from tests.shop.models import Effect, Fault
from tests.support.amounts import amount
from tests.support.harness import due_now, execute, exhaust, handled, stored, value, worker
from tests.support.processes import wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

FLIGHTS = Path(__file__).parent.parent / "examples/flights/data/flights-2013-01.csv.gz"
LIVE_MESSAGES = amount(1_500, 27_000)
AHEAD = amount(500, 27_000)
"""How many messages publishers are ahead of the workers at most, about."""

UNCOUNTED = """
    SELECT sum(
        (SELECT count(*) FROM outbox_message AS m
         WHERE m.channel = c.channel AND m.slot BETWEEN slot_from AND slot_to
           AND m.position > counted_from AND m.position <= c.position)
        - processed - skipped
        - (SELECT count(*) FROM outbox_parked_message AS p
           WHERE p."group" = c."group" AND p.channel = c.channel
             AND p.slot BETWEEN slot_from AND slot_to AND p.position > counted_from)
    ) FROM outbox_cursor AS c WHERE c."group" = %s
"""


def shape(group):
    """The slots of a group's ranges, in order."""
    rows = Cursor.objects.filter(group=group).order_by("slot_from")
    return list(rows.values_list("slot_from", "slot_to"))


def slot_of(order_id):
    return value(connection, "SELECT (hashtextextended(%s, 0) & 32767)::int", str(order_id))


def key_in(first, last):
    """A number whose slot lies between two, both inclusive."""
    return next(number for number in range(1, 100_000) if first <= slot_of(number) <= last)


LEFT, RIGHT = (0, 16383), (16384, 32767)


@pytest.fixture
def keys():
    """A key of the lower half of the slots and one of the upper half."""
    return key_in(*LEFT), key_in(*RIGHT)


def move(group, slots, position):
    """Put one range of a group at a position."""
    Cursor.objects.filter(group=group, slot_from=slots[0]).update(
        position=position, max_position=position, generation=F("generation") + 1
    )


def uncounted(group):
    """By how many messages the counters of a group differ from its log: 0 in a sound one."""
    return value(connection, UNCOUNTED, group)


def test_a_split_keeps_the_position_of_both_parts():
    """All parts of a range that is cut stand where it stood, and nothing is handled again."""
    positions = publish_orders(range(50))
    exhaust(worker("billing"))
    ranges.scale("billing", 4)
    later = publish_orders(range(50))
    exhaust(worker("billing"))

    assert shape("billing") == cursors.slot_ranges(4)
    assert sorted(handled("billing")) == [*positions, *later]


def test_any_number_of_ranges_becomes_any_other():
    """Whatever the shape, the next one has equal ranges that cover all slots once."""
    publish_orders(range(20))
    exhaust(worker("billing"))
    dice = random.Random(7)
    counts = [8, 3, 16, 1, *(dice.randint(1, 40) for _ in range(12))]
    shapes = [
        (count, [(r.slot_from, r.slot_to) for r in ranges.scale("billing", count)])
        for count in counts
    ]

    assert [shape for _, shape in shapes] == [cursors.slot_ranges(count) for count, _ in shapes]
    assert handled("billing") == stored()


def test_ranges_apart_do_not_merge(keys):
    """Without a worker to bring neighbours together nothing merges, and all goes on as before."""
    positions = publish_orders([*keys, *keys])
    ranges.scale(groups.get("billing"), 2)
    move("billing", RIGHT, positions[2])

    with pytest.raises(ScaleUnfinished) as caught:
        ranges.scale("billing", 1, timeout=0.2)

    assert (caught.value.group, caught.value.channel, caught.value.to) == ("billing", "orders", 1)
    assert shape("billing") == [LEFT, RIGHT]
    assert not Cursor.objects.filter(hold_until__isnull=False).exists()
    exhaust(worker("billing"))
    assert sorted(handled("billing")) == [positions[0], positions[2], positions[3]]


def test_ranges_with_nothing_between_them_merge_at_once(keys):
    """A range that lags behind without a message of its own needs no worker to catch up."""
    left, right = keys
    publish_orders([left])
    exhaust(worker("billing"))
    ranges.scale("billing", 2)
    publish_orders([right, right])
    worker("billing").run_once()
    ahead = Cursor.objects.get(group="billing", slot_from=RIGHT[0]).position
    behind = Cursor.objects.get(group="billing", slot_from=0).position
    ranges.scale("billing", 1, timeout=0)

    assert behind < ahead
    assert Cursor.objects.get(group="billing").position == ahead


def test_the_range_ahead_waits_for_the_one_behind(keys, background):
    """While ranges merge, none moves past the place where they meet; then both go on as one."""
    left, right = keys
    publish_orders([left, right, left])
    ranges.scale(groups.get("billing"), 2)
    move("billing", RIGHT, stored()[1])
    scaling = background(ranges.scale, "billing", 1)
    wait_until(Cursor.objects.filter(group="billing", hold_until__isnull=False).exists)
    publish_orders([right])
    first = worker("billing").run_once()
    handled_first = handled("billing")
    scaling.result()
    exhaust(worker("billing"))

    assert (first, handled_first) == (1, stored()[:1])
    assert handled("billing") == [stored()[0], *stored()[2:]]
    assert shape("billing") == [(0, 32767)]


def test_a_hold_ends_by_itself(keys):
    """When the scaling process is killed, a range that it held goes on after a few seconds."""
    publish_orders(keys)
    ranges.scale(groups.get("billing"), 2)
    Cursor.objects.filter(group="billing").update(hold_position=0)
    connection.cursor().execute(
        "UPDATE outbox_cursor SET hold_until = clock_timestamp() + interval '1 hour'"
    )
    meanwhile = worker("billing").run_once()
    connection.cursor().execute("UPDATE outbox_cursor SET hold_until = clock_timestamp()")
    exhaust(worker("billing"))

    assert meanwhile is None
    assert sorted(handled("billing")) == stored()


def test_a_split_waits_for_the_batch_in_hand(background, close_gate):
    """A range is not reshaped under a running batch; its messages are handled once."""
    gate = close_gate("billing")
    publish_orders([1], "gate")
    publish_orders(range(20))
    claim = background(worker("billing").run_once)
    wait_until(gate.waiting)
    scaling = background(ranges.scale, "billing", 3)
    wait_until(
        lambda: value(
            connection, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
        )
    )
    shape_meanwhile = shape("billing")
    gate.open()
    claim.result()
    scaling.result()
    exhaust(worker("billing"))

    assert shape_meanwhile == [(0, 32767)]
    assert sorted(handled("billing")) == stored()


def test_a_failed_message_stays_with_its_slot(keys):
    """After a split only the part with the failed message backs off; after a merge the whole does."""
    left, right = keys
    Fault.objects.create(group="billing")
    [failed] = publish_orders([right], "fragile")
    exhaust(worker("billing"))
    ranges.scale("billing", 2)
    states = list(Cursor.objects.order_by("slot_from").values_list("attempts", "failed_position"))
    Cursor.objects.filter(attempts=1).update(retry_at="2100-01-01T00:00Z")
    publish_orders([left])
    exhaust(worker("billing"))
    handled_meanwhile = handled("billing")
    move("billing", LEFT, failed - 1)
    move("billing", RIGHT, failed - 1)
    Cursor.objects.filter(group="billing").update(max_position=F("position"))
    ranges.scale("billing", 1, timeout=0)

    assert states == [(0, None), (1, failed)]
    assert handled_meanwhile == stored()[1:]
    assert Cursor.objects.values_list("attempts", "failed_position").get() == (1, failed)


def test_parked_messages_are_counted_where_their_slots_are(keys):
    """A split finds the part that has parked messages, so that later ones of the key go behind them."""
    left, right = keys
    Fault.objects.create(group="billing")
    publish_orders([right], "fragile")
    for _ in range(groups.get("billing").retry.max_attempts):
        exhaust(worker("billing"))
        due_now("billing")
    ranges.scale("billing", 2)
    parked = list(Cursor.objects.order_by("slot_from").values_list("parked", flat=True))
    publish_orders([right, left])
    exhaust(worker("billing"))
    ranges.scale("billing", 1)

    assert parked == [0, 1]
    assert handled("billing") == [stored()[2]]
    assert Cursor.objects.get(group="billing").parked == 2
    assert redrives.list_parked("billing").count() == 2
    assert uncounted("billing") == 0


def test_the_counters_add_up_over_any_reshaping():
    """Messages up to the position = processed + skipped + parked, also after resets of single ranges."""
    dice = random.Random(11)
    for turn in range(12):
        publish_orders([dice.randint(1, 60) for _ in range(40)])
        ranges.scale(groups.get("billing"), dice.randint(1, 9), timeout=None)
        for row in Cursor.objects.filter(group="billing") if turn % 3 == 2 else ():
            place = dice.choice([0, *stored()][: turn * 20])
            Cursor.objects.filter(id=row.id).update(
                position=place,
                counted_from=place,
                processed=0,
                skipped=0,
                generation=F("generation") + 1,
            )
        if turn % 3 == 2:
            exhaust(worker("billing"))
        exhaust(worker("billing", batch_size=dice.randint(1, 30)))

        assert uncounted("billing") == 0


def test_a_merge_waits_until_replays_are_through(keys):
    """Ranges that were reset do not merge where one has seen messages and the other has not."""
    left, right = keys
    publish_orders([left, right])
    ranges.scale(groups.get("billing"), 2)
    exhaust(worker("billing"))
    publish_orders([right])
    worker("billing").run_once()
    replay.reset(groups.get("billing"), position=0)
    with pytest.raises(ScaleUnfinished):
        ranges.scale("billing", 1, timeout=0)
    exhaust(worker("billing"))
    ranges.scale("billing", 1)
    last = stored()[-1]
    row = Cursor.objects.get(group="billing")

    assert (row.position, row.max_position) == (last, last)


def test_ranges_that_were_reset_forwards_merge_there(keys):
    """Also when they had come to different positions before: none moves back."""
    left, right = keys
    publish_orders([left, right])
    ranges.scale(groups.get("billing"), 2)
    move("billing", LEFT, stored()[0])
    move("billing", RIGHT, stored()[1])
    publish_orders([left, right])
    replay.reset(groups.get("billing"), to_latest=True)
    ranges.scale("billing", 1, timeout=0)
    row = Cursor.objects.get(group="billing")

    assert row.position == stored()[-1]


def test_a_leased_range_is_not_cut_under_its_worker():
    """A range that is leased keeps its shape and its token until the lease is over."""
    publish_orders(range(10))
    Worker(["billing"]).register()
    Cursor.objects.update(lease_token=7, leased_by="elsewhere:1")
    connection.cursor().execute(
        "UPDATE outbox_cursor SET leased_until = clock_timestamp() + interval '1 hour'"
    )
    with pytest.raises(ScaleUnfinished):
        ranges.scale("billing", 2, timeout=0.1)
    before = Cursor.objects.values_list("slot_to", "lease_token").get()
    Cursor.objects.update(leased_until=None)
    ranges.scale("billing", 2)

    assert before == (32767, 7)
    assert shape("billing") == [LEFT, RIGHT]


def test_a_wrong_number_or_channel_is_refused():
    """A group has 1 to 1024 ranges in a channel that it reads; the error says what there is."""
    with pytest.raises(InvalidGroup, match="1 to 1024"):
        ranges.scale(groups.get("billing"), 0)
    with pytest.raises(InvalidGroup, match="channel 'ordres'; its channels: orders"):
        ranges.scale(groups.get("billing"), 2, channel="ordres")


def test_one_channel_is_scaled_alone():
    """With a channel named, the ranges of the group's other channels stay as they are."""
    ranges.scale(groups.get("audit"), 4, channel="payments")
    counts = {
        c: Cursor.objects.filter(group="audit", channel=c).count() for c in ("orders", "payments")
    }

    assert counts == {"orders": 1, "payments": 4}


def test_describe_shows_position_lag_and_owner(background, close_gate, keys):
    """Each range is shown with its lag, and with the session that is handling it."""
    left, right = keys
    ranges.scale(groups.get("crew"), 2)
    gate = close_gate("crew")
    publish_orders([left], "gate")
    publish_orders([right, right])
    claim = background(lambda: worker("crew").run(max_messages=1))
    [pid] = wait_until(gate.waiting)
    busy, waiting = status.describe("crew").ranges
    gate.open()
    claim.result()
    exhaust(worker("crew"))
    states = [each.status for each in status.describe("crew").ranges]

    assert (busy.status, busy.lag) == ("ok", 1)
    assert busy.owner.endswith(f", backend {pid}")
    assert (waiting.status, waiting.lag, waiting.owner) == ("ok", 2, "")
    assert states == ["ok", "ok"]


def test_one_worker_serves_all_ranges_in_turn():
    """With more pending in each range than a batch holds, every range has its turn before the next round."""
    publish_orders(range(400))
    ranges.scale(groups.get("billing"), 4)
    served = []
    one = worker("billing", batch_size=10)
    for _ in range(8):
        one.run_once()
        served.append(Cursor.objects.filter(group="billing").latest("last_served_at").slot_from)

    assert sorted(served[:4]) == [first for first, _ in cursors.slot_ranges(4)]
    assert served[4:] == served[:4]


def test_a_hot_key_does_not_starve_the_others(keys):
    """One message of another range is handled while thousands of one key are still pending."""
    hot, other = keys
    publish_orders([hot] * 200)
    [position] = publish_orders([other])
    ranges.scale(groups.get("billing"), 2)
    one = worker("billing", batch_size=10)
    one.run_once()
    one.run_once()

    assert position in handled("billing")
    assert len(handled("billing")) == 11


def test_groups_share_a_worker_evenly():
    """A group with one range gets as many batches of a worker as one with many ranges."""
    publish_orders(range(600))
    ranges.scale(groups.get("crew"), 16)
    ranges.scale(groups.get("billing"), 1)
    one = worker("crew", "billing", batch_size=10)
    for _ in range(12):
        one.run_once()

    assert (len(handled("crew")), len(handled("billing"))) == (60, 60)


def test_idle_ranges_are_looked_at_once(keys):
    """A range known to be idle is not searched again up to that horizon, and found when it has a message."""
    hot, other = keys
    ranges.scale(groups.get("billing"), 2)
    publish_orders([hot] * 30)
    one = worker("billing", batch_size=10)
    one.run_once()
    one.run_once()
    known = len(one.claims.idle)
    [late] = publish_orders([other])
    exhaust(one)

    assert known == 1
    assert late in handled("billing")


def test_an_idle_range_that_was_reset_is_looked_at_again(keys):
    """What a worker knows to be idle is forgotten when the range is moved back."""
    hot, other = keys
    ranges.scale(groups.get("billing"), 2)
    [first] = publish_orders([other])
    exhaust(one := worker("billing", batch_size=10))
    publish_orders([hot] * 30)
    one.run_once()
    one.run_once()
    known = len(one.claims.idle)
    replay.reset(groups.get("billing"), position=0)
    exhaust(one)

    assert known == 1
    assert handled("billing").count(first) == 2


def test_an_idle_range_that_was_reset_is_not_moved_to_the_horizon():
    """What was learnt about an older generation moves nothing: the reset has brought its messages
    back."""
    publish_orders([1])
    exhaust(worker("billing"))
    cursor = Cursor.objects.get(group="billing")
    execute(
        connection, "SELECT setval('outbox_message_position_seq', %s)", cursor.position + 50_000
    )
    horizon = cursor.position + 50_000
    idle = IdleRanges()
    idle.move({"orders": horizon}, (), value(connection, "SELECT outbox_log_identity_v1()"))
    idle.add(KnownRange(cursor.id, cursor.generation, "orders", 0, 32767), horizon)
    replay.reset(groups.get("billing"), position=0)
    moved_after_reset = cursors.advance_idle(idle, "default")
    position = Cursor.objects.get(id=cursor.id).position
    exhaust(worker("billing"))

    assert moved_after_reset == 0
    assert position < cursor.position
    assert len(handled("billing")) == 2


def test_a_range_of_the_queue_without_a_message_is_not_idle_up_to_a_newer_horizon(monkeypatch):
    """It has none up to the old horizons; the same statement reads newer ones, and others come soon."""
    monkeypatch.setattr(claims, "FEW", 0)
    monkeypatch.setattr(claims, "SCAN_PART", 1e-9)
    ranges.scale(groups.get("billing"), 4)
    keys = [key_in(8192 * part, 8192 * part + 8191) for part in range(4)]
    publish_orders(keys)
    exhaust(one := worker("billing"))
    second = Cursor.objects.get(group="billing", slot_from=8192)
    Cursor.objects.filter(id=second.id).update(
        last_served_at=F("last_served_at") + datetime.timedelta(1)
    )
    one.claims.idle.discard(second.id)
    publish_orders(keys[2:3])
    one.claims.drop_queue()
    one.run_once()
    queue = [each.range.id for waiting in one.claims._queue.values() for each in waiting]
    late = publish_orders(keys)
    for _ in range(12):
        one.run_once()

    assert second.id in queue
    assert set(late) <= set(handled("billing"))


def test_no_search_for_pending_messages_is_long(keys):
    """Past a hundred thousand positions without a message a range is moved on, and loses nothing."""
    hot, other = keys
    ranges.scale(groups.get("billing"), 2)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO outbox_message (channel, key, type, payload) SELECT 'orders', %s, 'Unknown', '{}'"
            " FROM generate_series(1, 320000)",
            [str(hot)],
        )
    [last] = publish_orders([other])
    searching = Cursor.objects.filter(slot_from__lte=slot_of(other), slot_to__gte=slot_of(other))
    Cursor.objects.exclude(id__in=searching).update(position=last)
    ends = []
    while searching.get().position < last:
        with transaction.atomic():
            claim, _ = Claims("default").claim([groups.get("billing")], 1, end_position=last)
            outcomes.write(outcomes.Outcome(claim, claim.limit), "default")
        ends.append(claim.limit)
    searching.update(position=0, generation=F("generation") + 1)
    exhaust(worker("billing"))

    assert max(later - earlier for earlier, later in itertools.pairwise(ends)) == 100_000
    assert ends[-1] == last
    assert handled("billing") == [last]


def tails(count):
    """The tail numbers of the flights of January 2013, as numbers."""
    with gzip.open(FLIGHTS, "rt") as lines:
        rows = list(csv.DictReader(lines))
    numbers = {tail: number for number, tail in enumerate(sorted({row["tailnum"] for row in rows}))}
    return [numbers[row["tailnum"]] for row in itertools.islice(itertools.cycle(rows), count)]


def publish_flights(share, enough):
    """Publish a share of the flights one by one, not too far ahead; begin again until it is enough."""
    for number, tail in enumerate(itertools.cycle(share)):
        if number % 25 == 0:
            wait_until(lambda: enough.is_set() or pending() < AHEAD, 240)
        if number >= len(share) and enough.is_set():
            return
        publish_orders([tail])


def pending():
    return Message.objects.count() - Effect.objects.count()


def out_of_order(group):
    """How many messages were handled after a later one of their key."""
    last, count = {}, 0
    for key, position in (
        Effect.objects.filter(group=group).order_by("id").values_list("key", "position")
    ):
        count += position < last.get(key, 0)
        last[key] = max(position, last.get(key, 0))
    return count


def test_the_number_of_ranges_changes_under_load(background, start_command):
    """1 -> 8 -> 3 -> 16 -> 1 with four publishers and four workers: none lost, doubled or out of order."""
    enough = threading.Event()
    flights = tails(LIVE_MESSAGES)
    workers = start_command("consume", "billing", "--processes", "4", "--batch-size", "50")
    publishers = [background(publish_flights, flights[part::4], enough) for part in range(4)]
    wait_until(Effect.objects.filter(group="billing").exists, 240)
    try:
        counts = []
        for to in (8, 3, 16, 1):
            done = Effect.objects.count()
            wait_until(lambda done=done: Effect.objects.count() > done + 100, 240)
            counts.append(len(ranges.scale("billing", to, timeout=240)))
    finally:
        enough.set()
    for publisher in publishers:
        publisher.result(120)
    wait_until(lambda: not any(each.lag for each in status.describe("billing").ranges), timeout=120)
    workers.terminate()
    workers.communicate(timeout=120)
    published, done = set(stored()), handled("billing")
    faults = {
        "lost": len(published.difference(done)),
        "doubled": len(done) - len(set(done)),
        "out of order": out_of_order("billing"),
    }

    assert counts == [8, 3, 16, 1]
    assert faults == {"lost": 0, "doubled": 0, "out of order": 0}
    assert not Effect.objects.filter(overlapped=True).exists()
    assert uncounted("billing") == 0
    assert workers.returncode == 0


def test_a_drain_goes_on_past_ranges_that_another_session_holds(connect, monkeypatch):
    """The next ranges of the queue are in use: those behind them are handled, not left."""
    monkeypatch.setattr(windows, "LEAST_RANGES", 1_000)
    monkeypatch.setattr(claims, "QUEUE_SECONDS", 60.0)
    ranges.scale(groups.get("billing"), 100)
    keys = [key_in(each.slot_from, each.slot_to) for each in Cursor.objects.filter(group="billing")]
    positions = publish_orders(keys)
    one = worker("billing")
    one.run_once()
    queue = [each.range.id for each in one.claims._queue["billing"]]
    session = connect()
    execute(session, "BEGIN")
    held = "SELECT id FROM outbox_cursor WHERE id = ANY(%s) FOR UPDATE"
    assert len(execute(session, held, queue[:50])) == 50
    while one.run_once() is not None:
        pass
    done = len(handled("billing"))
    execute(session, "ROLLBACK")
    one.claims.drop_queue()
    exhaust(one)

    assert done == 50
    assert sorted(handled("billing")) == sorted(positions)
