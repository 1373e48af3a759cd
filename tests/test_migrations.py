"""Migrations: what they make, that they take it away again, and that they suit other projects."""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.db import connection, transaction

import outbox
from outbox import message_log
from outbox.models import Message
from tests.support.harness import execute, value
from tests.support.processes import ROOT, open_session
from tests.support.project import Project

OBJECTS = """
    SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = %(schema)s::regnamespace
    UNION ALL
    SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
    UNION ALL
    SELECT 'type', typname::text FROM pg_type WHERE typnamespace = %(schema)s::regnamespace
    UNION ALL
    SELECT 'trigger', tgname::text FROM pg_trigger
    JOIN pg_class ON pg_class.oid = tgrelid WHERE relnamespace = %(schema)s::regnamespace
    UNION ALL
    SELECT 'constraint', conname::text FROM pg_constraint WHERE connamespace = %(schema)s::regnamespace
"""
USE = """
import outbox
from django.db import transaction
from outbox import groups, testing
from outbox.worker import Worker

group = outbox.ConsumerGroup("readers", channels=["c"])
seen = []
group.handler("Raw")(lambda payload, message: seen.append(payload))
with transaction.atomic():
    positions = [outbox.publish_raw("c", "Raw", number, key=str(number)) for number in range(3)]
Worker([group]).drain()
assert seen == [0, 1, 2], seen
print(positions)
"""
LAST = 80_000_000
"""The first position that no segment of the first migration holds."""


OTHERS = ("django_migrations", "_pgtrigger_should_ignore")


def objects(session, schema="public"):
    """Everything in a schema, as pairs of kind and name, but for what Django and pgtrigger keep."""
    with session.cursor() as cursor:
        cursor.execute(OBJECTS, {"schema": schema})
        return sorted(
            (kind, name)
            for kind, name in cursor.fetchall()
            if not any(each in name for each in OTHERS)
        )


@pytest.fixture
def session(empty_database):
    """A raw session of the empty database."""
    a_session = open_session(empty_database)
    yield a_session
    a_session.close()


def test_back_to_zero_leaves_nothing_behind(tmp_path, empty_database, session):
    """No table, sequence, function, trigger or type is left, also when there were messages; and the
    way forth is open again."""
    project = Project(tmp_path, {"default": empty_database})
    project.manage("migrate")
    made = objects(session)
    project.run(USE)
    project.manage("migrate", "outbox", "zero")
    left = objects(session)
    project.manage("migrate")

    assert left == []
    assert {"relation", "function", "trigger", "constraint"} <= {kind for kind, _ in made}
    assert objects(session) == made
    project.run(USE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"DEFAULT_AUTO_FIELD": "django.db.models.AutoField"},
        {"USE_TZ": False, "TIME_ZONE": "America/New_York", "LANGUAGE_CODE": "de"},
        {
            "PGTRIGGER_INSTALL_ON_MIGRATE": True,
            "INSTALLED_APPS": ["outbox", "pgtrigger", "django.contrib.contenttypes"],
        },
    ],
    ids=["plain", "AutoField", "no time zones", "other pgtrigger settings"],
)
def test_no_migration_is_missing_in_a_users_project(tmp_path, empty_database, settings):
    """`makemigrations --check` is clean whatever the project's defaults, and the log works there."""
    project = Project(tmp_path, {"default": empty_database}, **settings)
    project.manage("migrate")

    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    assert "no issues" in project.manage(
        "check", "--database", "default", "--fail-level", "WARNING"
    )
    project.run(USE)


def test_no_migration_is_missing_in_this_project():
    """The models and the migrations say the same, without the models of single test files."""
    command = [sys.executable, "-m", "tests.manage", "makemigrations", "--check", "--dry-run"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )

    assert "No changes detected" in done.stdout, done.stdout + done.stderr


