"""Capture: what a statement does to a captured table is in the log, whoever sent it, once per row
and in order."""

import pgtrigger
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F
from django.test.utils import isolate_apps

import outbox
from outbox.exceptions import InvalidCapture
from outbox.models import Message
from tests.library.models import (
    Author,
    Book,
    Child,
    ChildOfAbstract,
    Counter,
    Loan,
    Media,
    Membership,
    OtherChildOfAbstract,
    Post,
    Reader,
    Shelf,
)
from tests.support.captured import changes, operations, run_sql, stored
from tests.support.harness import copy_in, drain, execute
from tests.support.processes import run_code

pytestmark = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Rolls the enclosing block back."""


def test_each_operation_is_one_message_with_the_rows_image():
    """An insert, an update and a delete of a row are three messages under its primary key."""
    author = Author.objects.create(name="Ann")
    key = str(author.pk)
    author.name = "Anna"
    author.save()
    author.delete()

    assert operations("authors") == [("insert", key), ("update", key), ("delete", key)]
    insert, update, delete = (message.payload for message in stored("authors"))
    assert insert["old"] is None and insert["new"]["name"] == "Ann"
    assert update["old"]["name"] == "Ann" and update["new"]["name"] == "Anna"
    assert delete["old"]["name"] == "Anna" and delete["new"] is None
    assert {message.type for message in stored("authors")} == {"library.Author"}


def test_a_rolled_back_change_is_not_told():
    """The message is part of the change's transaction and of its savepoint."""
    with transaction.atomic():
        Author.objects.create(name="kept")
        with pytest.raises(Undo), transaction.atomic():
            Author.objects.create(name="undone")
            raise Undo
    with pytest.raises(Undo), transaction.atomic():
        Author.objects.create(name="undone")
        raise Undo

    assert [message.payload["new"]["name"] for message in stored("authors")] == ["kept"]


def test_bulk_create_tells_each_row_in_order():
    """The messages of one statement have the order of its rows."""
    Author.objects.bulk_create([Author(name=f"author {n}") for n in range(500)])

    names = [message.payload["new"]["name"] for message in stored("authors")]
    assert names == [f"author {n}" for n in range(500)]


def test_one_statement_makes_one_insert_into_the_log():
    """Whatever the number of rows: a statement trigger of the log fires once."""
    run_sql("CREATE TEMP TABLE fired (rows bigint)")
    run_sql(
        "CREATE FUNCTION pg_temp.count_rows() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO fired SELECT count(*) FROM appended; RETURN NULL; END $$"
    )
    run_sql(
        "CREATE TRIGGER counts AFTER INSERT ON outbox_message REFERENCING NEW TABLE AS appended"
        " FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.count_rows()"
    )
    try:
        Author.objects.bulk_create([Author(name=str(n)) for n in range(100)])
        Author.objects.update(age=7)
        Author.objects.filter(name="5").delete()
    finally:
        run_sql("DROP TRIGGER counts ON outbox_message")

    assert [rows for (rows,) in run_sql("SELECT rows FROM fired")] == [100, 100, 1]


def test_queryset_update_tells_each_row():
    """QuerySet.update() is told, which sends no Django signal."""
    Author.objects.bulk_create([Author(name=f"author {n}", age=n) for n in range(50)])
    Author.objects.filter(age__gte=10).update(age=F("age") + 1)

    updates = [event for event in changes(Author, "authors") if event.operation == "update"]
    assert [(event.old.age, event.new.age) for event in updates] == [
        (n, n + 1) for n in range(10, 50)
    ]
    assert {event.changed for event in updates} == {frozenset({"age"})}


