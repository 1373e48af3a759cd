"""What django-pgpubsub's own tests assert holds here, too; and each of its known defects is a
test that passes."""

import datetime
from decimal import Decimal

import pytest
from django.db import connection, transaction

import outbox
from outbox import testing
from outbox.models import Cursor, Message, ParkedMessage
from tests.library.models import Author, Effect, Media, Post
from tests.support.captured import changes, operations, run_sql, stored
from tests.support.processes import manage, start_manage, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Rolls the enclosing block back."""


class Read(outbox.Event, channel="reads", kw_only=True):
    """A typed payload with defaults, and types that JSON does not have."""

    model_id: int
    date: datetime.date
    moment: datetime.datetime | None = None
    model_type: str = "Post"
    counts: dict[int, int] = {}
    flags: dict[str, bool] = {}
    by_day: dict[datetime.date, bool] = {}
    moments: dict[str, datetime.datetime] = {}
    days: list[datetime.date] = []
    floats: set[float] = set()
    texts: tuple[str, ...] = ()
    ratio: float = 0.5
    price: Decimal = Decimal("0.10")


class PostRead(Read, channel="reads", kw_only=True):
    """A channel's event that is derived from another."""

    reader: str = "nobody"


def post_authors():
    """The authors of the posts that the group `welcome` wrote, in the order of its work."""
    return list(Post.objects.order_by("pk").values_list("author", flat=True))


def test_an_insert_is_stored_and_has_its_effect_when_it_is_handled():
    """Nothing runs until a worker does; then the handler's own write is there."""
    author = Author.objects.create(name="Billy")
    before = Post.objects.count()
    payload = stored("authors")[0].payload
    testing.drain("welcome")

    assert before == 0
    assert payload.keys() >= {"old", "new"}
    assert post_authors() == [author.pk]


def test_an_insert_in_a_transaction_is_handled_after_its_commit(connect):
    """Until the commit there is nothing to handle."""
    with transaction.atomic():
        author = Author.objects.create(name="Billy")
        seen = manage("consume", "welcome", "--drain")
    testing.drain("welcome")

    assert "0 messages" in seen.stderr
    assert post_authors() == [author.pk]


def test_a_rolled_back_insert_has_no_message_and_no_effect():
    """Nothing is left of it."""
    with pytest.raises(Undo), transaction.atomic():
        Author.objects.create(name="Billy")
        raise Undo
    testing.drain("welcome")

    assert not Message.objects.exists()
    assert not Author.objects.exists()
    assert not Post.objects.exists()


def test_bulk_created_rows_are_handled_in_their_order():
    """One message and one effect for each row."""
    authors = Author.objects.bulk_create([Author(name="Billy"), Author(name="Craig")])
    testing.drain("welcome")

    assert post_authors() == [author.pk for author in authors]


@pytest.mark.parametrize("count", [2, 5])
def test_what_no_worker_heard_of_is_handled_by_the_next_one(count):
    """No notification is needed: a worker that starts later handles all, once."""
    authors = [Author.objects.create(name=f"Billy{n}") for n in range(count)]
    result = manage("consume", "welcome", "--drain")
    manage("consume", "welcome", "--drain")

    assert result.returncode == 0
    assert post_authors() == [author.pk for author in authors]


def names(pattern):
    return [f"{'poison' if kind == 'P' else 'good'} {n}" for n, kind in enumerate(pattern)]


@pytest.mark.parametrize("pattern", ["GPG", "GGPGPPPGG"])
def test_poison_is_kept_aside_and_the_good_are_handled(pattern):
    """Good and poison messages, mixed: the good ones are all handled, in order, the poison ones
    parked with their error and without effect."""
    for name in names(pattern):
        Media.objects.create(name=name)
    testing.drain("doubtful", raise_errors=False)

    good = [m.position for m in stored("media") if m.payload["new"]["name"].startswith("good")]
    parked = ParkedMessage.objects.filter(group="doubtful").order_by("position")
    assert list(Effect.objects.order_by("pk").values_list("position", flat=True)) == good
    assert [p.payload["new"]["name"] for p in parked] == [
        name for name in names(pattern) if name.startswith("poison")
    ]


def test_a_handler_that_raises_does_not_strand_the_messages_behind_it():
    """A running worker goes on to them by itself; nothing waits for a restart."""
    worker = start_manage("consume", "doubtful", "--poll-interval", "600")
    try:
        for name in names("PGPG"):
            Media.objects.create(name=name)
        wait_until(lambda: Effect.objects.count() == 2)
        wait_until(lambda: ParkedMessage.objects.filter(group="doubtful").count() == 2)
        is_alive = worker.poll() is None
    finally:
        worker.terminate()
        worker.communicate()

    assert is_alive


def test_several_processes_have_exactly_one_effect_per_row():
    """Four workers share a backlog; each message has one effect, whoever had it."""
    run_sql("INSERT INTO library_media (name) SELECT 'm' FROM generate_series(1, 600)")
    manage("consume", "scanners", "--drain", "--max-messages", "1")
    workers = [
        start_manage("consume", "scanners", "--drain", "--batch-size", "20") for _ in range(4)
    ]
    for worker in workers:
        worker.communicate()
    testing.drain("scanners")

    effects = Effect.objects.filter(group="scanners")
    assert sorted(effects.values_list("position", flat=True)) == [
        m.position for m in stored("media")
    ]
    assert effects.values("backend").distinct().count() > 1


def test_each_model_has_its_own_channel():
    """A change of one model is in its own channel only."""
    Media.objects.create(name="avatar.jpg", content_type="image/png", size=15000)

    assert [message.channel for message in Message.objects.all()] == ["media"]


