"""A snapshot and the changes that follow it make a projection that equals the table, whatever is
written meanwhile and however often the snapshot is interrupted."""

import contextlib
import random
import threading

import pgtrigger
import pytest
from django.db import connection, transaction

import outbox
from outbox import testing
from outbox.changes import snapshot
from outbox.exceptions import InvalidSnapshot
from outbox.models import Message, Snapshot
from tests.library.models import (
    Author,
    Book,
    Child,
    Counter,
    CounterCopy,
    Media,
    Membership,
    Post,
    Reader,
    Shelf,
)
from tests.support.amounts import amount
from tests.support.captured import changes, operations, run_sql, stored
from tests.support.harness import execute, waiting_for_locks
from tests.support.processes import manage, start_process, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

ROWS, CHUNK = amount(2_000, 1_000_000), amount(200, 500)
"""Of the projection; ten chunks are enough for a kill in the first and one in the second half."""
RUN = f"""
import django; django.setup()
from outbox.changes import snapshot
from tests.library.models import Counter
snapshot.run(Counter, chunk_size={CHUNK})
"""
HELD = f"""
import threading
import django; django.setup()
from outbox.changes import snapshot
from tests.library.models import Counter

def wait_near_the_end(progress):
    if progress.emitted >= {ROWS * 9 // 10}:
        threading.Event().wait()

snapshot.run(Counter, chunk_size={CHUNK}, progress=wait_near_the_end)
"""
"""The same, but for its end: it can be killed before that however slow the killer is."""


class Interrupted(Exception):
    """Ends a run between two chunks."""


def make_counters(count):
    """Rows from before the capture: the log knows nothing of them."""
    with pgtrigger.ignore("library.Counter:outbox_counters_insert"):
        run_sql(
            f"INSERT INTO library_counter (value, note) SELECT n, 'it''s' FROM generate_series(1, {count}) AS n"
        )
    assert not Message.objects.exists()


def interrupt(after):
    """A progress function that ends the run when that many messages are stored."""

    def see(progress):
        if progress.emitted >= after:
            raise Interrupted

    return see


def table(model):
    return set(model.objects.values_list("pk", "value", "note"))


def test_each_row_is_one_message_in_the_order_of_the_keys():
    """Of operation "snapshot", with the key and the type of the row's other messages."""
    make_counters(2500)
    emitted = snapshot.run(Counter)

    events = changes(Counter, "counters")
    assert emitted == 2500
    assert {(event.operation, event.old) for event in events} == {("snapshot", None)}
    assert [event.new.pk for event in events] == list(
        Counter.objects.order_by("pk").values_list("pk", flat=True)
    )
    assert [message.key for message in stored("counters")] == [
        str(event.new.pk) for event in events
    ]
    assert {message.type for message in stored("counters")} == {"library.Counter"}


def test_an_interrupted_run_is_gone_on_with():
    """No row is stored twice and none is left out, in whatever transaction it ended."""
    make_counters(1000)
    for after in (100, 350):
        with pytest.raises(Interrupted):
            snapshot.run(Counter, chunk_size=100, progress=interrupt(after))
    emitted = snapshot.run(Counter, chunk_size=100)

    keys = [int(message.key) for message in stored("counters")]
    assert emitted == len(keys) == 1000
    assert keys == sorted(set(keys))


def test_a_finished_snapshot_begins_anew():
    """The next run stores all rows again, and so does restart=True in the middle of one."""
    make_counters(10)
    snapshot.run(Counter)
    snapshot.run(Counter)
    with pytest.raises(Interrupted):
        snapshot.run(Counter, chunk_size=5, progress=interrupt(5))
    emitted = snapshot.run(Counter, restart=True)

    assert emitted == 10
    assert len(stored("counters")) == 10 + 10 + 5 + 10
    assert Snapshot.objects.get().finished_at is not None


def test_progress_is_told_after_each_chunk():
    """How many messages, of about how many rows, and whether that was all."""
    make_counters(250)
    run_sql("ANALYZE library_counter")
    seen = []
    snapshot.run(Counter, chunk_size=100, progress=seen.append)

    assert [p.emitted for p in seen] == [100, 200, 250, 250]
    assert [p.is_finished for p in seen] == [False, False, False, True]
    assert {p.total for p in seen} == {250}


def test_where_chooses_rows():
    """By Django lookups, over relations, too."""
    for name in ("Ann", "Bob"):
        author = Author.objects.create(name=name)
        Post.objects.create(author=author, content=name, date="2026-01-01T00:00:00Z")
    snapshot.run(Post, {"author__name": "Ann"}, channel="posts")
    snapshot.run(Post, {"author__isnull": True}, channel="ratings")

    contents = [
        event.new.content for event in changes(Post, "posts") if event.operation == "snapshot"
    ]
    assert contents == ["Ann"]
    assert "snapshot" not in dict(operations("ratings"))


