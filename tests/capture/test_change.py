"""Change: what a handler gets of a captured row is what the ORM would have loaded."""

import datetime
import json
import math
import uuid
from decimal import Decimal

import pytest
from django.contrib.auth.models import User
from django.contrib.postgres.fields import ArrayField
from django.db import connection, models, transaction
from django.db.backends.postgresql.psycopg_any import (
    DateRange,
    DateTimeTZRange,
    NumericRange,
)
from django.test.utils import isolate_apps

import outbox
from outbox.changes import row_images
from outbox.exceptions import UndecodableMessage
from outbox.messages import Message, decode
from outbox.testing import published
from tests.library.models import (
    AbstractParent,
    Author,
    Book,
    Child,
    ChildOfAbstract,
    Media,
    Membership,
    Parent,
    Post,
    Reader,
    Shelf,
    Specimen,
)
from tests.support.captured import changes, run_sql, stored
from tests.support.harness import drain

pytestmark = pytest.mark.django_db(transaction=True)

UTC = datetime.UTC
MOMENT = datetime.datetime(2026, 2, 28, 23, 59, 59, 123456, UTC)

VALUES = [
    ("small", [-32768, 0, 32767]),
    ("big", [-(2**63), 2**63 - 1]),
    ("flag", [True, False]),
    ("text", ["", "it's", '"quoted"', "a\\b", "$$", "\n\t\x01", "☃ 🐘", "null", "%s {x}"]),
    ("char", ["NaN", "1"]),
    ("slug", ["a-b"]),
    ("email", ["a@example.org"]),
    ("file", ["", "a/b.txt"]),
    (
        "decimal",
        [
            Decimal("0.1"),
            Decimal("123456789012345678901234567890.000000000000000000000000000001"),
            Decimal("-5"),
        ],
    ),
    ("float", [0.1, -1e300, 5.0, math.inf, -math.inf, math.nan, 1 / 3]),
    ("date", [datetime.date(1, 1, 1), datetime.date(2026, 12, 31)]),
    ("time", [datetime.time(0, 0), datetime.time(23, 59, 59, 999999), datetime.time(1, 2, 3, 40)]),
    (
        "moment",
        [
            MOMENT,
            MOMENT.replace(year=1800),
            MOMENT.replace(microsecond=0),
            MOMENT.replace(microsecond=100),
        ],
    ),
    (
        "duration",
        [
            datetime.timedelta(0),
            datetime.timedelta(days=-1, microseconds=1),
            datetime.timedelta(days=400, hours=-23, seconds=0.5),
            datetime.timedelta(hours=-5),
            datetime.timedelta(days=3),
            datetime.timedelta(microseconds=-1),
        ],
    ),
    ("binary", [b"", b"\x00\xff\\'", bytes(range(256))]),
    ("address", ["192.0.2.1", "2001:db8::1"]),
    (
        "data",
        [{"a": [None, 1, 1.5, {"b": None}], "c": "☃"}, [], "text", 0, 1e20, True, [[None]], {}],
    ),
    ("lower", ["SHOUTED"]),
    ("numbers", [[], [1, None, 3]]),
    ("grid", [[[datetime.timedelta(days=1), None], [None, datetime.timedelta(seconds=1)]]]),
    ("documents", [[{"a": None}, [1.5, None], "x"], []]),
    ("prices", [[Decimal("0.100000000000001"), None]]),
    (
        "whole_range",
        [
            NumericRange(1, 10),
            NumericRange(None, 5),
            NumericRange(1, None),
            NumericRange(empty=True),
            NumericRange(None, None),
        ],
    ),
    ("decimal_range", [NumericRange(Decimal("0.1"), Decimal("1234567890123456789012.34"), "(]")]),
    (
        "date_range",
        [
            DateRange(datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)),
            DateRange(None, datetime.date(2026, 2, 1)),
        ],
    ),
    (
        "moment_range",
        [
            DateTimeTZRange(MOMENT, MOMENT + datetime.timedelta(days=1), "[]"),
            DateTimeTZRange(MOMENT, None),
        ],
    ),
]