def test_a_message_knows_when_it_was_made():
    """By the database's clock, for lag and for finding what is old."""
    (start,) = run_sql("SELECT clock_timestamp()")[0]
    Media.objects.create(name="x")
    (message,) = stored("media")

    assert start <= message.created_at


def test_a_published_payload_is_typed(declare_group):
    """Dates, sets, tuples, dates and numbers as keys, Decimals and defaults arrive as they are
    annotated; a derived event has the fields of its base."""
    day, moment = (
        datetime.date(2026, 2, 28),
        datetime.datetime(2026, 2, 28, 12, tzinfo=datetime.UTC),
    )
    seen = []
    group = declare_group("test-reads", "reads")
    group.handler(PostRead)(lambda event, message: seen.append(event))
    event = PostRead(
        model_id=1,
        date=day,
        moment=moment,
        counts={1: 2},
        flags={"a": True},
        by_day={day: False},
        moments={"x": moment},
        days=[day],
        floats={0.5, 1.5},
        texts=("a", "b"),
        price=Decimal("1.10"),
    )
    with transaction.atomic():
        outbox.publish(event)
    testing.drain(group)

    assert seen == [event]
    assert (seen[0].model_type, seen[0].reader, seen[0].ratio) == ("Post", "nobody", 0.5)


def test_two_listeners_of_one_channel_are_two_groups(declare_group):
    """Each has every message, and its own failures."""
    seen = []
    for name in ("test-one", "test-two"):
        group = declare_group(name, "reads")
        group.handler(Read)(lambda event, message: seen.append(message.group))
    with transaction.atomic():
        outbox.publish(Read(model_id=1, date=datetime.date(2026, 1, 1)))
    testing.drain("test-one")
    testing.drain("test-two")

    assert seen == ["test-one", "test-two"]


def test_a_handler_chooses_by_context():
    """The changes of other tenants pass by, without effect and without staying behind."""
    Author.objects.create(name="nonmatching")
    with transaction.atomic(), outbox.context(tenant="ours"):
        author = Author.objects.create(name="matching")
    testing.drain("tenants")

    assert post_authors() == [author.pk]
    assert Cursor.objects.get(group="tenants").position >= stored("authors")[-1].position


def test_a_handler_uses_the_context():
    """The context that the change was made in reaches the handler."""
    with transaction.atomic(), outbox.context(content="overriden content"):
        Author.objects.create(name="I like overrides")
    testing.drain("welcome")

    assert Post.objects.get().content == "overriden content"


def test_an_apostrophe_is_a_value():
    """In a captured row, a published payload, a key, a header; and no text is ever SQL."""
    text = "it's '||(SELECT 'injected')||' \" \\ -- ;"
    with transaction.atomic(), outbox.context(user=text):
        Author.objects.create(name=text)
        outbox.publish_raw("authors", text, {text: text}, key=text, headers={text: text})
    captured, published = stored("authors")

    assert captured.payload["new"]["name"] == published.payload[text] == text
    assert (published.type, published.key) == (text, text)
    assert published.headers == {"user": text, text: text}


def test_two_identical_payloads_in_one_transaction_are_both_handled(declare_group):
    """Nothing folds them into one: two messages, two calls."""
    seen = []
    group = declare_group("test-twins", "media", "reads")
    group.handler(outbox.Change[Media])(lambda event, message: seen.append(event.new.name))
    group.handler(Read)(lambda event, message: seen.append(event.model_id))
    media = Media.objects.create(name="a")
    with transaction.atomic():
        for name in ("a", "b", "a", "b", "a"):
            Media.objects.filter(pk=media.pk).update(name=name)
        outbox.publish(Read(model_id=1, date=datetime.date(2026, 1, 1)))
        outbox.publish(Read(model_id=1, date=datetime.date(2026, 1, 1)))
    testing.drain(group)

    assert seen == ["a", "a", "b", "a", "b", "a", 1, 1]


def test_a_row_of_100_kilobytes_is_written_and_handled():
    """Its insert, its update with both images, and its delete."""
    author = Author.objects.create(name="x" * 100_000)
    author.name = "y" * 100_000
    author.save()
    testing.drain("welcome")
    Post.objects.all().delete()
    author.delete()

    assert [len((event.new or event.old).name) for event in changes(Author, "authors")] == [
        100_000
    ] * 3


def test_two_operations_on_one_channel_reach_one_handler_once_each():
    """An insert, an update and a delete are three calls, each saying which it is."""
    media = Media.objects.create(name="good")
    media.size = 1
    media.save()
    media.delete()
    testing.drain("scanners")

    assert [operation for operation, _ in operations("media")] == ["insert", "update", "delete"]
    assert Effect.objects.filter(group="scanners").count() == 3


def test_a_captured_delete_deletes():
    """The trigger does not stand in the way of the row's own statement."""
    author = Author.objects.create(name="Ann")

    assert author.delete()[0] == 1
    assert not Author.objects.exists()


def test_the_order_within_a_transaction_is_kept(declare_group):
    """All messages of a transaction have one time, and still an order: that of the statements."""
    seen = []
    group = declare_group("test-order", "authors", "media")
    group.handler(outbox.Change[Author])(lambda event, message: seen.append(event.new.name))
    with transaction.atomic():
        for n in range(50):
            Author.objects.create(name=f"author {n}")
    testing.drain(group)

    assert seen == [f"author {n}" for n in range(50)]


def test_a_handler_that_writes_captured_rows_is_followed_at_once():
    """What a handler changes is captured in the handler's transaction, and handled by the next
    group without anything else happening."""
    author = Author.objects.create(name="Ann")
    testing.drain("welcome")

    assert operations("posts") == [("insert", str(Post.objects.get(author=author).pk))]
    assert not connection.in_atomic_block