def test_where_on_the_command_line_is_lookups():
    """Values are JSON where they can be, else text; never SQL."""
    where = snapshot.parse_where(
        ["active=true", "age__gte=5", "name=O'Neil; --", "pk__in=[1,2]", "a=b=c"]
    )

    assert where == {
        "active": True,
        "age__gte": 5,
        "name": "O'Neil; --",
        "pk__in": [1, 2],
        "a": "b=c",
    }
    with pytest.raises(outbox.OutboxError, match="field=value"):
        snapshot.parse_where(["active"])


def test_an_unfinished_snapshot_keeps_its_conditions():
    """To go on with others would leave rows out."""
    make_counters(10)
    with pytest.raises(Interrupted):
        snapshot.run(Counter, {"value__gt": 2}, chunk_size=2, progress=interrupt(2))
    with pytest.raises(outbox.OutboxError, match="unfinished"):
        snapshot.run(Counter)

    assert snapshot.run(Counter, {"value__gt": 2}) == 8


def test_key_fields_and_condition_are_those_of_the_capture():
    """What a consumer sees of a row does not depend on how it was told."""
    Book.objects.bulk_create([Book(title="100 % 'out'", status=s) for s in ("draft", "it's out")])
    Post.objects.create(content="secret", date="2026-01-01T00:00:00Z", rating="1.5")
    Membership.objects.create(club="a:b", number=1)
    Membership.objects.create(club="a:b", number=2)
    Child.objects.create(title="t", toy="y")
    Reader.objects.create(username="ann", password="secret")
    before = Message.objects.latest("position").position
    for model, channel in (
        (Book, "published"),
        (Book, "titles"),
        (Post, "ratings"),
        (Child, "children"),
        (Reader, "readers"),
    ):
        snapshot.run(model, channel=channel)
    snapshot.run(Membership, chunk_size=1)

    told = {}
    for message in Message.objects.filter(position__gt=before).order_by("position"):
        told.setdefault(message.channel, []).append((message.key, message.payload["new"]))
    for channel, messages in told.items():
        inserted = Message.objects.filter(channel=channel, position__lte=before).order_by(
            "position"
        )
        assert messages == [(m.key, m.payload["new"]) for m in inserted]
    assert set(told) == {"published", "titles", "ratings", "children", "readers", "memberships"}


def test_a_row_in_a_writers_hands_is_waited_for_alone(connect, background):
    """The snapshot holds no lock while it waits, so the writer can go on to any other row; then its
    image is what the writer committed, at a higher position."""
    make_counters(10)
    pks = sorted(Counter.objects.values_list("pk", flat=True))
    writer, observer = connect(), connect()
    execute(writer, "BEGIN")
    execute(writer, "UPDATE library_counter SET value = -1 WHERE id = %s", pks[5])
    run = background(snapshot.run, Counter)
    wait_until(lambda: waiting_for_locks(observer))
    execute(writer, "SET LOCAL lock_timeout = '5s'")
    execute(writer, "UPDATE library_counter SET value = -1")
    execute(writer, "COMMIT")
    emitted = run.result()

    events = [(e.operation, e.new.pk, e.new.value) for e in changes(Counter, "counters")]
    assert emitted == 10
    assert [e for e in events if e[0] == "snapshot"][:5] == [
        ("snapshot", pk, n) for n, pk in enumerate(pks[:5], 1)
    ]
    assert [e for e in events if e[0] == "snapshot"][5:] == [("snapshot", pk, -1) for pk in pks[5:]]
    assert events.index(("update", pks[5], -1)) < events.index(("snapshot", pks[5], -1))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM library_counter WHERE id = %s",
        "UPDATE library_counter SET value = 99 WHERE id = %s",
    ],
)
def test_a_row_that_is_gone_after_the_wait_is_passed_by(connect, background, statement):
    """Deleted by the writer that held it, or no longer among those that where chooses."""
    make_counters(3)
    pk = sorted(Counter.objects.values_list("pk", flat=True))[1]
    writer, observer = connect(), connect()
    execute(writer, "BEGIN")
    execute(writer, statement, pk)
    run = background(snapshot.run, Counter, {"value__lt": 50})
    wait_until(lambda: waiting_for_locks(observer))
    execute(writer, "COMMIT")

    assert run.result() == 2
    assert str(pk) not in [
        key for operation, key in operations("counters") if operation == "snapshot"
    ]


def test_a_change_after_the_chunk_has_a_higher_position(connect, background):
    """A writer waits for the chunk that holds its row, then tells its change behind the image."""
    make_counters(3)
    writer = connect()

    def write_then_go_on(progress):
        execute(writer, "UPDATE library_counter SET value = value + 100")

    snapshot.run(Counter, chunk_size=2, progress=write_then_go_on)

    values = {}
    for event in changes(Counter, "counters"):
        values[event.new.pk] = event.new.value
    assert values == dict(Counter.objects.values_list("pk", "value"))


def test_the_session_may_default_to_repeatable_read(connect, background):
    """Each chunk reads what was committed before it, a row that it waited for included."""
    make_counters(3)
    writer, observer = connect(), connect()
    name = connection.settings_dict["NAME"]
    run_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    try:
        execute(writer, "BEGIN")
        execute(writer, "UPDATE library_counter SET value = -1 WHERE value = 2")
        run = background(snapshot.run, Counter)
        wait_until(lambda: waiting_for_locks(observer))
        execute(writer, "COMMIT")
        emitted = run.result()
    finally:
        run_sql(f"ALTER DATABASE {name} RESET default_transaction_isolation")

    images = [e.new.value for e in changes(Counter, "counters") if e.operation == "snapshot"]
    assert (emitted, images) == (3, [1, -1, 3])


