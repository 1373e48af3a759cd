"""context(): its values are the headers of exactly the messages that belong to it, and end with
the block, the transaction or the savepoint."""

import contextlib
import threading
import uuid

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse
from django.test import RequestFactory

import outbox
from outbox import headers as headers_module
from outbox.middleware import ContextMiddleware
from outbox.models import Message
from tests.library.models import Author, Media
from tests.shop.events import OrderPlaced
from tests.support.captured import run_sql
from tests.support.harness import value

pytestmark = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Rolls the enclosing block back."""


def headers():
    """The headers of all messages, in order."""
    return list(Message.objects.order_by("position").values_list("headers", flat=True))


def session_setting(raw=None):
    """What a session has as its context just now, '' for nothing."""
    sql = "SELECT coalesce(current_setting('outbox.context', true), '')"
    return value(raw, sql) if raw else run_sql(sql)[0][0]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever a test does: no value stays on the connection, and no block in the thread."""
    yield
    assert headers_module._blocks.get() == ()
    connection.ensure_connection()
    assert session_setting() == ""


def test_no_headers_by_default():
    """Without a context, captured and published messages have none."""
    Media.objects.create(name="x")
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))

    assert headers() == [{}, {}]


def test_values_go_with_captured_and_published_messages():
    """Both kinds of messages of the transaction have them, in SQL of any kind, too."""
    with transaction.atomic(), outbox.context(user="ann", request={"id": 7}):
        Media.objects.create(name="x")
        outbox.publish(OrderPlaced(order_id=1))
        outbox.publish_many([OrderPlaced(order_id=2)])
        outbox.publish_raw("orders", "Raw", {})
        run_sql("INSERT INTO library_media (name) VALUES ('y')")
        run_sql("INSERT INTO outbox_message (channel, type, payload) VALUES ('x', 'y', '{}')")

    assert headers() == [{"user": "ann", "request": {"id": 7}}] * 6


def test_headers_of_the_message_win():
    """What publish() is given stands over the context."""
    with transaction.atomic(), outbox.context(user="ann", tenant=1):
        outbox.publish(OrderPlaced(order_id=1), headers={"user": "bob"})

    assert headers() == [{"user": "bob", "tenant": 1}]


@pytest.mark.parametrize("where", ["around", "within"])
def test_values_hold_until_the_block_ends(where):
    """Around atomic() or within it, before and after the block there are none."""
    outer = outbox.context(user="ann") if where == "around" else transaction.atomic()
    inner = transaction.atomic() if where == "around" else outbox.context(user="ann")
    Media.objects.create(name="before")
    with outer:
        with inner:
            Media.objects.create(name="inside")
        if where == "within":
            Media.objects.create(name="behind the block, in the transaction")
    Media.objects.create(name="after")

    assert headers() == [{}, {"user": "ann"}, {}] + [{}] * (where == "within")


def test_nested_blocks_merge():
    """The inner values add to the outer ones and end with their block, around and within atomic()."""
    with outbox.context(a=1, b=1):
        with transaction.atomic():
            with outbox.context(b=2, c=2):
                Media.objects.create(name="x")
            Media.objects.create(name="x")
        with outbox.context(c=3):
            Media.objects.create(name="x")

    assert headers() == [{"a": 1, "b": 2, "c": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 3}]


def test_writes_in_autocommit_mode_have_them():
    """A single save() or update() outside atomic() is a transaction of its own."""
    with outbox.context(user="ann"):
        media = Media.objects.create(name="x")
        media.save()
        Media.objects.update(size=1)
        Media.objects.bulk_create([Media(name="y")])
        run_sql("WITH gone AS (DELETE FROM library_media RETURNING *) SELECT count(*) FROM gone")
        run_sql("/* a comment */ -- and another\n insert into library_media (name) values ('z')")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO library_media (name) VALUES (%s)", [["a"], ["b"]])

    assert {str(each) for each in headers()} == {"{'user': 'ann'}"}
    assert len(headers()) == 9


def test_reads_in_autocommit_mode_cost_nothing_more(django_assert_num_queries):
    """A context around a request that only reads runs no statement of its own."""
    with outbox.context(user="ann"), django_assert_num_queries(1):
        list(Media.objects.all())
        in_transaction = connection.in_atomic_block

    assert not in_transaction


