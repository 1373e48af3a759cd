"""The doctor names each planted fault with its fix, and finds nothing where all is well."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction

import outbox
from outbox.embedded import Server
from outbox.exceptions import LogIsBusy
from outbox.operations import doctor, server_limits
from outbox.retention import log_lock, segments
from tests.shop.events import OrderPlaced
from tests.support.harness import backend, execute, insert, value
from tests.support.processes import manage, run_code

pytestmark = pytest.mark.django_db(transaction=True)

needs_pgbouncer = pytest.mark.skipif(
    not shutil.which("pgbouncer"), reason="pgbouncer is not installed"
)


def finding(check, using="default"):
    """What the doctor says in-process about one check."""
    (found,) = (each for each in doctor.run_checks(using) if each.check == check)
    return found


def asked(**variables):
    """Run the command in a process of its own; return its exit code and its findings by check."""
    done = manage("outbox", "doctor", "--json", **variables)
    return done.returncode, {each["check"]: each for each in json.loads(done.stdout)}


def examined(change, **variables):
    """Change the settings in a process of its own; return its findings by check."""
    code = f"""
import dataclasses, json
from django.conf import settings
from django.db import connections
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from outbox.operations import doctor, server_limits
options = connections["default"].settings_dict["OPTIONS"]
{change}
print(json.dumps([dataclasses.asdict(each) for each in doctor.run_checks()]))
"""
    done = run_code(code, **variables)
    assert done.returncode == 0, done.stderr
    return {each["check"]: each for each in json.loads(done.stdout)}


@pytest.fixture
def session(connect):
    return connect()


def test_where_all_is_well_nothing_fails(session):
    """Every check passes but the one for a setting that the test's server does not have."""
    name = connection.settings_dict["NAME"]
    execute(session, f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout = 600000')
    try:
        code, findings = asked()
    finally:
        execute(session, f'ALTER DATABASE "{name}" RESET idle_in_transaction_session_timeout')

    assert code == 0
    assert {each["level"] for each in findings.values()} == {"ok"}
    assert {each["fix"] for each in findings.values()} == {""}
    assert list(findings) == list(doctor.CHECKS)
    assert findings["idle-timeout"]["detail"] == "600 s"


def test_a_sequence_with_a_cache_fails(session):
    """Cached positions come out of order: readers would skip messages."""
    execute(session, "ALTER SEQUENCE outbox_message_position_seq CACHE 20")
    try:
        code, findings = asked()
    finally:
        execute(session, "ALTER SEQUENCE outbox_message_position_seq CACHE 1")

    assert code == 3
    assert findings["sequence"]["level"] == "fail"
    assert findings["sequence"]["detail"] == "its cache is 20: readers skip messages"
    assert findings["sequence"]["fix"] == "ALTER SEQUENCE outbox_message_position_seq CACHE 1;"


@pytest.mark.parametrize(
    "function", ["outbox_take_floor", "outbox_check_positions_and_notify", "outbox_forbid_changes"]
)
def test_a_disabled_trigger_fails(session, function):
    """Each trigger of the log is needed; the finding names the function that does not run."""
    name = value(
        session,
        "SELECT tgname FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid"
        " WHERE tgrelid = 'outbox_message'::regclass AND proname = %s",
        function,
    )
    execute(session, f"ALTER TABLE outbox_message DISABLE TRIGGER {name}")
    try:
        found = finding("triggers")
    finally:
        execute(session, f"ALTER TABLE ONLY outbox_message ENABLE ALWAYS TRIGGER {name}")

    assert found.level == "fail"
    assert function in found.detail
    assert "pgtrigger install" in found.fix


def test_a_trigger_that_leaves_out_role_replica_is_a_warning(session):
    """`pgtrigger enable` takes ENABLE ALWAYS from the log's triggers; the fix gives it back."""
    call_command("pgtrigger", "enable", "outbox.Message:take_floor")
    found = finding("triggers")
    execute(session, found.fix)

    assert found.level == "warn"
    assert "pgtrigger_take_floor" in found.detail
    assert finding("triggers").level == "ok"


def test_an_unguarded_segment_fails(session):
    """A statement that names the segment would go past the log's own triggers."""
    execute(session, "ALTER TABLE outbox_message_1 DISABLE TRIGGER outbox_segment_guard")
    found = finding("triggers")
    execute(session, found.fix)

    assert found.level == "fail"
    assert "outbox_message_1" in found.detail
    assert finding("triggers").level == "ok"


def test_a_standby_fails():
    """It does not see the locks of publishers, so it cannot tell how far the log can be read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    server = Server(folder / "data", options={"wal_level": "replica"})
    try:
        server.start()
        server.create_database("standby")
        variables = {"DATABASE_URL": server.url, "OUTBOX_TEST_DB": "standby"}
        assert manage("migrate", **variables).returncode == 0
        signal = folder / "data" / "standby.signal"
        signal.touch()
        owner = (folder / "data").stat()
        os.chown(signal, owner.st_uid, owner.st_gid)
        server.restart()
        code, findings = asked(**variables)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    assert code == 3
    assert findings["primary"]["level"] == "fail"
    assert findings["primary"]["detail"] == "this server is a standby"
    assert findings["primary"]["fix"].startswith("Point the alias at the primary")


def test_an_alias_with_repeatable_read_fails():
    """The isolation level of the alias's own transactions is what counts."""
    found = examined("options['isolation_level'] = IsolationLevel.REPEATABLE_READ")["isolation"]

    assert found["level"] == "fail"
    assert found["detail"].startswith("repeatable read")
    assert 'DATABASES["default"]' in found["fix"]


def test_a_server_with_serializable_as_its_default_fails(session):
    """The level may come from the server as well."""
    name = connection.settings_dict["NAME"]
    execute(
        session, f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'"
    )
    try:
        code, findings = asked()
    finally:
        execute(session, f'ALTER DATABASE "{name}" RESET default_transaction_isolation')

    assert code == 3
    assert findings["isolation"]["detail"].startswith("serializable")


def test_a_prepared_transaction_that_published_fails(session):
    """Nobody may ever end it: the finding names it, its age and both ways to end it."""
    execute(session, "BEGIN")
    insert(session)
    execute(session, "PREPARE TRANSACTION 'two phases'")
    try:
        code, findings = asked()
    finally:
        execute(session, "ROLLBACK PREPARED 'two phases'")

    assert code == 3
    assert findings["prepared"]["level"] == "fail"
    assert (
        "prepared transaction 'two phases' holds the horizon back" in findings["prepared"]["detail"]
    )
    assert findings["prepared"]["fix"] == (
        "COMMIT PREPARED 'two phases'; or ROLLBACK PREPARED 'two phases';"
    )


@needs_pgbouncer
def test_a_pooler_is_warned_of(pooled):
    """The server's process is another one than the driver was told."""
    code, findings = asked(**pooled)

    assert code == 0
    assert findings["pooler"]["level"] == "warn"
    assert 'Set OUTBOX["LISTEN"]' in findings["pooler"]["fix"]


@needs_pgbouncer
def test_a_pooler_is_fine_where_listening_is_off(pooled):
    """Workers that poll need nothing that a pooler in transaction mode lacks."""
    findings = examined("settings.OUTBOX = {'LISTEN': False}", **pooled)

    assert findings["pooler"]["level"] == findings["listen"]["level"] == "ok"
    assert "workers poll" in findings["pooler"]["detail"]


def test_a_transaction_that_holds_the_horizon_for_long_is_warned_of(session, monkeypatch):
    """The session is named, with the statement that ends it."""
    monkeypatch.setattr(doctor, "LONG_HOLD", 0)
    execute(session, "SET application_name = 'nightly import'")
    execute(session, "BEGIN")
    insert(session)
    found = finding("horizon")

    assert found.level == "warn"
    assert "'nightly import' holds it" in found.detail
    assert f"pg_terminate_backend({backend(session)})" in found.fix


def test_a_server_without_idle_timeout_is_warned_of():
    """A transaction that was forgotten would hold the horizon for ever."""
    found = finding("idle-timeout")

    assert found.level == "warn"
    assert found.fix.startswith("ALTER DATABASE")


@pytest.mark.parametrize(
    ("setting", "effect"),
    [
        ("statement_timeout", "is repeated with fewer messages"),
        ("lock_timeout", "gives up and tries again"),
        ("idle_in_transaction_session_timeout", "ends handlers that compute"),
    ],
)
def test_a_timeout_of_the_role_below_what_workers_take_is_warned_of(setting, effect):
    """The setting, its value and what it does to workers are named, with the statement that sets it."""
    found = examined(f"options['options'] = '-c {setting}=250'")["timeouts"]

    assert found["level"] == "warn"
    assert found["detail"].startswith(f"{setting} of this role is 0.25 s")
    assert effect in found["detail"]
    assert found["fix"].startswith("ALTER ROLE ")
    assert f"SET {setting} = '" in found["fix"]


def test_timeouts_that_leave_workers_time_are_fine():
    """They are listed."""
    found = examined("options['options'] = '-c statement_timeout=1h'")["timeouts"]

    assert found["level"] == "ok"
    assert "statement_timeout 3600 s" in found["detail"]


def test_workers_that_may_fill_the_lock_table_are_warned_of(session, declare_group, monkeypatch):
    """The setting that the fix names leaves half of the table free."""
    monkeypatch.setattr(server_limits, "MOST_IDLE_LOCKS", 100_000)
    sessions, prepared = (
        value(session, "SHOW max_connections"),
        value(session, "SHOW max_prepared_transactions"),
    )
    before = finding("locks")
    declare_group("wide", *(f"tenant-{number}" for number in range(20_000)))
    found = finding("locks")
    size = int(found.fix.split("=")[1].split(",")[0])

    assert before.level == "ok"
    assert found.level == "warn"
    assert size * (int(sessions) + int(prepared)) > 2 * 20_000


def test_few_segments_ahead_are_warned_of(monkeypatch):
    """The fix is the command that adds some."""
    monkeypatch.setattr(doctor, "FEWEST_AHEAD", 99)
    found = finding("segments")

    assert found.level == "warn"
    assert found.fix == "Run `manage.py outbox segments --ahead 198`."


@pytest.fixture
def beyond(session):
    """Draw positions from beyond the last segment, until the test ends."""
    last = value(session, "SELECT last_value FROM outbox_message_position_seq")
    execute(session, "SELECT setval('outbox_message_position_seq', 85000000)")
    before = {each.name for each in segments.list_segments()}
    yield
    execute(session, "SELECT setval('outbox_message_position_seq', %s)", last)
    execute(session, "TRUNCATE outbox_message, outbox_cursor")
    for each in segments.list_segments():
        if each.name not in before:
            execute(session, f"DROP TABLE {each.name}")


def test_messages_in_the_default_segment_are_warned_of(beyond):
    """No publisher failed, and the log needs a new segment."""
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
    found = finding("segments")

    assert found.level == "warn"
    assert found.detail == "messages lie in the default segment; 0 segments are ahead"


def test_segments_are_added_above_what_the_default_one_holds(beyond):
    """The new ones have the size of the others; messages go there when their positions are
    reached."""
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
    new = segments.create_ahead(2)
    uses = [each.use for each in segments.list_segments()]

    assert [(each.lower, each.upper) for each in new] == [
        (90_000_000, 100_000_000),
        (100_000_000, 110_000_000),
    ]
    assert all(each.guarded for each in new)
    assert uses == ["full"] * 8 + ["ahead"] * 2 + ["default"]
    assert segments.create_ahead(2) == []


def test_adding_a_segment_does_not_wait_for_long(beyond, session, monkeypatch):
    """Publishers queue behind the lock that it takes, so it gives up early."""
    monkeypatch.setattr(log_lock, "GIVE_UP_SECONDS", 0.1)
    execute(session, "BEGIN")
    insert(session)
    with pytest.raises(LogIsBusy, match=r"within 0\.1 s"):
        segments.create_ahead(1)
    execute(session, "ROLLBACK")

    assert len(segments.create_ahead(1)) == 1


def test_a_database_without_the_log_fails(session):
    """The doctor goes on after an error, and says to migrate."""
    execute(session, "CREATE SCHEMA empty")
    try:
        found = examined("options['options'] = '-c search_path=empty'")
    finally:
        execute(session, "DROP SCHEMA empty")

    assert found["sequence"]["level"] == "fail"
    assert found["sequence"]["fix"] == "Run `manage.py migrate outbox`."
    assert found["segments"]["level"] == "fail"
    assert found["server"]["level"] == "ok"


def test_a_server_that_does_not_answer_fails(tmp_path):
    """The only finding is the driver's own error."""
    code, findings = asked(DATABASE_URL=f"postgres://postgres@/postgres?host={tmp_path}")

    assert code == 3
    assert [*findings] == ["server"]
    assert "failed" in findings["server"]["detail"]


def test_another_database_fails(tmp_path):
    """Nothing else is asked of a database that is not PostgreSQL."""
    connections.databases["lite"] = {
        **connection.settings_dict,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "lite"),
        "OPTIONS": {},
    }
    try:
        (found,) = doctor.run_checks("lite")
    finally:
        del connections.databases["lite"]

    assert (found.check, found.level, found.detail) == ("server", "fail", "this is sqlite")


def test_the_doctor_works_inside_a_transaction():
    """An error of one check does not spoil the transaction of the caller."""
    with transaction.atomic():
        found = finding("listen")
        levels = {each.level for each in doctor.run_checks()}
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    assert found.level == "warn"
    assert "fail" not in levels


def test_a_session_that_ends_during_the_checks_is_a_finding():
    """The doctor tells of it instead of failing, and asks the other checks in a new session."""
    connection.ensure_connection()
    connection.connection.close()

    levels = [each.level for each in doctor.run_checks()]

    assert levels[0] == "fail"
    assert "fail" not in levels[1:]