def test_raw_sql_and_copy_and_other_programs_are_told(connect):
    """The database tells, not the application: any client's INSERT, UPDATE, DELETE or COPY."""
    session = connect()
    execute(session, "INSERT INTO library_counter (value, note) VALUES (1, 'it''s raw')")
    execute(session, "UPDATE library_counter SET value = 2")
    copy_in(session, "COPY library_counter (value, note) FROM STDIN", "3\tcopied\n4\tcopied\n")
    execute(session, "DELETE FROM library_counter WHERE value = 3")

    told = [
        (event.operation, event.new and event.new.value) for event in changes(Counter, "counters")
    ]
    assert told == [("insert", 1), ("update", 2), ("insert", 3), ("insert", 4), ("delete", None)]


def test_an_upsert_tells_what_became_of_each_row():
    """INSERT … ON CONFLICT DO UPDATE tells the new rows as inserted, the others as updated."""
    Membership.objects.create(club="chess", number=1, name="old")
    Membership.objects.bulk_create(
        [Membership(club="chess", number=n, name="new") for n in (1, 2)],
        update_conflicts=True,
        unique_fields=["club", "number"],
        update_fields=["name"],
    )

    told = {(key, operation) for operation, key in operations("memberships")[1:]}
    assert told == {("chess:1", "update"), ("chess:2", "insert")}


def test_a_cascade_in_the_database_is_told():
    """ON DELETE CASCADE and SET NULL of the database itself, which Django does not see, are told."""
    author = Author.objects.create(name="Ann")
    Post.objects.create(author=author, content="x", date="2026-01-01T00:00:00Z")
    run_sql(
        "ALTER TABLE library_post ADD CONSTRAINT cascade_in_database FOREIGN KEY (author_id)"
        " REFERENCES library_author ON DELETE CASCADE"
    )
    try:
        run_sql("DELETE FROM library_author")
    finally:
        run_sql("ALTER TABLE library_post DROP CONSTRAINT cascade_in_database")

    assert [operation for operation, _ in operations("posts")] == ["insert", "delete"]


def test_a_row_that_cascades_change_twice_is_told_twice_in_order():
    """Two foreign keys that the database sets to NULL change the row step by step; each step is
    told, from the state before it to the one after it."""
    user = User.objects.create(username="ann")
    media = Media.objects.create(name="x")
    Author.objects.create(name="Ann", user=user, profile_picture=media)
    run_sql("CREATE TABLE base (user_id integer PRIMARY KEY, picture integer UNIQUE)")
    run_sql("INSERT INTO base SELECT user_id, picture FROM library_author")
    run_sql(
        "ALTER TABLE library_author"
        " ADD CONSTRAINT one FOREIGN KEY (user_id) REFERENCES base ON DELETE SET NULL,"
        " ADD CONSTRAINT two FOREIGN KEY (picture) REFERENCES base (picture) ON DELETE SET NULL"
    )
    try:
        run_sql("DELETE FROM base")
    finally:
        run_sql("ALTER TABLE library_author DROP CONSTRAINT one, DROP CONSTRAINT two")
        run_sql("DROP TABLE base")

    steps = [
        (event.operation, event.old.user_id, event.old.profile_picture_id, event.changed)
        for event in changes(Author, "authors")[1:]
    ]
    assert steps == [
        ("update", user.pk, media.pk, {"user"}),
        ("update", None, media.pk, {"profile_picture"}),
    ]


def test_a_statement_that_tells_nothing_takes_no_floor():
    """An update of no row, or of rows that no condition and no chosen field speaks of, appends
    nothing; so a long transaction of such statements holds no reader up."""
    with pgtrigger.ignore():
        Book.objects.create(title="x")
    with transaction.atomic():
        Author.objects.filter(pk=-1).update(name="nobody")
        Author.objects.filter(pk=-1).delete()
        Book.objects.update(stock=5)
        floor = run_sql("SELECT coalesce(current_setting(outbox_floor_setting(), true), '')")

    assert floor == [("",)]
    assert not Message.objects.exists()


def test_a_changed_primary_key_is_a_delete_and_an_insert():
    """The old key is told as deleted, the new one as inserted, each under its own key."""
    author = Author.objects.create(name="Ann")
    Author.objects.update(id=99)

    assert operations("authors")[1:] == [("delete", str(author.pk)), ("insert", "99")]
    assert changes(Author, "authors")[2].new.name == "Ann"


