"""Least privilege: what the roles of `outbox grants` may do, and what they may not."""

from __future__ import annotations

import json

import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

import outbox
from outbox.changes import snapshot
from outbox.exceptions import RightsMissing
from outbox.operations import doctor
from outbox.operations.grants import RIGHTS, grants
from outbox.worker import Worker
from tests.bank.models import Tariff
from tests.library.models import Author
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


def as_role(name, act):
    """Call a function in a session that is the role."""
    with connection.cursor() as cursor:
        cursor.execute(f'SET ROLE "{name}"')
    try:
        return act()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE")


def grant(name, *rights):
    with connection.cursor() as cursor:
        for each in rights:
            cursor.execute(f'GRANT {each} TO "{name}"')


def test_a_publisher_writes_rows_that_are_captured_as_streams(role):
    """With the rights on the table and those of a publisher, many rows in one statement."""
    name = role("publisher")
    grant(name, "SELECT, INSERT, UPDATE, DELETE ON bank_tariff")

    def write():
        Tariff.objects.bulk_create(Tariff(region=region) for region in ("eu", "us", "asia"))
        Tariff.objects.update(price=3)
        Tariff.objects.filter(region="us").delete()

    as_role(name, write)
    histories = {
        region: [
            (version.stream_version, event["operation"])
            for event, version in outbox.stream("tariffs", region).read()
        ]
        for region in ("eu", "us", "asia")
    }

    kept = [(1, "insert"), (2, "update")]
    assert histories == {"eu": kept, "asia": kept, "us": [*kept, (3, "delete")]}


def test_an_operator_who_publishes_takes_a_snapshot(role):
    """It needs the rights on the table as well, since it locks the rows."""
    Author.objects.create(name="Ann")
    name = role("operator")
    with connection.cursor() as cursor:
        for statement in grants("publisher", name):
            cursor.execute(statement)
    grant(name, "SELECT, UPDATE ON library_author")

    assert as_role(name, lambda: snapshot.run(Author)) == 1


@pytest.mark.parametrize("kind", ["consumer", "operator", "reader"])
def test_the_doctor_finds_no_fault_in_a_role_that_may_read(role, kind):
    """Where it may not look into a segment it asks the catalog."""
    findings = as_role(role(kind), doctor.run_checks)

    assert [str(each) for each in findings if each.level == "fail"] == []


def test_a_lack_of_rights_names_the_way_out(role):
    """Functions and commands raise one error, which says what prints the statements."""
    name = role("publisher")
    hint = "permission denied for table outbox_cursor.*`manage.py outbox grants` prints"

    with pytest.raises(RightsMissing, match=hint):
        as_role(name, lambda: outbox.wait_for("billing", 1, timeout=1))
    found = as_role(name, lambda: checks.run_checks(tags=["outbox"], databases=["default"]))
    assert "outbox.I028" in {each.id for each in found}
    for arguments in (["consume", "billing", "--drain"], ["outbox", "groups"]):
        with pytest.raises(CommandError, match=hint):
            as_role(name, lambda each=arguments: call_command(*each))


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
