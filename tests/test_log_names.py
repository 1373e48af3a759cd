"""Whose log, whose lock, whose hint: what a publisher's session may contain beside the log."""

from __future__ import annotations

import pytest
from django.db import connection

from tests.support.harness import (
    backend,
    execute,
    exhaust,
    handled,
    horizon,
    insert,
    value,
    worker,
)
from tests.support.processes import open_session, wait_until
from tests.support.project import Project
from tests.support.publishing import publish_order

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN = "INSERT INTO public.outbox_message (channel, type, payload) VALUES ('orders', 'Raw', '{}')"
STRANGER = """
    CREATE SCHEMA IF NOT EXISTS stranger;
    CREATE OR REPLACE FUNCTION stranger.set_config(text, text, boolean) RETURNS text
        LANGUAGE sql AS 'SELECT $2';
    CREATE OR REPLACE FUNCTION stranger.pg_try_advisory_xact_lock_shared(bigint) RETURNS boolean
        LANGUAGE sql AS 'SELECT true';
    CREATE OR REPLACE FUNCTION stranger.outbox_floor_key(text, bigint) RETURNS bigint
        LANGUAGE sql AS 'SELECT 7::bigint';
    CREATE SEQUENCE IF NOT EXISTS stranger.outbox_message_position_seq START 4000000;
    CREATE TABLE IF NOT EXISTS stranger.outbox_message (channel text, type text, payload jsonb);
"""


@pytest.fixture
def session(connect):
    return connect()


@pytest.fixture
def stranger(session):
    """A schema with objects of the names that the log's functions use."""
    execute(session, STRANGER)
    yield
    execute(session, "DROP SCHEMA stranger CASCADE")


@pytest.mark.parametrize(
    "path", ["''", "pg_catalog, pg_temp", "stranger", "stranger, pg_catalog, public"]
)
def test_a_publisher_holds_its_floor_whatever_its_search_path(session, connect, stranger, path):
    """The functions of the log use the names of the log's schema and of pg_catalog only."""
    writer = connect()
    before = insert(session)
    execute(writer, f"SET search_path = {path}")
    execute(writer, "BEGIN")
    execute(writer, PLAIN)
    insert(session)

    assert horizon(session) == before
    execute(writer, "COMMIT")
    assert horizon(session) == before + 2


def test_temporary_objects_hide_nothing_of_the_log(session, connect):
    """A temporary sequence or table with a name of the log's is not picked up."""
    writer = connect()
    before = insert(session)
    execute(writer, "CREATE TEMPORARY SEQUENCE outbox_message_position_seq")
    execute(writer, "SELECT setval('pg_temp.outbox_message_position_seq', 4000000)")
    execute(writer, "CREATE TEMPORARY TABLE outbox_message (channel text)")
    execute(writer, "BEGIN")
    position = value(writer, "SELECT public.outbox_publish_v1('orders', NULL, 'Raw', '{}', '{}')")
    insert(session)

    assert position == before + 1
    assert horizon(session) == before
    execute(writer, "ROLLBACK")


def test_a_replicating_session_takes_its_floor(session, connect):
    """Where session_replication_role is replica, as in the apply process of a logical replication
    whose row triggers publish, the log's triggers fire all the same."""
    writer = connect()
    before = insert(session)
    execute(writer, "SET session_replication_role = replica")
    execute(writer, "BEGIN")
    execute(writer, PLAIN)
    insert(session)

    assert horizon(session) == before
    execute(writer, "ROLLBACK")


def test_every_function_is_bound_to_its_schema(session):
    """Each function of the log is bound when it is created or keeps the log's search_path."""
    loose = execute(
        session,
        "SELECT oid::regprocedure::text FROM pg_proc"
        r" WHERE proname LIKE 'outbox\_%' AND pronamespace = 'public'::regnamespace"
        " AND prosqlbody IS NULL"
        " AND NOT COALESCE('search_path=public, pg_temp' = ANY (proconfig), false)",
    )

    assert loose == []


SCHEMA = """
from django.db import connection
from django.core.management import call_command
for schema in ("one", "two"):
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {schema}")
        cursor.execute(f"SET search_path = {schema}, public")
    call_command("migrate", verbosity=0)
"""