def test_a_rolled_back_savepoint_keeps_the_outer_values():
    """The database reverts the setting with the savepoint; the next write has it again."""
    with outbox.context(user="ann"), transaction.atomic():
        with pytest.raises(Undo), transaction.atomic():
            Media.objects.create(name="undone")
            raise Undo
        Media.objects.create(name="x")
        with pytest.raises(DatabaseError), transaction.atomic():
            run_sql("UPDATE library_media SET key = 1 / 0")
        Media.objects.create(name="y")

    assert headers() == [{"user": "ann"}] * 2


def test_a_rolled_back_savepoint_takes_the_inner_values_along():
    """A block within a savepoint that is undone leaves nothing to the transaction around it."""
    with transaction.atomic():
        with outbox.context(a=1):
            with pytest.raises(Undo), transaction.atomic(), outbox.context(b=2):
                Media.objects.create(name="undone")
                raise Undo
            Media.objects.create(name="x")
        with pytest.raises(DatabaseError), transaction.atomic(), outbox.context(c=3):
            run_sql("SELECT 1 / 0")
        Media.objects.create(name="y")

    assert headers() == [{"a": 1}, {}]


def test_values_end_with_the_transaction():
    """They are local to it in the database: nothing is left on the connection after it."""
    with outbox.context(user="ann"), transaction.atomic():
        Media.objects.create(name="x")
        during = session_setting()
    with pytest.raises(Undo), outbox.context(user="bob"), transaction.atomic():
        Media.objects.create(name="x")
        raise Undo

    assert during == '{"user":"ann"}'
    assert session_setting() == ""


def test_another_session_never_sees_them(connect):
    """They are this session's, and another program's write has none."""
    with outbox.context(user="ann"), transaction.atomic():
        Media.objects.create(name="x")
        elsewhere = session_setting(connect())

    assert elsewhere == ""


def test_a_transaction_in_error_is_left_alone():
    """Entering and leaving a block in an aborted transaction does nothing and raises nothing."""
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            run_sql("invalid sql")
        with outbox.context(user="ann"):
            pass
        with outbox.context(user=lambda: "ann"):
            pass
        transaction.set_rollback(True)
    Media.objects.create(name="x")

    assert headers() == [{}]


def test_an_error_within_the_block_passes_through():
    """The error of the statement, not one of the block's end."""
    with (
        pytest.raises(DatabaseError, match="syntax"),
        transaction.atomic(),
        outbox.context(user="ann"),
    ):
        run_sql("invalid sql")


def test_a_transaction_marked_for_rollback_is_left_alone():
    """Django refuses statements then; the block does not send any."""
    with transaction.atomic():
        connection.needs_rollback = True
        with outbox.context(user="ann"):
            pass


def test_a_transaction_that_breaks_within_the_block():
    """An error that the project catches does not make the end of the block fail."""
    with transaction.atomic():
        with outbox.context(user="ann"), pytest.raises(DatabaseError):
            run_sql("SELECT 1 / 0")
        transaction.set_rollback(True)

    assert not Message.objects.exists()


def test_values_belong_to_one_alias(other_alias):
    """using= chooses the connection; the default's transactions have none of them."""
    with outbox.context(using=other_alias, user="ann"):
        with transaction.atomic(using=other_alias), transaction.atomic():
            Media.objects.using(other_alias).create(name="x")
            Media.objects.create(name="y")
        with transaction.atomic(using=other_alias):
            outbox.publish(OrderPlaced(order_id=1), using=other_alias)

    found = dict(Message.objects.values_list("payload__new__name", "headers"))
    assert found == {"x": {"user": "ann"}, "y": {}, None: {"user": "ann"}}


def test_without_an_alias_values_reach_every_alias_of_the_log(other_alias):
    """A model may be captured in another database than the one that publish() writes to."""
    with outbox.context(user="ann"):
        Media.objects.using(other_alias).create(name="x")
        with transaction.atomic(using=other_alias):
            Media.objects.using(other_alias).create(name="y")
        Media.objects.create(name="z")

    assert headers() == [{"user": "ann"}] * 3


