"""A captured model's channel as one of streams: the history of each row is numbered from 1."""

import threading

import pgtrigger
import pytest
from django.db import connection, connections, models, transaction

import outbox
from outbox import message_log
from outbox.changes import snapshot
from outbox.exceptions import InvalidCapture
from outbox.models import Stream
from outbox.sql import scalar
from outbox.testing import drain, isolated_groups
from tests.bank.models import Branch, Tariff
from tests.support.captured import run_sql, stored
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def versions(channel):
    """Of each message, in the log's order: its key, its version, and what was done."""
    return [(m.key, m.headers["stream_version"], m.payload["operation"]) for m in stored(channel)]


def in_background(function):
    """Run a function with a connection of its own."""

    def run():
        try:
            function()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def is_waiting():
    """Whether a session waits for the transaction that holds a row."""
    return run_sql(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted)"
    )[0][0]


def test_each_row_has_a_history_of_its_own():
    """Inserts, bulk updates and deletes of a row are versions 1, 2, 3 of its stream."""
    Tariff.objects.bulk_create([Tariff(region="eu"), Tariff(region="us")])
    Tariff.objects.update(price=5)
    Tariff.objects.filter(region="eu").delete()
    Tariff.objects.create(region="eu")

    assert sorted(versions("tariffs")) == [
        ("eu", 1, "insert"),
        ("eu", 2, "update"),
        ("eu", 3, "delete"),
        ("eu", 4, "insert"),
        ("us", 1, "insert"),
        ("us", 2, "update"),
    ]
    history = outbox.stream("tariffs", "eu")
    assert history.version == 4
    assert [message.stream_version for _, message in history.read()] == [1, 2, 3, 4]


def test_rows_of_one_key_are_numbered_in_the_order_of_the_log():
    """Three rows of one statement share a stream: no gap, no version twice."""
    Branch.objects.bulk_create(Branch(region=region, name="n") for region in "abaab")
    Branch.objects.update(name="m")

    for region, count in (("a", 6), ("b", 4)):
        of_region = [version for key, version, _ in versions("branches") if key == region]
        assert of_region == list(range(1, count + 1))
        assert outbox.stream("branches", region).version == count


def test_a_changed_key_ends_one_stream_and_goes_on_in_another():
    """A row that moves is told as a delete in the old stream and an insert in the new one."""
    Tariff.objects.create(region="old")
    Tariff.objects.filter(region="old").update(region="new")

    assert versions("tariffs") == [("old", 1, "insert"), ("old", 2, "delete"), ("new", 1, "insert")]


def test_a_rolled_back_change_leaves_no_gap():
    """The version is given again, after a roll-back to a savepoint as well."""
    Tariff.objects.create(region="eu")
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Tariff.objects.update(price=1)
            raise ZeroDivisionError
        Tariff.objects.update(price=2)

    assert versions("tariffs") == [("eu", 1, "insert"), ("eu", 2, "update")]


def test_writers_of_one_row_are_ordered_by_its_lock():
    """The version of a change is the value that the row had after it, for eight writers."""
    Tariff.objects.create(region="eu", price=1)

    def write():
        for _ in range(10):
            Tariff.objects.filter(region="eu").update(price=models.F("price") + 1)

    for thread in [in_background(write) for _ in range(8)]:
        thread.join(120)

    found = [(m.headers["stream_version"], m.payload["new"]["price"]) for m in stored("tariffs")]
    assert found == [(n, n) for n in range(1, 82)]


def test_a_statement_locks_its_streams_in_one_order():
    """Whatever the order of its rows: it waits for stream b with stream a locked."""
    Branch.objects.bulk_create([Branch(region="a", name="1"), Branch(region="b", name="1")])
    with transaction.atomic():
        Branch.objects.create(region="b", name="2")
        writer = in_background(
            lambda: Branch.objects.bulk_create([Branch(region=each, name="3") for each in "bca"])
        )
        wait_until(is_waiting)
        free = Stream.objects.select_for_update(skip_locked=True).filter(channel="branches")
        keys = sorted(free.values_list("key", flat=True))

    writer.join(120)
    assert keys == ["b"]
    assert outbox.stream("branches", "b").version == 3


def test_statements_over_the_same_keys_in_opposite_order_do_not_deadlock():
    """Two writers, each of whose statements touches both streams."""
    errors = []

    def write(order):
        try:
            for _ in range(30):
                Branch.objects.bulk_create([Branch(region=each, name="n") for each in order])
        except Exception as error:
            errors.append(error)

    for thread in [in_background(lambda order=order: write(order)) for order in ("ab", "ba")]:
        thread.join(120)

    assert errors == []
    assert {each.key: each.version for each in Stream.objects.all()} == {"a": 60, "b": 60}