def test_primary_keys_that_swap_rows_lose_none():
    """When rows exchange their keys all deletes come first, so a projection by key ends right."""
    run_sql("INSERT INTO library_membership VALUES ('a', 1, 'one'), ('a', 2, 'two')")
    run_sql("ALTER TABLE library_membership DROP CONSTRAINT library_membership_pkey")
    try:
        Membership.objects.update(number=3 - F("number"))
    finally:
        run_sql("ALTER TABLE library_membership ADD PRIMARY KEY (club, number)")
    projection = {}
    for event in changes(Membership, "memberships"):
        if event.old is not None:
            del projection[event.old.pk]
        if event.new is not None:
            projection[event.new.pk] = event.new.name

    assert projection == {("a", 1): "two", ("a", 2): "one"}


def test_a_bulk_update_after_single_ones_keeps_a_fast_plan():
    """The plan that a session made for one row is no nested loop that a big statement falls into,
    whatever the condition says."""
    run_sql(
        "INSERT INTO library_book (title, price, status, stock) SELECT '', 0, '', 0 FROM generate_series(1, 20000)"
    )
    for price in (1, 2, 3):
        Book.objects.filter(pk=Book.objects.first().pk).update(price=price, status="it's out")
    with transaction.atomic():
        run_sql("SET LOCAL statement_timeout = '20s'")
        Book.objects.update(price=F("price") + 1, status="it's out")

    assert len(operations("prices")) == 3 + 20000


def test_the_primary_key_is_the_key():
    """A composite one is joined by ":", like the key of an event with several fields."""
    Membership.objects.create(club="a:b\\c", number=1)
    child = Child.objects.create(title="t")

    assert operations("memberships") == [("insert", "a\\:b\\\\c:1")]
    assert operations("children") == [("insert", str(child.pk))]


def test_the_key_can_be_of_other_fields():
    """Several fields are joined by ":", a NULL makes a message without a key, () has none."""
    Loan.objects.create(branch="north", reference="7:1")
    Loan.objects.create(branch=None, reference="8")
    author = Author.objects.create(name="Ann")
    Post.objects.create(author=author, content="x", date="2026-01-01T00:00:00Z")
    book = Book.objects.create(title="x")
    book.price = 5
    book.save()

    assert operations("loans") == [("insert", "north:7\\:1"), ("insert", None)]
    assert operations("ratings") == [("insert", str(author.pk))]
    assert operations("prices") == [("update", None)]


def test_chosen_fields_are_told_with_the_primary_key():
    """fields= and exclude= choose the columns; an update that changes none of them is left out."""
    book = Book.objects.create(title="Emma", stock=3)
    Book.objects.update(stock=F("stock") - 1)
    Book.objects.update(title="Emma, again")

    payloads = [message.payload for message in stored("titles")]
    assert payloads[0]["new"] == {"id": book.pk, "title": "Emma"}
    assert [payload["operation"] for payload in payloads] == ["insert", "update"]


def test_an_excluded_field_is_not_told():
    """Not even in the old row."""
    Post.objects.create(content="secret", date="2026-01-01T00:00:00Z")
    Post.objects.update(content="still secret")
    Post.objects.update(rating="1.5")

    payloads = [message.payload for message in stored("ratings")]
    assert [payload["operation"] for payload in payloads] == ["insert", "update"]
    assert "secret" not in str(payloads)


def test_a_condition_chooses_rows():
    """pgtrigger conditions hold row by row within a statement: a change, or a value with a quote."""
    books = Book.objects.bulk_create([Book(title=str(n), price=n) for n in range(4)])
    books[2].price = 20
    books[3].status = "it's out"
    Book.objects.bulk_update(books, ["price", "status"])

    assert [event.new.title for event in changes(Book, "prices")] == ["2"]
    assert [event.new.title for event in changes(Book, "published")] == ["3"]