def plain(value):
    """Values as something that compares by value and type; nan equals nan, bytes a memoryview."""
    if isinstance(value, memoryview):
        value = bytes(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in VALUES for value in [*values, None]],
    ids=lambda value: repr(value)[:30],
)
def test_a_field_comes_back_as_the_orm_loads_it(name, value):
    """Each type of field, with its edges and NULL, has the very value and type."""
    specimen = Specimen.objects.create(**{name: value})
    loaded = Specimen.objects.get(pk=specimen.pk)
    (event,) = changes(Specimen, "specimens")

    assert plain(getattr(event.new, name)) == plain(getattr(loaded, name))
    assert event.new.pk == specimen.pk and type(event.new.pk) is uuid.UUID
    assert not event.new.get_deferred_fields()


@pytest.mark.parametrize(
    "setting",
    [
        "TimeZone = 'Asia/Kathmandu'",
        "IntervalStyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = 3",
        "TimeZone = 'Europe/Amsterdam'",
    ],
)
def test_settings_of_the_writing_session_do_not_matter(setting):
    """Another program's session may write times, intervals and binaries in its own way."""
    values = {name: values[-1] for name, values in VALUES if name not in ("float", "lower")}
    values["moment"] = MOMENT.replace(year=1880)
    values["duration"] = datetime.timedelta(days=-3, hours=5, microseconds=7)
    with transaction.atomic():
        run_sql(f"SET LOCAL {setting}")
        Specimen.objects.create(**values)
    loaded = Specimen.objects.get()
    (event,) = changes(Specimen, "specimens")

    for name in values:
        assert plain(getattr(event.new, name)) == plain(getattr(loaded, name)), name


def test_an_interval_in_months_and_years_counts_as_the_drivers_count():
    """30 days a month, 365 a year: what other programs wrote is read as the ORM reads it."""
    run_sql(
        "INSERT INTO library_specimen (id, duration) VALUES (gen_random_uuid(), '-1 year 2 mons 3 days -04:05:06.7')"
    )
    (event,) = changes(Specimen, "specimens")

    assert event.new.duration == Specimen.objects.get().duration


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("moment", "infinity", datetime.datetime.max.replace(tzinfo=datetime.UTC)),
        ("moment", "-infinity", datetime.datetime.min.replace(tzinfo=datetime.UTC)),
        ("date", "infinity", datetime.date.max),
        ("date", "-infinity", datetime.date.min),
        ("time", "24:00", datetime.time(0)),
    ],
)
def test_times_that_python_does_not_have_come_as_the_nearest(name, text, expected):
    """PostgreSQL's infinity is the last or first time of Python's, and 24:00 is midnight: as psycopg2
    loads them."""
    Specimen.objects.create()
    run_sql(f"UPDATE library_specimen SET {name} = '{text}'")
    event = changes(Specimen, "specimens")[-1]

    assert getattr(event.new, name) == expected


def test_nan_that_stays_nan_is_no_change():
    """NaN is not equal to itself; an update that keeps it does not count it as changed."""
    Specimen.objects.create(float=math.nan, small=1)
    run_sql("UPDATE library_specimen SET small = 2")
    event = changes(Specimen, "specimens")[-1]

    assert "float" not in event.changed and math.isnan(event.new.float)


def test_an_interval_in_another_style_is_undecodable():
    """It is parked with the reason, not misread."""
    with transaction.atomic():
        run_sql("SET LOCAL IntervalStyle = 'sql_standard'")
        Specimen.objects.create(duration=datetime.timedelta(days=-1, hours=-2))
    with pytest.raises(outbox.OutboxError, match="IntervalStyle"):
        changes(Specimen, "specimens")


def test_naive_datetimes_without_time_zone_support(settings):
    """With USE_TZ = False the instance has the local time without a zone, as the ORM loads it."""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Kathmandu"
    connection.close()
    Specimen.objects.create(moment=datetime.datetime(2026, 1, 1, 12))
    (event,) = changes(Specimen, "specimens")
    connection.close()

    assert event.new.moment == datetime.datetime(2026, 1, 1, 12)