def test_a_writer_waits_for_a_stream_without_holding_the_horizon_back():
    """The floor is taken after the streams are locked."""
    Branch.objects.create(region="a", name="1")
    with transaction.atomic():
        scalar("lock_stream", "default", channel="branches", key="a", for_write=True)
        writer = in_background(lambda: Branch.objects.create(region="a", name="2"))
        wait_until(is_waiting)
        before = message_log.last_position("default")
        horizon = message_log.horizon("default", ["branches"])

    writer.join(120)
    assert horizon == before
    assert outbox.stream("branches", "a").version == 2


def test_a_guard_counts_captured_changes_of_its_own_transaction():
    """They are no conflict; those of another transaction are."""
    Tariff.objects.create(region="eu")
    with transaction.atomic(), outbox.guard(("tariffs", "eu")) as seen:
        Tariff.objects.update(price=2)
        Tariff.objects.update(price=3)

    assert seen == {("tariffs", "eu"): 1}
    with (
        pytest.raises(outbox.StreamConflict),
        transaction.atomic(),
        outbox.guard(("tariffs", "eu")),
    ):
        in_background(lambda: Tariff.objects.update(price=4)).join(120)
    assert outbox.stream("tariffs", "eu").version == 4


def test_a_row_that_a_trigger_of_the_project_writes_again_has_no_gap():
    """The rows are read again, by a statement that is made then; versions stay whole."""
    Tariff.objects.create(region="eu")
    run_sql(
        "CREATE FUNCTION aa_own() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE bank_tariff SET price = price + 100 WHERE region = NEW.region; RETURN NULL; END $$"
    )
    run_sql(
        "CREATE TRIGGER aa_own AFTER UPDATE ON bank_tariff FOR EACH ROW "
        "WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION aa_own()"
    )
    try:
        Tariff.objects.update(price=1)
    finally:
        run_sql("DROP FUNCTION aa_own CASCADE")

    found = [(m.headers["stream_version"], m.payload["new"]["price"]) for m in stored("tariffs")]
    assert [version for version, _ in found] == [1, 2, 3]
    assert found[-1] == (3, 101)


def test_a_snapshot_goes_into_the_streams():
    """Each row's image is the next version of its stream."""
    with pgtrigger.ignore():
        Tariff.objects.bulk_create(Tariff(region=region) for region in ("eu", "us"))
    Tariff.objects.filter(region="eu").update(price=1)
    snapshot.run(Tariff)

    assert versions("tariffs") == [
        ("eu", 1, "update"),
        ("eu", 2, "snapshot"),
        ("us", 1, "snapshot"),
    ]


def test_a_handler_sees_the_version_beside_the_change():
    """It is no value of outbox.context()."""
    Tariff.objects.create(region="eu")
    with transaction.atomic(), outbox.context(user="ann"):
        Tariff.objects.update(price=2)
    seen = []
    with isolated_groups():
        group = outbox.ConsumerGroup("tariff book", channels=["tariffs"])
        group.handler(outbox.Change[Tariff])(
            lambda event, message: seen.append((message.stream_version, event.context))
        )
        drain(group)

    assert seen == [(1, {}), (2, {"user": "ann"})]


def test_headers_of_the_context_do_not_replace_the_version():
    """Not even those that another program sets by SQL."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT set_config('outbox.context', '{\"stream_version\": 77}', true)")
        Tariff.objects.create(region="eu")

    assert versions("tariffs") == [("eu", 1, "insert")]


@pytest.mark.parametrize("key", [(), "owner"])
def test_a_stream_without_keys_is_refused(key):
    """As soon as the trigger is rendered; it says which field may be NULL."""

    class Lease(models.Model):
        owner = models.TextField(null=True)

        class Meta:
            app_label = "nowhere"

    trigger = outbox.capture(channel="leases", key=key, stream=True)[0]
    with pytest.raises(InvalidCapture, match="needs a key"):
        trigger.compile(Lease)


def test_the_streams_of_a_capture_are_gapless_after_racing_bulk_writes():
    """Inserts, updates and deletes of many rows by four writers: versions 1 to n of each key."""
    Branch.objects.bulk_create(Branch(region=str(n % 5), name="n") for n in range(20))

    def write(number):
        for turn in range(6):
            Branch.objects.bulk_create(Branch(region=str(n % 5), name=number) for n in range(7))
            Branch.objects.filter(name=number).update(name=f"{number}")
            Branch.objects.filter(name=number, region=str(turn % 5)).delete()

    for thread in [in_background(lambda n=n: write(str(n))) for n in range(4)]:
        thread.join(120)

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.key, s.version, array_agg(m.version ORDER BY m.position) "
            "FROM outbox_stream AS s JOIN outbox_stream_message AS m USING (channel, key) "
            "GROUP BY 1, 2"
        )
        rows = cursor.fetchall()
    assert len(rows) == 5
    assert all(found == list(range(1, version + 1)) for _, version, found in rows)
    assert sum(version for _, version, _ in rows) == len(stored("branches"))