def test_two_logs_of_one_database_are_independent(tmp_path, empty_database):
    """A schema per tenant: each has its own functions, floors, keys and signals; neither's open
    publisher holds back the other's readers, also when one transaction publishes in both."""
    Project(tmp_path, {"default": empty_database}).run(SCHEMA)
    writer, reader = open_session(empty_database), open_session(empty_database)
    insert_into = (
        "INSERT INTO {}.outbox_message (channel, type, payload) VALUES ('c', 'Raw', '{{}}')"
    )
    execute(reader, "SELECT setval('two.outbox_message_position_seq', 5000)")
    for schema in ("one", "two"):
        execute(reader, insert_into.format(schema))
    execute(writer, "BEGIN")
    execute(writer, insert_into.format("one"))
    held_by_one = [value(reader, f"SELECT {schema}.outbox_horizon()") for schema in ("one", "two")]
    last = value(reader, "SELECT two.outbox_last_position()")
    execute(writer, insert_into.format("two"))
    execute(reader, insert_into.format("two"))
    held_by_both = value(reader, "SELECT horizons[1] FROM two.outbox_horizons_v1(ARRAY['c'])")
    names = [
        value(
            reader,
            f"SELECT ARRAY[{schema}.outbox_signal_name('c'), {schema}.outbox_waiter_signal('g'),"
            f" {schema}.outbox_idle_key('c')::text, {schema}.outbox_waiter_key('g')::text]",
        )
        for schema in ("one", "two")
    ]
    writer.close()
    reader.close()

    assert held_by_one == [1, last]
    assert held_by_both == last
    assert not set(names[0]) & set(names[1])


RENAMED = """
from django.db import connection, transaction
from django.core.management import call_command
import outbox
from outbox.operations import doctor

def functions():
    (found,) = (each for each in doctor.run_checks() if each.check == "functions")
    return found

with connection.cursor() as cursor:
    cursor.execute('CREATE SCHEMA early')
    cursor.execute('SET search_path = early')
call_command("migrate", verbosity=0)
before = functions()
with connection.cursor() as cursor:
    cursor.execute('ALTER SCHEMA early RENAME TO "The Late"')
    cursor.execute('SET search_path = "The Late"')
moved = functions()
with connection.cursor() as cursor:
    cursor.execute(moved.fix)
after = functions()
with transaction.atomic():
    outbox.publish_raw("c", "Raw", {})
print(before.level, moved.level, "outbox_claim" in moved.detail, after.level)
"""


def test_a_renamed_schema_is_named_with_the_statements_that_mend_it(tmp_path, empty_database):
    """ALTER SCHEMA RENAME leaves the functions with the old name in their search_path."""
    printed = Project(tmp_path, {"default": empty_database}).run(RENAMED)

    assert printed.split() == ["ok", "fail", "True", "ok"]


def test_a_lock_of_the_project_holds_nothing_back(session, connect):
    """A floor is a lock of a transaction that inserts into this log; any other holder of the same
    key does not count."""
    stranger = connect()
    before = insert(session)
    for channel in ("", "orders"):
        execute(stranger, "SELECT pg_advisory_lock(outbox_floor_key(%s, %s))", channel, before - 1)
    after = insert(session)

    assert horizon(session) == after
    assert value(session, "SELECT horizons FROM outbox_horizons_v1('{orders}')") == [after]


KEYS_OF_THE_LIBRARY = """
    SELECT pg_advisory_lock(key)
    FROM (
        SELECT outbox_floor_key(channel, floor)
        FROM unnest('{"",orders}'::text[]) AS channel, generate_series(%s - 5, %s + 50) AS floor
        UNION SELECT outbox_idle_key('orders') UNION SELECT outbox_bucket_key('orders')
        UNION SELECT outbox_waiter_key('billing')
    ) AS taken (key)
"""


