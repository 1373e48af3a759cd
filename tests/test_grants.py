"""Least privilege: what the roles of `outbox grants` may do, and what they may not."""

from __future__ import annotations

import json

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

import outbox
from outbox.operations.grants import RIGHTS, grants
from outbox.worker import Worker
from tests.support.harness import drain, handled

pytestmark = pytest.mark.django_db(transaction=True)

READ = "SELECT payload FROM outbox_message"
ROUTED = "SELECT payload FROM outbox_event_router"
PUBLISH = "SELECT outbox_publish_v1('orders', '1', 'OrderPlaced', '{\"order_id\": 1}', '{}')"
APPEND = (
    "SELECT outbox_lock_stream_v1('orders', '1', true),"
    " outbox_append_to_stream_v1('orders', '1', 'OrderPlaced', '{}', '{}', NULL, NULL)"
)
FORGET_STREAM = "DELETE FROM outbox_stream"
PLAIN = "INSERT INTO outbox_message (channel, type, payload) VALUES ('orders', 'Raw', '{}')"
CHOSEN = "INSERT INTO outbox_message (position, channel, type, payload) VALUES (1, 'a', 'b', '{}')"
BACKDATED = (
    "INSERT INTO outbox_message (created_at, channel, type, payload)"
    " VALUES ('2001-01-01', 'a', 'b', '{}')"
)
MOVE = "UPDATE outbox_cursor SET position = 0"
ERASE = "TRUNCATE outbox_message, outbox_cursor"
HORIZON = "SELECT outbox_horizon()"
ADVANCE = "SELECT setval('outbox_message_position_seq', 1000000)"
RECORD = """INSERT INTO outbox_operator_action (actor, action, "group", details)
    VALUES ('a', 'b', 'c', '{}')"""
MAY = {
    "publisher": {PUBLISH, APPEND, PLAIN, HORIZON},
    "consumer": {READ, ROUTED, MOVE, HORIZON},
    "operator": {READ, ROUTED, MOVE, HORIZON, RECORD},
    "reader": {READ, ROUTED, HORIZON},
}
ALL = [
    *(READ, ROUTED, PUBLISH, APPEND, FORGET_STREAM, PLAIN, CHOSEN, BACKDATED),
    *(MOVE, ERASE, HORIZON, ADVANCE, RECORD),
]


@pytest.fixture
def role():
    """A new role with the rights of a kind; the session is that role inside the block."""
    made = []

    def make(kind):
        name = f"outbox test {kind}"
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE ROLE "{name}"')
            made.append(name)
            for statement in grants(kind, name):
                cursor.execute(statement)
        return name

    yield make
    with connection.cursor() as cursor:
        cursor.execute("RESET ROLE")
        for name in made:
            cursor.execute(f'DROP OWNED BY "{name}"')
            cursor.execute(f'DROP ROLE "{name}"')


def may(role, statement):
    """Whether a role may run a statement; nothing of it is kept."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f'SET LOCAL ROLE "{role}"')
            cursor.execute(statement)
            transaction.set_rollback(True)
    except DatabaseError:
        return False
    return True


@pytest.mark.parametrize("kind", RIGHTS)
def test_a_role_may_do_its_work_and_nothing_else(role, kind):
    """Publishing needs no right to read payloads, to choose positions or times, to see who
    reads, or to delete the version of a stream;
    nobody but the owner empties the log or moves the sequence."""
    name = role(kind)

    assert {statement for statement in ALL if may(name, statement)} == MAY[kind]


def test_a_publisher_may_be_the_first(role):
    """The first message of a log needs no more rights than a later one."""
    name = role("publisher")
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval('outbox_message_position_seq', 5000, false)")

    assert may(name, PLAIN)
    assert may(name, PUBLISH)


def test_a_consumer_handles_messages(role):
    """A worker registers its group, claims, commits and parks with a consumer's rights."""
    group = outbox.ConsumerGroup("of a role", channels=["orders"], start="earliest")
    seen = []
    group.handler("Raw")(lambda payload, message: seen.append(message.position))
    with transaction.atomic():
        position = outbox.publish_raw("orders", "Raw", {})
    name = role("consumer")
    with connection.cursor() as cursor:
        cursor.execute(f'SET ROLE "{name}"')
    Worker([group]).drain()
    with connection.cursor() as cursor:
        cursor.execute("RESET ROLE")

    assert seen == [position]
    assert handled("billing") == []
    assert drain("billing") >= 0


def test_grants_prints_statements(capsys):
    """A statement per line, for each role; --json prints a list; without a role it is an error."""
    call_command("outbox", "grants", "--publisher", "web", "--reader", 'a"b')
    lines = capsys.readouterr().out.splitlines()
    call_command("outbox", "grants", "--publisher", "web", "--json")
    listed = json.loads(capsys.readouterr().out)

    assert lines[: len(listed)] == listed
    assert all(line.startswith("GRANT ") and line.endswith(";") for line in lines)
    assert any('"a""b"' in line for line in lines)
    with pytest.raises(CommandError, match="--publisher"):
        call_command("outbox", "grants")
