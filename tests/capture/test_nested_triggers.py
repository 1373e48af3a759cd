"""Triggers of the project that write the captured rows again: the last message of a key is true."""

import pytest
from django.db import connection, transaction

from outbox.models import Message
from tests.library.models import Media
from tests.support.captured import changes, operations, run_sql, stored

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def own_trigger():
    """Add a trigger of the project to the table of Media; it is gone after the test."""

    def add(event, body, level="ROW", name="aa_own"):
        run_sql(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {body} RETURN NULL; END $$"
        )
        run_sql(
            f"CREATE TRIGGER {name} AFTER {event} ON library_media "
            f"FOR EACH {level} WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION {name}()"
        )

    yield add
    run_sql("DROP FUNCTION IF EXISTS aa_own CASCADE")


def table():
    """The rows of the table by key."""
    return {str(each.pk): each.name for each in Media.objects.all()}


def projection():
    """What a consumer has that takes the last message of each key."""
    mirror = {}
    for message in stored("media"):
        row = message.payload["new"]
        mirror[message.key] = row and row["name"]
    return {key: name for key, name in mirror.items() if name is not None}


WRITE_AGAIN = "UPDATE library_media SET name = NEW.name || '!' WHERE key = NEW.key;"


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_row_that_a_trigger_updates_is_told_as_committed(own_trigger, event):
    """The message of the outer statement comes last, and holds the row as the trigger left it."""
    media = Media.objects.create(name="a")
    own_trigger(event, WRITE_AGAIN)
    Media.objects.bulk_create([Media(name="b"), Media(name="c")])
    Media.objects.filter(pk=media.pk).update(name="d")

    assert projection() == table()
    assert any(name.endswith("!") for name in table().values())


def test_a_statement_trigger_that_sorts_first_is_like_one_of_rows(own_trigger):
    """It fires before the capture of the statement."""
    own_trigger("INSERT", "UPDATE library_media SET name = 'later';", level="STATEMENT")
    Media.objects.create(name="a")

    assert projection() == table() == {str(Media.objects.get().pk): "later"}


def test_a_row_that_a_trigger_deletes_is_not_told_as_inserted(own_trigger):
    """The delete that was told stays the last message of the key."""
    own_trigger("INSERT", "DELETE FROM library_media WHERE key = NEW.key;")
    Media.objects.create(name="a")

    assert table() == projection() == {}
    assert [operation for operation, _ in operations("media")] == ["delete"]


def test_an_updated_row_that_a_trigger_deletes_stays_deleted(own_trigger):
    """The update is told as a delete."""
    media = Media.objects.create(name="a")
    own_trigger("UPDATE", "DELETE FROM library_media WHERE key = NEW.key;")
    media.save()

    assert table() == projection() == {}


def test_a_deleted_row_that_a_trigger_inserts_again_is_there(own_trigger):
    """Its insert stays the last message of the key."""
    media = Media.objects.create(name="a")
    own_trigger("DELETE", "INSERT INTO library_media (key, name) VALUES (OLD.key, 'again');")
    media.delete()

    assert projection() == table()
    assert list(table().values()) == ["again"]


def test_a_primary_key_that_a_trigger_changes_leaves_no_ghost(own_trigger):
    """The old key is gone, the new one holds the row."""
    own_trigger("INSERT", "UPDATE library_media SET key = 1000 + NEW.key WHERE key = NEW.key;")
    Media.objects.create(name="a")

    assert projection() == table()
    assert len(table()) == 1


def test_later_statements_of_the_transaction_are_told_right(own_trigger):
    """What a trigger did earlier in the transaction changes nothing about them."""
    own_trigger("INSERT", WRITE_AGAIN)
    with transaction.atomic():
        first = Media.objects.create(name="a")
        Media.objects.filter(pk=first.pk).update(name="b")
        second = Media.objects.create(name="c")
        second.delete()

    assert projection() == table() == {str(first.pk): "b"}
    assert changes(Media, "media")[2].changed == {"name"}


def test_a_rolled_back_savepoint_forgets_what_a_trigger_did(own_trigger):
    """The setting that says so ends with the savepoint and with the transaction."""
    own_trigger("INSERT", WRITE_AGAIN)
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Media.objects.create(name="a")
            raise ZeroDivisionError
        name = run_sql("SELECT 'outbox.depth_' || 'library_media'::regclass::oid")[0][0]
        depth = run_sql("SELECT COALESCE(current_setting(%s, true), '')", name)
        Media.objects.create(name="b")

    assert depth == [("",)]
    assert run_sql("SELECT COALESCE(current_setting(%s, true), '')", name) == [("",)]
    assert projection() == table()


def test_a_writer_with_an_empty_search_path_is_told():
    """As pg_restore and functions with a safe path write; the trigger's function has its own path."""
    with transaction.atomic():
        run_sql("SET LOCAL search_path = ''")
        run_sql("INSERT INTO public.library_media (name) VALUES ('elsewhere')")

    assert list(projection().values()) == ["elsewhere"]


def test_a_temporary_table_cannot_take_the_place_of_the_log():
    """The function looks for the log among temporary objects last."""
    with transaction.atomic():
        run_sql("CREATE TEMPORARY TABLE outbox_message (LIKE public.outbox_message) ON COMMIT DROP")
        Media.objects.create(name="a")

    assert Message.objects.count() == 1
    assert connection.in_atomic_block is False


def test_the_schema_of_a_row_is_in_its_headers(connect):
    """A table in another schema than the log's says so; in the log's own schema nothing is added."""
    trigger = next(t for t in Media._meta.triggers if t.captures == "insert")
    install = trigger.compile(Media).install_sql
    with connect().cursor() as cursor:
        cursor.execute('CREATE SCHEMA "tenant\'s"')
        try:
            cursor.execute('SET search_path = "tenant\'s", public')
            cursor.execute("CREATE TABLE library_media (LIKE public.library_media INCLUDING ALL)")
            cursor.execute(install)
            cursor.execute("INSERT INTO library_media (name) VALUES ('a')")
        finally:
            cursor.execute('DROP SCHEMA "tenant\'s" CASCADE')
    Media.objects.create(name="b")

    assert [message.headers for message in stored("media")] == [{"schema": "tenant's"}, {}]
