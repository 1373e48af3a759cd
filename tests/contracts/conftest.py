import contextlib
import re

import pytest
from django.db import DatabaseError, connection

from tests.shop.gates import GATES, gate_key
from tests.support.harness import backend, execute, value
from tests.support.processes import wait_until

HORIZONS_AS_REPLACED = """
    CREATE OR REPLACE FUNCTION outbox_horizons_v1(
        of_channels text[], excluded_pid integer DEFAULT NULL,
        OUT last_position bigint, OUT horizons bigint[]
    ) LANGUAGE plpgsql VOLATILE AS $function$
    BEGIN
        last_position := outbox_horizon();
        horizons := array_fill(last_position, ARRAY[cardinality(of_channels)]);
    END
    $function$
"""

REPLACED_HORIZON = """
    CREATE OR REPLACE FUNCTION outbox_horizon() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $function$
    BEGIN
        {body}
    END
    $function$
"""

LOCKS_THEN_GATE = """
    CREATE FUNCTION public.locks_then_gate_rows() RETURNS SETOF pg_catalog.pg_locks
    LANGUAGE plpgsql AS $function$
    BEGIN
        RETURN QUERY SELECT * FROM pg_catalog.pg_locks;
        PERFORM pg_advisory_xact_lock_shared({gates}, {key});
    END
    $function$
"""


@pytest.fixture(autouse=True)
def early_log(db):
    """Each test begins with an empty log early in its sequence, however much the others published."""
    execute(connection, "SELECT setval('outbox_message_position_seq', 1000)")


@pytest.fixture(autouse=True)
def no_endless_wait(db):
    """A statement of the test itself that waits for a lock which nobody lets go fails the test."""
    execute(connection, "SET lock_timeout = '20s'")
    yield
    with contextlib.suppress(DatabaseError):
        execute(connection, "RESET lock_timeout")


@pytest.fixture
def connect(connect):
    """The same for the raw sessions."""

    def open_connection():
        session = connect()
        execute(session, "SET lock_timeout = '20s'")
        return session

    return open_connection


@pytest.fixture
def observer(connect):
    """A raw session that only looks."""
    return connect()


@pytest.fixture
def horizon_functions(connect):
    """The definitions of outbox_horizon and of what it calls, restored when the test ends."""
    session = connect()
    definitions = execute(
        session,
        "SELECT proname, pg_get_functiondef(oid) FROM pg_proc"
        r" WHERE (proname LIKE 'outbox\_horizon%' OR proname = 'outbox_floors')"
        " AND pronamespace = 'public'::regnamespace",
    )
    yield dict(definitions)
    for _, definition in definitions:
        execute(session, definition)
    execute(session, "DROP FUNCTION IF EXISTS outbox_horizon_kept()")
    execute(session, "DROP VIEW IF EXISTS public.locks_then_gate")
    execute(session, "DROP FUNCTION IF EXISTS public.locks_then_gate_rows()")


@pytest.fixture
def replace_horizon(connect, horizon_functions):
    """Give outbox_horizon another body; `outbox_horizon_kept()` is the original meanwhile."""
    session = connect()
    original = horizon_functions["outbox_horizon"]
    kept = original.replace("outbox_horizon(", "outbox_horizon_kept(", 1)
    assert kept != original

    def replace(body):
        execute(session, kept)
        execute(session, REPLACED_HORIZON.format(body=body))
        execute(session, HORIZONS_AS_REPLACED)

    return replace


@pytest.fixture
def hold_after_reading_locks(connect, horizon_functions):
    """Make outbox_horizon wait at a gate as soon as it has read pg_locks."""
    session = connect()

    def hold(name):
        execute(session, LOCKS_THEN_GATE.format(gates=GATES, key=gate_key(name)))
        execute(
            session,
            "CREATE VIEW public.locks_then_gate AS SELECT * FROM public.locks_then_gate_rows()",
        )
        replaced = 0
        for definition in horizon_functions.values():
            held, count = re.subn(r"\bpg_locks\b", "locks_then_gate", definition)
            replaced += count
            execute(session, held)
        assert replaced

    return hold


class UnconfirmedCommits:
    """Commits that are in the server's log already, and whose sessions wait for the word of a
    standby that does not exist.

    Only sessions that choose so wait; the server's other sessions keep their `synchronous_commit =
    off`.
    """

    def __init__(self, session):
        self.session = session
        self.begun = False

    def begin(self, probe, background):
        """Make commits wait from now on; the probe commits until one of its commits does."""
        self.begun = True
        execute(self.session, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        execute(self.session, "SELECT pg_reload_conf()")
        self.choose(probe)
        pid = backend(probe)
        background(self.commit_until_the_end, probe)
        wait_until(lambda: pid in self.waiting())

    def commit_until_the_end(self, probe):
        while self.begun:
            execute(probe, "SELECT pg_logical_emit_message(true, 'outbox', 'probe')")

    def choose(self, session):
        execute(session, "SET synchronous_commit = remote_write")

    def waiting(self):
        """The processes that have committed and wait for the standby's word."""
        return [
            pid
            for (pid,) in execute(
                self.session, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
        ]

    def end(self):
        """Answer all commits, and let later ones return at once."""
        if self.begun:
            self.begun = False
            execute(self.session, "ALTER SYSTEM RESET synchronous_standby_names")
            execute(self.session, "SELECT pg_reload_conf()")


@pytest.fixture
def unconfirmed_commits(connect, background):
    """Commits that stay unanswered until `end`. Needs a superuser and a server that can send its
    log."""
    session = connect()
    if value(session, "SHOW is_superuser") != "on":
        pytest.skip("only a superuser can set synchronous_standby_names")
    if (
        value(session, "SHOW wal_level") == "minimal"
        or value(session, "SHOW max_wal_senders") == "0"
    ):
        pytest.skip(
            "the server sends its log nowhere (wal_level minimal or max_wal_senders 0), so no commit waits"
        )
    if (
        value(session, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'")
        != "off"
    ):
        pytest.skip("the server's other sessions commit synchronously and would wait, too")
    commits = UnconfirmedCommits(session)
    try:
        commits.begin(connect(), background)
        yield commits
    finally:
        commits.end()