def test_the_log_lives_in_any_schema(tmp_path, empty_database, session):
    """Tables and functions go where the search path leads, and are found there."""
    execute(session, "CREATE SCHEMA events")
    options = {**empty_database["OPTIONS"], "options": "-c search_path=events"}
    project = Project(tmp_path, {"default": {**empty_database, "OPTIONS": options}})
    project.manage("migrate")
    project.run(USE)

    assert objects(session) == []
    assert "no issues" in project.manage(
        "check", "--database", "default", "--fail-level", "WARNING"
    )
    project.manage("migrate", "outbox", "zero")
    assert objects(session, "events") == []


def test_an_ordinary_role_is_enough(tmp_path, empty_database, session):
    """Who owns the database needs to be no superuser to migrate, publish, consume and look."""
    if value(session, "SHOW is_superuser") != "on":
        pytest.skip("only a superuser can make a role to try it with")
    execute(session, "CREATE ROLE outbox_plain NOSUPERUSER")
    try:
        execute(session, "GRANT outbox_plain TO current_user")
        execute(session, f'ALTER DATABASE "{empty_database["NAME"]}" OWNER TO outbox_plain')
        execute(session, "ALTER SCHEMA public OWNER TO outbox_plain")
        options = {**empty_database["OPTIONS"], "options": "-c role=outbox_plain"}
        project = Project(tmp_path, {"default": {**empty_database, "OPTIONS": options}})
        project.manage("migrate")
        project.run(USE)
        project.manage("check", "--database", "default", "--fail-level", "WARNING")

        assert "readers" in project.manage("outbox", "groups")
        owners = (
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE 'outbox%'"
        )
        assert execute(session, owners) == [("outbox_plain",)]
    finally:
        execute(session, "REASSIGN OWNED BY outbox_plain TO current_user")
        execute(session, "DROP OWNED BY outbox_plain")
        execute(session, "DROP ROLE outbox_plain")


def test_the_plan_can_be_read(tmp_path, empty_database):
    """`sqlmigrate` prints the statements, there and back, for those who run them by hand."""
    project = Project(tmp_path, {"default": empty_database})

    assert "CREATE SEQUENCE outbox_message_position_seq" in project.manage(
        "sqlmigrate", "outbox", "0001"
    )
    assert "DROP TABLE outbox_message" in project.manage(
        "sqlmigrate", "outbox", "0001", "--backwards"
    )


def segments_of(positions):
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT position, tableoid::regclass::text FROM outbox_message WHERE position = ANY(%s)",
            [positions],
        )
        return dict(cursor.fetchall())


@pytest.mark.django_db
def test_a_missing_segment_fails_no_publisher(witness):
    """Positions behind the last segment lie in the default partition; readers go on across the
    border, in order."""
    seen = witness("migrations-border", "border").of("Raw")
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_value FROM outbox_message_position_seq")
        (last,) = cursor.fetchone()
        cursor.execute(f"ALTER SEQUENCE outbox_message_position_seq RESTART WITH {LAST - 2}")
    assert last < LAST
    with transaction.atomic():
        positions = [outbox.publish_raw("border", "Raw", number) for number in range(5)]
    where = segments_of(positions)

    assert positions == list(range(LAST - 2, LAST + 3))
    assert [where[position] for position in positions] == [
        *["outbox_message_70000000"] * 2,
        *["outbox_message_default"] * 3,
    ]
    assert message_log.horizon("default", count_own_floor=False) == LAST + 2
    assert seen.drain() == [0, 1, 2, 3, 4]
    assert Message.objects.filter(channel="border").count() == 5


@pytest.mark.django_db
@pytest.mark.parametrize("first", [2**32 - 2, 2**32 + 7, 2**33 - 1, 2**62])
def test_positions_beyond_32_bits_work(witness, first):
    """The floor's lock has 32 bits; the horizon is right below, at and above each multiple of them."""
    seen = witness("migrations-far", "far").of("Raw")
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SEQUENCE outbox_message_position_seq RESTART WITH {first}")
    with transaction.atomic():
        positions = [outbox.publish_raw("far", "Raw", number) for number in range(5)]

    assert positions == list(range(first, first + 5))
    assert message_log.horizon("default") == first - 1
    assert message_log.horizon("default", count_own_floor=False) == first + 4
    assert seen.drain() == [0, 1, 2, 3, 4]
