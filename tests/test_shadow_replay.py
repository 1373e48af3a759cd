"""The procedure of docs/shadow-replay.md, as it stands there, under load."""

import re
from pathlib import Path

import pytest
from django.db import connection

import outbox
from outbox.models import Cursor, Message
from outbox.operations.audit import audit
from outbox.operations.status import describe
from outbox.worker import Worker
from tests.shop.models import Effect
from tests.support import flight_log
from tests.support.harness import Background, drain, handled
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = Path(__file__).parent.parent / "docs" / "shadow-replay.md"
FLIGHTS = 600


def page_code(name):
    """The Python block of the page that defines a function, and what it defines."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if f"def {name}(" in block)
    names = {"connection": connection}
    exec(compile(code, str(PAGE), "exec"), names)
    return names[name]


def group_of(name, projection, effects, parallelism):
    """A group that adds each arrival to a table, notes it, and warns unless it is repeated."""
    group = outbox.ConsumerGroup(
        name, channels=["flights"], parallelism=parallelism, on_unknown="skip"
    )

    @group.handler("Arrived")
    def add(payload, message):
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {projection['table']} VALUES (%s, %s)", [message.position, name]
            )
        if effects and not message.replayed:
            note("warnings", message)

    return group


def note(group, message):
    Effect.objects.create(
        group=group, channel="flights", position=message.position, type=message.type, backend=0
    )


live = {n: group_of(f"delays-{n}", {"table": "delay"}, True, n) for n in (1, 3)}
shadow = {n: group_of(f"delays-next-{n}", {"table": "delay_next"}, False, n) for n in (1, 3)}


@pytest.fixture
def tables():
    """The live projection and the one that the shadow builds; nothing is unique in them."""
    names = ("delay", "delay_next", "delay_old")
    with connection.cursor() as cursor:
        for name in names[:2]:
            cursor.execute(f"CREATE TABLE {name} (position bigint, handled_by text)")
    yield
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"DROP TABLE IF EXISTS {name}")


def rows(table):
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT position, handled_by FROM {table} ORDER BY position")
        return cursor.fetchall()


def publish_slowly(happened):
    """Some steps at a time, as the business goes on."""
    for start in range(0, len(happened), 20):
        flight_log.publish(happened[start : start + 20])


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_shadow_takes_over_without_loss_or_double(tables, parallelism, settings):
    """Every arrival is once in the new projection, and warned of once; the shadow's part ends where
    the live group's part begins."""
    settings.OUTBOX = {"POLL_INTERVAL": 0.1}  # raw INSERTs may send no NOTIFY
    happened = flight_log.steps(FLIGHTS)
    old, new = live[parallelism], shadow[parallelism]
    half = len(happened) // 2
    flight_log.publish(happened[:half])
    workers = [Worker([old, new], batch_size=17) for _ in range(2)]
    threads = [Background(each.run) for each in workers]
    publishing = Background(publish_slowly, happened[half:-20])
    try:
        wait_until(lambda: len(rows("delay_next")) > half // 4)
        page_code("take_over")(old.name, new.name, page_code("swap"))
        publishing.result()
        flight_log.publish(happened[-20:])
        wait_until(lambda: describe(old).summary.lag == 0)
    finally:
        for each in workers:
            each.stop()
        for thread in threads:
            thread.result()

    arrivals = list(
        Message.objects.filter(type="Arrived")
        .order_by("position")
        .values_list("position", flat=True)
    )
    slots = dict(Message.objects.values_list("position", "slot"))
    stands = Cursor.objects.filter(group=new.name)
    by_shadow = [
        position
        for position in arrivals
        if any(
            c.slot_from <= slots[position] <= c.slot_to and position <= c.position for c in stands
        )
    ]
    assert [position for position, _ in rows("delay")] == arrivals
    assert [position for position, name in rows("delay") if name == new.name] == by_shadow
    assert 0 < len(by_shadow) < len(arrivals)
    assert sorted(handled("warnings")) == arrivals
    assert audit(old).passed


def test_a_take_over_waits_for_a_live_group_that_is_behind(tables):
    """The effects between the live group and the shadow would be lost; so nothing is swapped, and
    the shadow goes on."""
    flight_log.publish(flight_log.steps(20))
    drain(shadow[1])
    Worker([live[1]], batch_size=5).drain(max_messages=5)
    impatient = page_code("take_over")
    impatient.__globals__["outbox"] = Impatient
    with pytest.raises(TimeoutError, match="is not where"):
        impatient("delays-1", "delays-next-1", page_code("swap"))

    assert rows("delay_next") != []
    assert describe("delays-next-1").summary.status != "paused"


class Impatient:
    """The page's code with less patience."""

    @staticmethod
    def wait_for(group, position, timeout):
        return outbox.wait_for(group, position, 0.1)