def test_values_belong_to_one_thread():
    """Another thread, with its own connection, has none of them."""

    def write():
        Media.objects.create(name="x")
        connection.close()

    with outbox.context(user="ann"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    assert headers() == [{}]


def test_a_function_is_called_when_a_transaction_writes():
    """Not for reads, and with the value of that moment."""
    calls = []

    def user():
        calls.append(1)
        return f"user {len(calls)} of {User.objects.count()}"

    with outbox.context(user=user):
        list(Media.objects.all())
        with transaction.atomic():
            list(Media.objects.all())
        before = len(calls)
        Media.objects.create(name="x")

    assert before == 0
    assert headers() == [{"user": "user 1 of 0"}]


def test_a_decorated_function_has_the_context():
    """context() decorates functions, too."""

    @outbox.context(job="nightly")
    def work():
        Media.objects.create(name="x")

    work()
    work()

    assert headers() == [{"job": "nightly"}] * 2


def test_a_savepoint_opened_first_does_not_matter():
    """The values are there for the first write, however deep it is nested."""
    with outbox.context(user="ann"), transaction.atomic(), transaction.atomic():
        Author.objects.create(name="x")

    assert headers() == [{"user": "ann"}]


def test_a_transaction_begun_by_hand():
    """BEGIN by SQL and set_autocommit(False) are transactions like any other."""
    with outbox.context(user="ann"):
        run_sql("BEGIN")
        Media.objects.create(name="x")
        run_sql("ROLLBACK")
        run_sql("BEGIN")
        Media.objects.create(name="y")
        run_sql("COMMIT")
        transaction.set_autocommit(False)
        Media.objects.create(name="z")
        transaction.commit()
        transaction.set_autocommit(True)

    assert headers() == [{"user": "ann"}] * 2


def test_a_lost_connection_starts_afresh():
    """After a reconnect within the block the values are applied again."""
    with outbox.context(user="ann"):
        Media.objects.create(name="x")
        connection.close()
        Media.objects.create(name="y")

    assert headers() == [{"user": "ann"}] * 2


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"version": 2}, "the outbox's own"),
        ({"user": object()}, "JSON cannot carry"),
        ({"user": "a\0b"}, "NUL character"),
    ],
)
def test_values_that_headers_cannot_carry_are_refused(values, error):
    """At once, before anything is written."""
    with pytest.raises(outbox.OutboxError, match=error), outbox.context(**values):
        raise AssertionError


def test_any_json_value_is_a_value():
    """Quotes and percent signs included."""
    values = {
        "a": 'it\'s 100 % "☃" $$ \\',
        "b": [None, 1.5, True],
        "c": None,
        "d": uuid.UUID(int=1),
    }
    with outbox.context(**values):
        Media.objects.create(name="x")

    assert headers() == [{**values, "d": str(uuid.UUID(int=1))}]


def answer(request, view):
    """Let the middleware answer a request."""
    return ContextMiddleware(lambda request: view(request) or HttpResponse())(request)


def write(request):
    Media.objects.create(name="x")


def test_the_middleware_tells_user_and_request():
    """The user by primary key, the request by its X-Request-ID."""
    user = User.objects.create(username="ann")
    Message.objects.all()
    request = RequestFactory().post("/", headers={"X-Request-ID": "abc"})
    request.user = user
    answer(request, write)

    assert headers()[-1] == {"user": user.pk, "request_id": "abc"}


def test_a_request_without_user_or_id():
    """Nobody is None; a request without an id gets one of its own."""
    for user in (AnonymousUser(), None):
        request = RequestFactory().post("/")
        if user is not None:
            request.user = user
        answer(request, write)

    first, second = headers()
    assert first["user"] is second["user"] is None
    assert first["request_id"] != second["request_id"]


def test_a_user_who_is_known_later_is_told():
    """An API that authenticates in its view is told the user of the write, not of the start."""
    user = User.objects.create(username="ann")

    def view(request):
        with transaction.atomic():
            list(Media.objects.all())
            request.user = user
            write(request)

    request = RequestFactory().post("/")
    request.user = AnonymousUser()
    answer(request, view)

    assert headers()[-1]["user"] == user.pk


def test_a_request_that_fails_leaves_nothing_to_the_next():
    """On the same connection, after an error in the view, the next request has its own values only."""

    def fail(request):
        with transaction.atomic():
            write(request)
            raise Undo

    for view, request_id in ((fail, "one"), (write, "two")):
        with contextlib.suppress(Undo):
            answer(RequestFactory().post("/", headers={"X-Request-ID": request_id}), view)
    Media.objects.create(name="no request")

    assert headers() == [{"user": None, "request_id": "two"}, {}]


def test_a_request_that_only_reads_opens_no_transaction(django_assert_num_queries):
    """Nor does it look the user up."""
    request = RequestFactory().get("/")

    class Lazy:
        @property
        def pk(self):
            raise AssertionError("looked up")

    request.user = Lazy()
    with django_assert_num_queries(1):
        answer(request, lambda request: list(Media.objects.all()) and None)
