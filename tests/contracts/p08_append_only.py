"""Promise 8: the log is append-only, enforced by the database; consuming writes nothing to it."""

import pgtrigger
import pytest
from django.db import DatabaseError, connection, transaction

import outbox
from outbox.models import Message
from tests.shop.consumers import bulk_groups
from tests.shop.events import OrderPlaced
from tests.shop.models import Fault
from tests.support.amounts import amount
from tests.support.harness import DRIVER_ERROR, copy_in, drain, execute, insert, stored, value
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = amount(50_000, 200_000)
FEW_PAGES = 4

PARTITIONS = """
    SELECT relid::regclass::text FROM pg_partition_tree('outbox_message'::regclass) WHERE isleaf ORDER BY 1
"""

LOG_STATISTICS = """
    SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint,
        coalesce(sum(n_tup_del), 0)::bigint, coalesce(sum(n_dead_tup), 0)::bigint
    FROM pg_stat_user_tables
    WHERE relid IN (SELECT relid FROM pg_partition_tree('outbox_message'::regclass) WHERE isleaf)
"""


@pytest.fixture
def session(connect):
    return connect()


@pytest.fixture
def partitions(session):
    """The names of the log's leaf partitions, the DEFAULT partition among them."""
    return [name for (name,) in execute(session, PARTITIONS)]


def content(session):
    return execute(
        session, "SELECT message.*::text FROM outbox_message AS message ORDER BY position"
    )