def test_an_insert_restores_foreign_keys_and_renamed_columns():
    """Foreign keys are there as _id, related objects load as usual, db_column is translated."""
    user = User.objects.create(username="billy")
    media = Media.objects.create(name="avatar.jpg", content_type="image/png", size=15000)
    author = Author.objects.create(
        name="Billy", user=user, alternative_name="Jimmy", profile_picture=media
    )
    (event,) = changes(Author, "authors")

    assert event.operation == "insert" and event.old is None
    assert (event.new.user_id, event.new.profile_picture_id) == (user.pk, media.pk)
    assert (event.new.user, event.new.profile_picture) == (user, media)
    assert (event.new.name, event.new.alternative_name) == ("Billy", "Jimmy")
    assert event.new == author


def test_an_update_has_both_rows():
    """A primary key and a column that end in something like _id are nothing special."""
    media = Media.objects.create(name="a", size=2**40, store_id="some-value")
    media.name = "b"
    media.save()
    event = changes(Media, "media")[1]

    assert (event.old.name, event.new.name) == ("a", "b")
    assert event.new.key == event.new.pk == media.pk
    assert (event.new.size, event.new.store_id) == (2**40, "some-value")
    assert event.changed == {"name"}


def test_a_delete_has_the_old_row_in_full_and_no_new_one():
    """All that the row was is there, when it is gone itself."""
    author = Author.objects.create(name="Ann")
    post = Post.objects.create(author=author, content="x", date=MOMENT, rating=Decimal("1.1"))
    key = post.pk
    post.delete()
    event = changes(Post, "posts")[1]

    assert event.new is None and event.changed == frozenset()
    assert (event.old.pk, event.old.date, event.old.author) == (key, MOMENT, author)
    assert event.old.rating == Decimal("1.1")


def test_multi_table_inheritance_defers_what_the_other_table_holds():
    """A child's own table has its columns; its key needs no query, the parent's fields load one."""
    child = Child.objects.create(title="t", toy="y")
    (own,) = changes(Child, "children")
    (of_parent,) = changes(Parent, "parents")

    assert (own.new.pk, own.new.key, own.new.toy) == (child.pk, child.pk, "y")
    assert own.new.get_deferred_fields() == {"title"}
    assert own.new.title == "t"
    assert (of_parent.new.pk, of_parent.new.title) == (child.pk, "t")


def test_abstract_inheritance_has_all_fields():
    """The child's table holds them all."""
    child = ChildOfAbstract.objects.create(name="x")
    (event,) = changes(ChildOfAbstract, "offspring")

    assert issubclass(ChildOfAbstract, AbstractParent)
    assert (event.new.pk, event.new.key, event.new.name) == (child.pk, child.pk, "x")


def test_a_composite_primary_key_comes_back():
    """pk is the tuple of its parts."""
    Membership.objects.create(club="chess", number=7, name="Ann")
    (event,) = changes(Membership, "memberships")

    assert event.new.pk == ("chess", 7)


def test_building_instances_runs_no_query(django_assert_num_queries):
    """The row is in the message; only deferred fields and related objects load something."""
    user = User.objects.create(username="billy")
    Author.objects.create(name="Ann", user=user)
    Author.objects.update(name="Anna")
    messages = stored("authors")
    decoded = [
        Message(
            m.position, m.channel, m.key, m.type, 1, False, "g", json.dumps(m.payload), "{}", ""
        )
        for m in messages
    ]
    with django_assert_num_queries(0):
        update = decode(decoded[1], outbox.Change[Author])
        assert (update.old.name, update.new.name, update.new.user_id) == ("Ann", "Anna", user.pk)

    assert update.new._state.adding is False
    assert update.new.get_deferred_fields() == set()