def test_on_chooses_operations():
    """Only the captured operations are told."""
    book = Book.objects.create(title="x")
    book.title = "y"
    book.save()
    book.delete()

    assert [operation for operation, _ in operations("withdrawn")] == ["delete"]


def test_two_operations_on_one_channel_are_both_told():
    """Inserts and updates go to the same channel, each under its own name."""
    media = Media.objects.create(name="a")
    media.name = "b"
    media.save()

    assert [operation for operation, _ in operations("media")] == ["insert", "update"]


def test_a_proxy_captures_the_table_of_another_app():
    """The messages are about the table's own model, whatever model declared the capture."""
    User.objects.create(username="ann", email="ann@example.org", password="secret")
    Reader.objects.update(password="another")

    assert [message.type for message in stored("readers")] == ["auth.User"]
    assert stored("readers")[0].payload["new"].keys() == {"id", "username", "email"}
    assert type(changes(Reader, "readers")[0].new) is Reader
    assert type(changes(User, "readers")[0].new) is User


def test_abstract_models_hand_the_capture_down():
    """Each child's table is captured, under the child's name."""
    ChildOfAbstract.objects.create(name="x")
    OtherChildOfAbstract.objects.create()

    types = [message.type for message in stored("offspring")]
    assert types == ["library.ChildOfAbstract", "library.OtherChildOfAbstract"]


def test_identical_payloads_are_separate_messages():
    """What is told twice in one transaction is two messages."""
    media = Media.objects.create(name="x")
    with transaction.atomic():
        for name in ("a", "b", "a", "b", "a"):
            Media.objects.filter(pk=media.pk).update(name=name)

    names = [message.payload["new"]["name"] for message in stored("media")[1:]]
    assert names == ["a", "b", "a", "b", "a"]


def test_the_order_within_a_transaction_is_that_of_the_statements():
    """Over all captured tables, and among published messages, too."""
    with transaction.atomic():
        author = Author.objects.create(name="Ann")
        outbox.publish_raw("authors", "Announced", {})
        media = Media.objects.create(name="x")
        Author.objects.update(profile_picture=media)
        Media.objects.update(size=1)

    told = [
        (message.channel, message.payload.get("operation"))
        for message in Message.objects.order_by("position")
    ]
    assert author.pk
    assert told == [
        ("authors", "insert"),
        ("authors", None),
        ("media", "insert"),
        ("authors", "update"),
        ("media", "update"),
    ]


def test_a_large_row_is_told_whole():
    """100 kB, which no NOTIFY carries, and 5 MB; the write itself is not in danger."""
    for size in (100_000, 5_000_000):
        Media.objects.create(name="x" * size)
    Media.objects.update(size=1)

    assert [len(message.payload["new"]["name"]) for message in stored("media")] == [
        100_000,
        5_000_000,
    ] * 2


def test_a_row_too_large_for_jsonb_is_told_by_its_primary_key():
    """A text of 260 MB fits its column, but not into jsonb. The write succeeds; of the row only the
    key is told, and the other fields are deferred."""
    run_sql("INSERT INTO library_media (name) SELECT repeat('x', 270 * 1024 * 1024)")
    run_sql("UPDATE library_media SET size = 1")

    insert, update = changes(Media, "media")
    assert (insert.operation, update.operation) == ("insert", "update")
    assert insert.new.get_deferred_fields() == {"name", "content_type", "size", "store_id"}
    assert update.old.pk == update.new.pk == insert.new.pk
    assert update.new.size == 1


def test_ignore_mutes_a_capture():
    """pgtrigger.ignore() is the project's right: the capture is muted, the log's own rules not."""
    with pgtrigger.ignore("library.Author:outbox_authors_insert"):
        Author.objects.create(name="unheard")
        Media.objects.create(name="heard")
    with pgtrigger.ignore():
        Author.objects.update(name="unheard")
        Author.objects.all().delete()
        run_sql(
            "INSERT INTO outbox_message (channel, type, payload) VALUES ('authors', 'Told', '{}')"
        )
        floor_was_taken = run_sql("SELECT count(*) FROM outbox_message WHERE position > 0")

    assert floor_was_taken == [(2,)]
    assert [m.channel for m in Message.objects.order_by("position")] == ["media", "authors"]


