"""System checks: what is wrong with settings, declarations and databases, found at start."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection
from django.test import override_settings

import outbox
from outbox import events
from outbox.checks import databases as outbox_checks
from outbox.conf import Settings
from outbox.testing import isolated_groups
from tests.support.project import Project

pytestmark = pytest.mark.usefixtures("groups_of_the_apps")

ROUTER = """
class Router:
    def db_for_write(self, model, **hints):
        return "log" if model._meta.app_label == "outbox" else None

    def allow_migrate(self, db, app_label, **hints):
        return db == "log" if app_label == "outbox" else None
"""
UNREACHABLE = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "/nowhere"}


def run_checks(**options):
    found = checks.run_checks(tags=["outbox"], **options)
    return {each.id: each for each in found}


def check_settings(given):
    with override_settings(OUTBOX=given):
        return run_checks()


def test_the_test_project_is_clean():
    """No finding without a reason."""
    assert run_checks() == {}


@pytest.mark.parametrize("given", [None, [], "BATCH_SIZE", {"BATCH_SIZE"}])
def test_outbox_is_a_dict(given):
    """E001 says what it is instead and lists the keys."""
    found = check_settings(given)["outbox.E001"]

    assert found.msg == f"OUTBOX is {given!r}, not a dict."
    assert "BATCH_SIZE" in found.hint


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("BATCHSIZE", "Did you mean 'BATCH_SIZE'?"),
        ("batch_size", "Did you mean 'BATCH_SIZE'?"),
        ("POLL_INTERVALL", "Did you mean 'POLL_INTERVAL'?"),
        ("SOMETHING_ELSE", None),
        (5, None),
    ],
)
def test_an_unknown_key_is_refused(key, hint):
    """E002 names the key, suggests the nearest, and lists all."""
    found = check_settings({key: 1, "BATCH_SIZE": 5})

    assert list(found) == ["outbox.E002"]
    assert found["outbox.E002"].hint == hint
    assert found["outbox.E002"].msg == (
        f"OUTBOX has an unknown key {key!r}. Known keys: {', '.join(Settings.keys())}."
    )


@pytest.mark.parametrize(
    ("key", "value", "use"),
    [
        *(("REQUIRE_TRANSACTION", value, "True or False") for value in ("no", 0, None)),
        *(
            ("BATCH_SIZE", value, "a whole number from 1 on")
            for value in ("500", 0, -1, 1.5, True, None)
        ),
        *(
            ("BATCH_SECONDS", value, "seconds above 0")
            for value in ("1", 0, -1, float("nan"), None)
        ),
        *(("POLL_INTERVAL", value, "seconds above 0") for value in ("5s", 0, float("inf"), True)),
        *(("LINGER", value, "seconds from 0 on") for value in ("0", -0.1, None)),
        *(
            ("LISTEN", value, "True, False or the alias of a database")
            for value in ("nowhere", None, 1, ["default"])
        ),
        *(("OPERATOR", value, "text without NUL") for value in (None, 5)),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, use):
    """E003 names the key, the value and what to use."""
    found = check_settings({key: value})

    assert list(found) == ["outbox.E003"]
    assert found["outbox.E003"].msg == f"OUTBOX[{key!r}] is {value!r}; use {use}."


@pytest.mark.parametrize(
    "given",
    [
        {"LISTEN": "default", "LINGER": 0, "POLL_INTERVAL": 1},
        {"LISTEN": False, "BATCH_SECONDS": 0.5, "OPERATOR": ""},
    ],
)
def test_good_values_pass(given):
    """Whole numbers count as seconds, and LISTEN takes an alias."""
    assert check_settings(given) == {}


def test_two_groups_of_one_name_are_an_error():
    """E004 names both with their channels and places."""
    with isolated_groups(empty=True):
        exec(
            "outbox.ConsumerGroup('same', ['orders'])",
            {"outbox": outbox, "__name__": "a.consumers"},
        )
        exec(
            "\noutbox.ConsumerGroup('same', ['payments'])",
            {"outbox": outbox, "__name__": "b.consumers"},
        )
        found = run_checks()

    assert found["outbox.E004"].msg == (
        "Two consumer groups are named 'same': one of orders in a.consumers:1 and one of payments in "
        "b.consumers:2."
    )
    assert "Rename one of them." in found["outbox.E004"].hint


def test_an_event_that_cannot_be_decoded_is_an_error(monkeypatch):
    """E010: an annotation that names nothing, or a type that msgspec cannot decode."""
    monkeypatch.setattr(events, "_registry", {})

    class Lost(outbox.Event, channel="checks"):
        lines: list[Missing]  # noqa: F821

    class Ambiguous(outbox.Event, channel="checks"):
        value: dict[str, Any] | tuple[int, ...] | list[int]

    found = [each for each in checks.run_checks(tags=["outbox"]) if each.id == "outbox.E010"]

    assert "Ambiguous: Type unions may not contain more than one array-like" in found[0].msg
    assert found[1].msg.endswith("Lost: name 'Missing' is not defined")


def run_project(tmp_path, databases, *arguments, **settings):
    """Run a command of another project; return its exit code and all it wrote."""
    project = Project(tmp_path, databases, **settings)
    project.write("routers.py", ROUTER)
    done = project.python("-m", "django", *arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["check"], ["check", "--database", "default"], ["migrate"]])
def test_a_database_that_is_not_postgresql_is_refused(tmp_path, arguments):
    """E005 needs no connection, and comes before migrate does anything."""
    file = tmp_path / "db.sqlite3"
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}
    code, written = run_project(tmp_path, {"default": sqlite}, *arguments)

    assert code == 1
    assert "(outbox.E005) Database 'default' is sqlite; the outbox needs PostgreSQL." in written
    assert written.count("outbox.E005") == 1
    assert "Let DATABASE_ROUTERS send the app 'outbox' to a PostgreSQL database." in written
    assert not file.exists() if arguments == ["check"] else file.read_bytes() == b""


def test_a_router_may_send_the_outbox_to_another_database(tmp_path):
    """Only the database that messages go to must be PostgreSQL."""
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")}
    databases = {"default": sqlite, "log": UNREACHABLE}
    code, written = run_project(tmp_path, databases, "check", DATABASE_ROUTERS=["routers.Router"])

    assert code == 0, written


def test_another_database_that_is_not_postgresql_is_refused_when_it_is_used(tmp_path):
    """A second alias counts only when it is asked about, as migrate does."""
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")}
    databases = {"default": UNREACHABLE, "other": sqlite}

    code, written = run_project(tmp_path, databases, "check")
    assert code == 0, written
    code, written = run_project(tmp_path, databases, "check", "--database", "other")
    assert code == 1
    assert "(outbox.E005) Database 'other' is sqlite" in written


def test_a_database_that_cannot_be_reached_is_a_warning(tmp_path):
    """W009: the log is not checked, and the check goes on."""
    code, written = run_project(
        tmp_path, {"default": UNREACHABLE}, "check", "--database", "default"
    )

    assert code == 0
    assert (
        "(outbox.W009) Database 'default' cannot be reached, so its log is not checked" in written
    )


@pytest.mark.django_db
def test_an_old_server_is_refused(monkeypatch):
    """E006 names the version that is there and the one that is needed."""
    old = "SELECT 130021, 1, ARRAY[]::text[]"
    monkeypatch.setattr(outbox_checks, "run_statement", lambda cursor, _: cursor.execute(old))
    found = run_checks(databases=["default"])

    assert list(found) == ["outbox.E006"]
    assert found["outbox.E006"].msg == (
        "Database 'default' runs PostgreSQL 13; the outbox needs 14 or newer."
    )


@pytest.mark.django_db
def test_a_sequence_with_a_cache_is_refused():
    """E007: cached positions would be handed out late and skipped; the hint repairs it."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER SEQUENCE outbox_message_position_seq CACHE 20")
        found = run_checks(databases=["default"])["outbox.E007"]
        cursor.execute(found.hint)

    assert "has CACHE 20: readers would skip messages" in found.msg
    assert run_checks(databases=["default"]) == {}