def test_two_runs_at_once_share_the_work(background):
    """The second one goes on where the first one is, and no row is stored twice."""
    make_counters(3000)
    runs = [background(snapshot.run, Counter, None) for _ in range(2)]
    for run in runs:
        run.result()

    keys = [message.key for message in stored("counters")]
    assert len(set(keys)) == 3000


def test_a_restart_beside_a_running_snapshot_ends_that_one_with_a_clear_error(background):
    """The new run stores every row; the old one says that it was restarted, and stores no more."""
    make_counters(30)

    def restart(progress):
        background(lambda: snapshot.run(Counter, restart=True)).result()

    with pytest.raises(InvalidSnapshot, match="was restarted by another process"):
        snapshot.run(Counter, chunk_size=10, progress=restart)

    assert len(stored("counters")) == 10 + 30


def test_a_snapshot_without_its_stream_is_refused():
    """Not captured, captured in several channels, or the triggers are not there: changes would be
    lost, so nothing is stored."""
    with pytest.raises(outbox.OutboxError, match="not captured"):
        snapshot.run(Shelf)
    with pytest.raises(outbox.OutboxError, match="posts, ratings: name one"):
        snapshot.run(Post)
    with pytest.raises(outbox.OutboxError, match="cannot be chosen"):
        snapshot.run(Media, {"nmae": 1})
    with transaction.atomic(), pytest.raises(outbox.OutboxError, match="outside atomic"):
        snapshot.run(Media)
    with (
        pgtrigger_disabled("media_update"),
        pytest.raises(outbox.OutboxError, match="not installed and enabled"),
    ):
        snapshot.run(Media)


@contextlib.contextmanager
def pgtrigger_disabled(name):
    """Disable a trigger of Media for a while."""
    (trigger,) = (t for t in Media._meta.triggers if name in t.name)
    trigger.disable(Media)
    try:
        yield
    finally:
        trigger.enable(Media)


class Writer(threading.Thread):
    """Updates, inserts and deletes rows at random, several to a transaction, until told to stop.

    Its rows are its own, so that no other writer can deadlock with it.
    """

    def __init__(self, number):
        super().__init__(daemon=True)
        self.number, self.stopping = number, False
        self.transactions, self.error = 0, None
        self.start()

    def run(self):
        dice = random.Random(self.number)
        try:
            own = [
                pk for pk in Counter.objects.values_list("pk", flat=True) if pk % 4 == self.number
            ]
            while not self.stopping:
                with transaction.atomic():
                    for _ in range(dice.randint(1, 5)):
                        self.write(dice, own)
                self.transactions += 1
        except BaseException as error:
            self.error = error
        finally:
            connection.close()

    def write(self, dice, own):
        kind = dice.random()
        if kind < 0.1:
            own.append(Counter.objects.create(value=0, note=f"new by {self.number}").pk)
        elif kind < 0.15:
            Counter.objects.filter(pk=own.pop(dice.randrange(len(own)))).delete()
        else:
            Counter.objects.filter(pk=dice.choice(own)).update(
                value=dice.randrange(10**6), note=f"by {self.number}"
            )


def test_a_projection_of_snapshot_and_stream_equals_the_table():
    """Four writers work all the time; the snapshot is killed and gone on with twice; then what a
    consumer made of the messages is the table, exactly."""
    make_counters(ROWS)
    writers = [Writer(number) for number in range(4)]
    try:
        for share in (0.2, 0.6):
            run = start_process("-c", HELD)
            wait_until(lambda share=share: emitted() >= share * ROWS, timeout=240)
            run.kill()
            run.communicate()
        assert emitted() < ROWS * 0.95
        run = start_process("-c", RUN)
        _, errors = run.communicate()
        wait_until(lambda: all(writer.transactions > 10 or writer.error for writer in writers))
    finally:
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join(120)
    testing.drain("copy")

    assert (run.returncode, errors) == (0, "")
    assert [writer.error for writer in writers] == [None] * 4
    assert table(CounterCopy) == table(Counter)
    assert len(table(Counter)) > ROWS / 2
    print(
        f"{ROWS} rows, {sum(w.transactions for w in writers)} transactions, {Message.objects.count()} messages"
    )


def emitted():
    state = Snapshot.objects.first()
    return state.emitted if state else 0


def test_the_command_takes_a_snapshot():
    """`outbox snapshot app.Model --where … --channel …` tells how far it is on stderr."""
    make_counters(30)
    result = manage("outbox", "snapshot", "library.Counter", "--where", "value__gt=20", "--json")
    wrong = manage("outbox", "snapshot", "library.Nothing")

    assert (result.returncode, wrong.returncode) == (0, 2)
    assert '"emitted": 10' in result.stdout
    assert "library.Nothing" in wrong.stderr
    assert len(stored("counters")) == 10