def test_publishing_and_handling_work_while_triggers_are_ignored():
    """pgtrigger.ignore() changes each statement of the connection; those of the outbox can bear it."""
    group = outbox.ConsumerGroup("ignoring", channels=["media"])
    handled = []
    group.handler("Told")(lambda payload, message: handled.append((message.key, payload)))
    with pgtrigger.ignore():
        with transaction.atomic(), outbox.context(user="ann"):
            outbox.publish_raw("media", "Told", {"number": 1}, key="a%s'")
            Media.objects.create(name="unheard")
        drain(group)

    assert handled == [("a%s'", {"number": 1})]
    assert [m.headers for m in Message.objects.all()] == [{"user": "ann"}]


def test_a_failed_write_tells_nothing():
    """The database refuses the second row, so the statement as a whole tells nothing."""
    with pytest.raises(IntegrityError):
        run_sql("INSERT INTO library_membership VALUES ('a', 1, ''), ('a', 1, '')")

    assert not Message.objects.exists()


def test_makemigrations_knows_the_triggers():
    """The project's own migrations hold them, and are complete."""
    call_command("makemigrations", "library", check=True, dry_run=True, verbosity=0)
    installed = run_sql(
        "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'pgtrigger_outbox_authors%%'"
    )

    assert len(installed) == 3


def test_a_changed_capture_is_a_new_migration():
    """Another option is another trigger, which makemigrations sees."""
    result = run_code(
        "import tests.library.models as m, outbox\n"
        "from django.core.management import call_command\n"
        "m.Media._meta.triggers[0].condition = __import__('pgtrigger').Q(new__size__gt=5)\n"
        "call_command('makemigrations', 'library', dry_run=True)"
    )

    assert "Remove trigger outbox_media_insert from model media" in result.stdout
    assert "Create trigger outbox_media_insert on model media" in result.stdout


def test_the_triggers_work_without_migrations():
    """Where tests run without migrations, `pgtrigger install` makes the triggers."""
    run_sql(
        "DROP TRIGGER {} ON library_author".format(
            run_sql(
                "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'pgtrigger_outbox_authors_insert%%'"
            )[0][0]
        )
    )
    call_command("pgtrigger", "install")
    Author.objects.create(name="Ann")

    assert operations("authors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel": "x", "on": "truncate"}, 'use "insert"'),
        ({"channel": "x", "on": []}, 'use "insert"'),
        ({"channel": "x", "fields": ["a"], "exclude": ["b"]}, "not both"),
        ({"channel": ""}, "not a channel name"),
        ({"channel": "x" * 64}, "not a channel name"),
    ],
)
def test_wrong_options_are_refused(options, words):
    """At the declaration, with the way out."""
    with pytest.raises((outbox.OutboxError, ValueError), match=words):
        outbox.capture(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fields": ["nmae"]},
            "'nmae' is no field of the table of library.Author; its fields are id, user",
        ),
        ({"key": ["entries"]}, "is no field"),
        ({"condition": pgtrigger.AnyChange("name")}, "the OLD row, which inserts do not have"),
        ({"on": "delete", "condition": pgtrigger.Q(new__name="x")}, "the NEW row"),
        ({"on": "insert", "condition": pgtrigger.Q(new__name="$outbox$")}, "write it as"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(options, words):
    """When the triggers are rendered, which makemigrations does first."""
    with pytest.raises(outbox.OutboxError, match=words):
        for trigger in outbox.capture(channel="x", **options):
            trigger.compile(Author)


@pytest.mark.parametrize(
    "channel", ["it's", "$$; DROP", "naïve ☃", "a\\b\n", "Orders", "%s {x}", "x" * 63]
)
def test_any_channel_name_is_a_value(channel):
    """Quotes, dollars, braces and newlines in a channel's name end up as they are."""
    for trigger in outbox.capture(channel=channel):
        trigger.install(Shelf)
    try:
        shelf = Shelf.objects.create(name="a")
        shelf.name = "b"
        shelf.save()
        shelf.delete()
    finally:
        for trigger in outbox.capture(channel=channel):
            trigger.uninstall(Shelf)

    assert [operation for operation, _ in operations(channel)] == ["insert", "update", "delete"]


def test_columns_may_have_the_names_that_the_trigger_uses():
    """old, new, operation and the like as field names are fields, not the trigger's own words."""

    class Odd(models.Model):
        old = models.TextField()
        new = models.TextField()
        operation = models.TextField(db_column="outbox_size")
        key = models.TextField(db_column="new_values")

        class Meta:
            app_label = "library"
            db_table = "odd"

    triggers = outbox.capture(channel="odd", key="new", condition=None)
    with connection.schema_editor() as editor:
        editor.create_model(Odd)
    try:
        for trigger in triggers:
            trigger.install(Odd)
        odd = Odd.objects.create(old="o", new="n", operation="p", key="k")
        Odd.objects.update(old="changed")
        odd.delete()
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Odd)

    assert operations("odd") == [("insert", "n"), ("update", "n"), ("delete", "n")]
    assert stored("odd")[1].payload["new"] == {
        "id": odd.pk or 1,
        "old": "changed",
        "new": "n",
        "outbox_size": "p",
        "new_values": "k",
    }