def test_saving_an_instance_updates_its_row():
    """It is a row that exists, not a new one."""
    Author.objects.create(name="Ann")
    (event,) = changes(Author, "authors")
    event.new.name = "Anna"
    event.new.save()

    assert [author.name for author in Author.objects.all()] == ["Anna"]


def decoded(model, payload, channel="x"):
    """The event of a payload that another version of the project may have written."""
    message = Message(1, channel, None, "t", 1, False, "g", json.dumps(payload), "{}", "")
    return decode(message, outbox.Change[model])


def test_a_column_that_the_code_does_not_know_is_ignored():
    """During a rolling deployment the database may be ahead of the code."""
    event = decoded(
        Post,
        {
            "operation": "insert",
            "old": None,
            "new": {
                "id": 1,
                "content": "x",
                "date": MOMENT.isoformat(),
                "old_field": "foo",
                "rating": None,
                "author_id": None,
            },
        },
    )

    assert (event.new.content, event.new.date, event.new.author) == ("x", MOMENT, None)


def test_a_column_that_the_message_lacks_is_deferred():
    """A message from before a new column: the field loads what the row has now."""
    author = Author.objects.create(name="Ann", age=7)
    event = decoded(
        Author, {"operation": "insert", "old": None, "new": {"id": author.pk, "name": "Ann"}}
    )

    assert "age" in event.new.get_deferred_fields()
    assert event.new.age == 7


@pytest.mark.parametrize(
    "payload",
    [
        {"operation": "insert", "old": None, "new": {"id": "not a number"}},
        {"operation": "merge", "old": None, "new": None},
        {"operation": "insert", "new": None},
        {"operation": "insert", "old": None, "new": {"id": 1, "name": {"a": 1}}},
        [],
    ],
)
def test_a_payload_that_does_not_fit_is_undecodable(payload):
    """The error names the message and why; it is not the handler's fault."""
    with pytest.raises(
        outbox.OutboxError,
        match=r"Message 1 of type 't' in channel 'x' no longer fits Change\[Author\]",
    ):
        decoded(Author, payload)


def test_a_field_that_changed_its_type_is_converted_where_json_can():
    """Texts that are numbers now, as after an AlterField."""
    event = decoded(
        Media, {"operation": "insert", "old": None, "new": {"key": "5", "name": "x", "size": "12"}}
    )

    assert (event.new.key, event.new.size) == (5, 12)


def test_changed_names_fields_not_columns():
    """For an update, the fields that differ; a foreign key by its field's name."""
    media = Media.objects.create(name="x")
    Author.objects.create(name="Ann")
    Author.objects.update(profile_picture=media, alternative_name="A", name="Ann")
    event = changes(Author, "authors")[1]

    assert event.changed == {"profile_picture", "alternative_name"}


def test_an_update_that_changes_nothing_is_told():
    """As any update; changed is empty. A condition or fields= leaves it out."""
    Author.objects.create(name="Ann")
    Author.objects.update(name="Ann")

    assert changes(Author, "authors")[1].changed == frozenset()


def test_context_is_that_of_the_change():
    """Empty by default."""
    Media.objects.create(name="x")
    with outbox.context(user="ann"):
        Media.objects.create(name="x")

    assert [event.context for event in changes(Media, "media")] == [{}, {"user": "ann"}]


def test_an_own_field_class_converts_as_the_orm_lets_it():
    """from_db_value() gets what the driver would have given it, also below arrays and with a
    decoder of its own."""

    class Doubled(models.IntegerField):
        def from_db_value(self, value, expression, connection):
            return None if value is None else value * 2

    class Exact(json.JSONDecoder):
        def __init__(self, **options):
            super().__init__(parse_float=Decimal, **options)

    with isolate_apps("tests.library"):

        class Custom(models.Model):
            doubled = Doubled(null=True)
            many = ArrayField(Doubled(null=True))
            exact = models.JSONField(decoder=Exact, null=True)

            class Meta:
                app_label = "library"

    (new,) = [
        row_images.Image(Custom).read(
            '{"operation": "insert", "old": null, "new": {"id": 1, "doubled": 2, "many": [3, null],'
            ' "exact": {"a": 0.1234567890123456789}}}'
        )[2]
    ]

    assert (new.doubled, new.many) == (4, [6, None])
    assert new.exact == {"a": Decimal("0.1234567890123456789")}