@pytest.mark.django_db
@pytest.mark.parametrize("trigger", ["take_floor", "check_positions_and_notify", "append_only"])
@pytest.mark.parametrize(
    "change", ["ALTER TABLE outbox_message DISABLE TRIGGER {}", "DROP TRIGGER {} ON outbox_message"]
)
def test_a_missing_or_disabled_trigger_is_refused(trigger, change):
    """E008 names the function that would not run."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'outbox_message'::regclass AND tgname LIKE %s",
            [f"pgtrigger_{trigger}%"],
        )
        (name,) = cursor.fetchone()
        cursor.execute(change.format(name))
    found = run_checks(databases=["default"])

    assert list(found) == ["outbox.E008"]
    assert "lacks its trigger(s), or they are disabled: outbox_" in found["outbox.E008"].msg
    assert "pgtrigger install" in found["outbox.E008"].hint


@pytest.mark.django_db
def test_a_command_that_consumes_is_stopped_by_an_error():
    """`consume` runs the checks of its database and handles nothing while one fails."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER SEQUENCE outbox_message_position_seq CACHE 20")
    with pytest.raises(SystemCheckError, match=r"outbox\.E007"):
        call_command("consume", "billing", "--drain")


@pytest.mark.django_db(transaction=True)
def test_a_session_that_ended_is_a_warning():
    """W009 also when the session goes away amid the checks: a worker that starts waits for its
    database instead of ending."""
    connection.ensure_connection()
    connection.connection.close()

    found = outbox_checks.check_database(databases=["default"])

    assert [each.id for each in found] == ["outbox.W009"]
    assert outbox_checks.check_database(databases=["default"]) == []


def test_a_rule_for_a_misspelt_channel_is_found():
    """W029 names the channel that was meant, which would lose messages by KEEP; another program's
    channel may have a rule."""
    rules = {"ordrs": {"keep": "forever"}, "of another program": {"keep": "1 day"}}
    found = check_settings({"KEEP": "1 day", "CHANNELS": rules})

    assert "has a rule for 'ordrs'" in found["outbox.W029"].msg
    assert "Did you mean 'orders'?" in found["outbox.W029"].msg
    assert check_settings({"CHANNELS": {"of another program": {"keep": "1 day"}}}) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"MASK": "tests.no_such_function"},
        {"MASK": "tests.settings.STATIC_URL"},
        {"OPERATOR": "a\0"},
    ],
)
def test_what_would_fail_later_is_found(given):
    """A function that cannot be imported, and text that PostgreSQL cannot store."""
    assert "outbox.E003" in check_settings(given)