def test_a_group_handles_what_was_captured():
    """The whole way: an ORM write, the log, the handler's own write."""
    author = Author.objects.create(name="Ann")
    drain("welcome")

    assert list(Post.objects.values_list("author", flat=True)) == [author.pk]


def test_a_second_capture_of_a_channel_is_refused_by_name():
    """The error names the model, the operation, the channel and what to do."""
    with pytest.raises(
        InvalidCapture, match="captures inserts for channel 'twice' twice"
    ) as caught:

        @outbox.capture(channel="twice", on="insert")
        @outbox.capture(channel="twice", fields=["name"])
        class Twice(models.Model):
            name = models.TextField()

            class Meta:
                app_label = "nowhere"

    assert "nowhere.Twice" in str(caught.value)
    assert "divide the operations among them by on=" in str(caught.value)


@isolate_apps("tests.library")
def test_a_column_may_have_any_name_but_those_that_the_trigger_uses():
    """One of an alias in the trigger's statements does not fail the writes of the table; the names
    that it adds to the rows are refused when the triggers are rendered."""

    class Point(models.Model):
        c = models.IntegerField()
        old = models.TextField(default="")
        new = models.TextField(default="")
        now = models.TextField(default="")
        told = models.TextField(default="")

        class Meta:
            app_label = "library"

    chosen = outbox.capture(channel="points", exclude=["told"])
    with connection.schema_editor() as editor:
        editor.create_model(Point)
    try:
        for trigger in chosen:
            trigger.install(Point)
        point = Point.objects.create(c=1)
        Point.objects.update(c=2, old="a")
        point.delete()
        told = operations("points")
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Point)

    assert [operation for operation, _ in told] == ["insert", "update", "delete"]


@pytest.mark.parametrize(
    "name", ["outbox_ordinal", "outbox_operation", "outbox_row", "outbox_headers"]
)
def test_a_column_with_a_name_of_the_triggers_own_is_refused(name):
    """Else every update of the table would fail."""
    kind = type(
        f"Named_{name}",
        (models.Model,),
        {
            "__module__": __name__,
            "number": models.IntegerField(db_column=name),
            "Meta": type("Meta", (), {"app_label": "nowhere"}),
        },
    )
    for trigger in outbox.capture(channel="named", fields=["id"]):
        with pytest.raises(InvalidCapture, match=f"has the column '{name}'"):
            trigger.compile(kind)