REWRITES = {
    "update": "UPDATE {table} SET type = 'Forged'",
    "update of nothing": "UPDATE {table} SET type = type WHERE position = -1",
    "delete": "DELETE FROM {table}",
    "delete of nothing": "DELETE FROM {table} WHERE position = -1",
    "truncate": "TRUNCATE {table}",
    "move to another segment": "UPDATE {table} SET position = position + 1000000000",
    "upsert": """
        INSERT INTO {table} (position, channel, type, payload, headers) SELECT position, 'orders', 'Forged', payload, headers
        FROM outbox_message ON CONFLICT (position) DO UPDATE SET type = 'Forged'
    """,
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_of_the_log_is_refused(session, rewrite):
    """The database refuses every statement that would change or remove a message, whoever sends
    it."""
    insert(session)
    before = content(session)
    with pytest.raises(DRIVER_ERROR):
        execute(session, REWRITES[rewrite].format(table="outbox_message"))

    assert content(session) == before


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_of_a_partition_is_refused(session, partitions, rewrite):
    """Naming a partition instead of the log is no way around it."""
    insert(session)
    before = content(session)
    for partition in partitions:
        with pytest.raises(DRIVER_ERROR):
            execute(session, REWRITES[rewrite].format(table=partition))

    assert len(partitions) > 1
    assert content(session) == before


def test_the_orm_cannot_rewrite_the_log(session):
    """The model is no way around it, either."""
    insert(session)
    before = content(session)
    refused = (DatabaseError, outbox.OutboxError)
    with pytest.raises(refused):
        Message.objects.update(type="Forged")
    with pytest.raises(refused):
        Message.objects.all().delete()
    with pytest.raises(refused):
        Message.objects.get().delete()
    with pytest.raises(refused):
        message = Message.objects.get()
        message.type = "Forged"
        message.save()

    assert content(session) == before


def test_ignored_triggers_still_guard_the_log(session):
    """`pgtrigger.ignore`, a switch for the triggers of a project, does not switch these off."""
    position = insert(session)
    before = content(session)
    with pytest.raises(DatabaseError), pgtrigger.ignore():
        Message.objects.update(type="Forged")
    with pytest.raises(DatabaseError), pgtrigger.ignore():
        Message.objects.create(
            position=position + 7, channel="orders", type="A", payload={}, headers={}
        )

    assert content(session) == before


def test_an_insert_into_a_partition_is_refused(session, partitions):
    """The floor is taken by an INSERT into the log; one that names a partition would go past it."""
    for partition in partitions:
        with pytest.raises(DRIVER_ERROR):
            execute(
                session,
                f"INSERT INTO {partition} (channel, type, payload, headers) VALUES ('orders', 'A', '{{}}', '{{}}')",
            )

    assert stored() == []


def test_an_insert_into_a_partition_is_refused_after_a_proper_publish(session, partitions):
    """A transaction that holds a floor may not name a partition, either."""
    execute(session, "BEGIN")
    insert(session)
    for partition in partitions:
        execute(session, "SAVEPOINT attempt")
        with pytest.raises(DRIVER_ERROR):
            execute(
                session,
                f"INSERT INTO {partition} (channel, type, payload, headers) VALUES ('orders', 'A', '{{}}', '{{}}')",
            )
        execute(session, "ROLLBACK TO SAVEPOINT attempt")
    execute(session, "COMMIT")

    assert len(stored()) == 1


def test_a_copy_into_a_partition_is_refused(session, partitions):
    """COPY is no way around it."""
    for partition in partitions:
        with pytest.raises(DRIVER_ERROR):
            copy_in(
                session,
                f"COPY {partition} (channel, type, payload, headers) FROM STDIN",
                "orders\tA\t{}\t{}\n",
            )

    assert stored() == []


def load(session, messages):
    """Store a backlog in one statement."""
    execute(
        session,
        "INSERT INTO outbox_message (channel, key, type, payload, headers)"
        " SELECT 'bulk', (number %% 1000)::text, 'Bulk', jsonb_build_object('number', number), '{}'::jsonb"
        " FROM generate_series(1, %s) AS number",
        messages,
    )


def flush_statistics(session):
    """Hand the session's counts to the server now; before PostgreSQL 15 it does so by itself within
    a second."""
    if value(session, "SELECT current_setting('server_version_num')::int") >= 150000:
        execute(session, "SELECT pg_stat_force_next_flush()")


@pytest.mark.timeout(300)
def test_three_groups_consume_a_backlog_without_writing_to_the_log(session):
    """After tens of thousands of messages went through three groups: no dead tuple, no update, no
    lock mark; a tiny cursor table."""
    for each in (connection, session):
        flush_statistics(each)
    execute(session, "VACUUM outbox_message")  # of inserts that earlier tests rolled back
    ((inserted, updated, deleted, dead_before),) = execute(session, LOG_STATISTICS)
    load(session, MESSAGES)
    flush_statistics(session)
    wait_until(lambda: execute(session, LOG_STATISTICS)[0][0] >= inserted + MESSAGES)
    log_size = value(
        session,
        "SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('outbox_message'::regclass)",
    )
    advanced = [drain(group) for group in bulk_groups]
    flush_statistics(connection)
    execute(session, "SELECT pg_stat_clear_snapshot()")
    ((_, updated_after, deleted_after, dead),) = execute(session, LOG_STATISTICS)
    touched = value(session, "SELECT count(*) FROM outbox_message WHERE xmax <> 0")
    log_size_after = value(
        session,
        "SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('outbox_message'::regclass)",
    )
    cursor_pages = value(
        session, "SELECT pg_relation_size('outbox_cursor') / current_setting('block_size')::int"
    )

    assert advanced == [MESSAGES] * 3
    assert dead <= dead_before
    assert (updated_after - updated, deleted_after - deleted) == (0, 0)
    assert touched == 0
    assert log_size_after - log_size < log_size / 100  # visibility and free space maps
    assert 0 < cursor_pages <= FEW_PAGES


def test_a_failing_consumer_writes_nothing_to_the_log():
    """Attempts and errors are kept at the cursor, not at the message."""
    Fault.objects.create(group="billing")
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1, note="fragile"))
    before = content(connection)
    drain("billing")

    assert content(connection) == before
    assert value(connection, "SELECT count(*) FROM outbox_message WHERE xmax <> 0") == 0