def test_a_project_that_locks_the_numbers_of_the_library_delays_nothing(session, connect):
    """Exclusive locks on the very keys of the next floors, of sleepers, waiters and claims: publishers
    take a lower floor, and workers handle each message at once."""
    stranger, publisher = connect(), connect()
    before = insert(session)
    billing = worker("billing")
    exhaust(billing)
    execute(stranger, KEYS_OF_THE_LIBRARY, before, before)
    execute(stranger, "SELECT pg_advisory_lock(20291, outbox_claim_number(id)) FROM outbox_cursor")
    execute(publisher, "SET lock_timeout = '20s'")
    execute(publisher, "BEGIN")
    raw = insert(publisher)
    open_horizon = horizon(session)
    execute(publisher, "COMMIT")
    published = publish_order()
    exhaust(billing)

    assert open_horizon < raw
    assert horizon(session) == published
    assert handled("billing") == [before, raw, published]


def test_the_keys_of_the_library_do_not_meet():
    """Floors, idle workers, buckets, waiters, shapes and claims differ in their upper 16 bits."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT outbox_floor_key('x', 1) >> 48, outbox_idle_key('x') >> 48,"
            " outbox_bucket_key('x') >> 48, outbox_waiter_key('x') >> 48,"
            " outbox_lock_key(20299, 'x') >> 48, 20291"
        )
        kinds = cursor.fetchone()

    assert len(set(kinds)) == len(kinds)


# A hint never fails a publisher.


@pytest.fixture
def sleeper(connect):
    """A session that sleeps in the channel orders, as an idle worker does."""
    a_session = connect()
    execute(a_session, "SELECT pg_advisory_lock_shared(outbox_idle_key('orders'))")
    execute(a_session, "LISTEN sleeping")
    return a_session


PUBLISH = "SELECT outbox_publish_v1('orders', NULL, 'Raw', '{}', '{}')"


@pytest.mark.parametrize(
    ("statements", "is_prepared"),
    [([PLAIN], True), (["SET LOCAL outbox.notify = off", PUBLISH], True), ([PUBLISH], False)],
)
def test_a_publisher_may_prepare_its_transaction(sleeper, connect, statements, is_prepared):
    """While a worker sleeps: a raw INSERT sends no NOTIFY where the server allows two-phase commit,
    and publish() sends none when outbox.notify is off."""
    publisher = connect()
    if value(publisher, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    execute(publisher, "BEGIN")
    for statement in statements:
        execute(publisher, statement)
    try:
        execute(publisher, "PREPARE TRANSACTION 'outbox-hint'")
    except connection.Database.Error:
        prepared = False
    else:
        prepared = True
        execute(publisher, "ROLLBACK PREPARED 'outbox-hint'")

    assert prepared is is_prepared


def test_a_full_notify_queue_fails_no_publisher(sleeper, connect, session):
    """Below a tenth of free space in the server's queue no NOTIFY is sent, and COMMIT succeeds."""
    listener, publisher = connect(), connect()
    original = value(
        session, "SELECT pg_get_functiondef('outbox_notify(text, boolean)'::regprocedure)"
    )
    full = original.replace("pg_notification_queue_usage()", "(0.95)::double precision")
    assert full != original
    name = value(session, "SELECT outbox_signal_name('orders')")
    execute(listener, f'LISTEN "{name}"')
    try:
        execute(session, full)
        execute(publisher, PUBLISH)
        heard_while_full = heard(listener)
    finally:
        execute(session, original)
    execute(publisher, PUBLISH)

    assert heard_while_full == 0
    wait_until(lambda: heard(listener) == 1)


def heard(session):
    """How many notifications have reached a session."""
    execute(session, "SELECT 1")
    if hasattr(session, "notifies") and not callable(session.notifies):
        session.poll()
        return len(session.notifies)
    return len(list(session.notifies(timeout=0)))


def test_a_prepared_floor_counts_and_keeps_its_holder(session, connect):
    """Floor and relation lock of a prepared transaction belong to the same transaction number."""
    publisher = connect()
    if value(session, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    before = insert(session)
    execute(publisher, "BEGIN")
    execute(publisher, PUBLISH.replace("'orders'", "'a'"))
    pid = backend(publisher)
    execute(publisher, "PREPARE TRANSACTION 'outbox-floor'")
    try:
        after = insert(session)
        held = execute(session, "SELECT floor, pid FROM outbox_floors(%s)", after)
        horizons = value(session, "SELECT horizons FROM outbox_horizons_v1('{a,b}')")
    finally:
        execute(session, "ROLLBACK PREPARED 'outbox-floor'")

    assert pid
    assert held == [(before, None)]
    assert horizons == [before, after]