def test_a_virtual_generated_column_is_deferred():
    """PostgreSQL computes it when it is read, so the row in the trigger does not hold it."""
    with isolate_apps("tests.library"):

        class Virtual(models.Model):
            name = models.TextField()
            shout = models.GeneratedField(
                expression=models.functions.Upper("name"),
                output_field=models.TextField(),
                db_persist=False,
            )

            class Meta:
                app_label = "library"

    new = row_images.Image(Virtual).read(
        '{"operation": "insert", "old": null, "new": {"id": 1, "name": "x", "shout": null}}'
    )[2]

    assert new.get_deferred_fields() == {"shout"}


def test_change_of_a_model_without_a_capture_is_refused(declare_group):
    """The handler would never be called."""
    group = declare_group("test-uncaptured", "authors")
    with pytest.raises(outbox.OutboxError, match="captured model"):
        group.handler(outbox.Change[Shelf])(print)


def test_change_of_a_channel_that_the_group_does_not_read_is_refused(declare_group):
    """The error names the channels that capture the model."""
    group = declare_group("test-elsewhere", "authors")
    with pytest.raises(outbox.OutboxError, match="'posts' or 'ratings' but reads only authors"):
        group.handler(outbox.Change[Post])(print)


def test_a_handler_gets_each_channel_that_its_group_reads(declare_group):
    """A model captured into several channels, or into another one before: all that it reads."""
    group = declare_group("test-several", "titles", "prices", "authors")
    group.handler(outbox.Change[Book])(print)

    assert [list(group.routes(channel)) for channel in group.channels] == [["library.Book"]] * 3


def test_change_names_one_class_per_model():
    """Change[Author] is a class, the same each time, and a subclass of Change."""
    assert outbox.Change[Author] is outbox.Change[Author]
    assert outbox.Change[Author] is not outbox.Change[Reader]
    assert issubclass(outbox.Change[Author], outbox.Change)
    assert outbox.Change[Author].__name__ == "Change[Author]"
    with pytest.raises(TypeError, match="name a model class"):
        outbox.Change["Author"]


def test_a_change_can_be_made_by_hand():
    """For the tests of handlers."""
    author = Author(name="Ann")
    event = outbox.Change[Author]("insert", None, author)

    assert (event.operation, event.old, event.new, event.changed, event.context) == (
        "insert",
        None,
        author,
        frozenset(),
        {},
    )
    assert "insert" in repr(event)


def test_a_batch_handler_gets_changes(declare_group):
    """Events and messages are lists of equal length."""
    seen = []
    group = declare_group("test-batches", "media")

    @group.batch_handler(outbox.Change[Media])
    def see(events, messages):
        seen.append(
            [
                (event.new.name, message.type)
                for event, message in zip(events, messages, strict=True)
            ]
        )

    Media.objects.bulk_create([Media(name=str(n)) for n in range(3)])
    drain(group)

    assert seen == [[(str(n), "library.Media") for n in range(3)]]


def test_the_test_tools_know_changes():
    """published() finds and decodes what was captured, like what was published."""
    with published() as messages:
        author = Author.objects.create(name="Ann")
        Media.objects.create(name="x")
    (event,) = messages.events_of(outbox.Change[Author])

    assert messages.one(outbox.Change[Author]).key == str(author.pk)
    assert (event.operation, event.new, event.new.name) == ("insert", author, "Ann")


def test_an_interval_beyond_python_is_undecodable():
    """A value that no Python type holds is parked at once with the reason, not tried again."""
    run_sql(
        "INSERT INTO library_specimen (id, duration) VALUES (gen_random_uuid(), '-170000000 years')"
    )
    with pytest.raises(UndecodableMessage):
        changes(Specimen, "specimens")
