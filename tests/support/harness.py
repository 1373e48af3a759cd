"""What forces an interleaving: statements on raw sessions, closed gates, threads with their own
connections.

The facts that a test waits for are read from pg_locks and pg_stat_activity; a time limit only ends
a test that is lost.
"""

import threading

from django.db import connection, connections

from outbox import testing
from outbox.models import Cursor, Message
from outbox.worker import Worker
from tests.shop import consumers
from tests.shop.gates import GATES, gate_key
from tests.shop.models import Effect

DRIVER_ERROR = connection.Database.Error

INSERT = """
    INSERT INTO outbox_message (channel, key, type, payload, headers)
    VALUES (%s, %s, 'OrderPlaced', jsonb_build_object('order_id', %s::int, 'note', %s::text), '{}'::jsonb)
    RETURNING position
"""


def execute(session, statement, *parameters):
    """Run one statement on a raw connection; return its rows."""
    with session.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def value(session, statement, *parameters):
    """Run one statement on a raw connection; return the first column of its first row."""
    return execute(session, statement, *parameters)[0][0]


def copy_in(session, statement, text):
    """Run `COPY … FROM STDIN` on a raw connection of either driver."""
    with session.cursor() as cursor:
        if hasattr(cursor, "copy_expert"):
            import io

            cursor.copy_expert(statement, io.StringIO(text))
        else:
            with cursor.copy(statement) as copy:
                copy.write(text)


def insert(session, order_id=1, note="", channel="orders"):
    """Publish an OrderPlaced by plain SQL, as another program would; return its position."""
    return value(session, INSERT, channel, str(order_id), order_id, note)


def backend(session):
    return value(session, "SELECT pg_backend_pid()")


def horizon(session):
    return value(session, "SELECT outbox_horizon()")


def last_position(session):
    return value(session, "SELECT last_value FROM outbox_message_position_seq")


def floors(session, pid):
    """The floors that a server process holds (their low 32 bits); the log's locks have one bigint
    as their key."""
    rows = execute(
        session,
        "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        pid,
    )
    return [floor for (floor,) in rows]


def all_floors(session):
    """Every floor in this database, those of prepared transactions included."""
    rows = execute(
        session,
        "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return [floor for (floor,) in rows]


def waiting_for_locks(session):
    """The processes of this database that wait for any lock of another process."""
    rows = execute(
        session,
        "SELECT DISTINCT locks.pid FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)"
        " WHERE NOT locks.granted AND activity.datname = current_database()",
    )
    return [pid for (pid,) in rows]


def terminate(session, pid):
    return value(session, "SELECT pg_terminate_backend(%s)", pid)


class Gate:
    """Closed on creation by a session of its own; handlers that reach it wait until `open`."""

    def __init__(self, session, name):
        self.session, self.key = session, gate_key(name)
        execute(session, "SELECT pg_advisory_lock(%s, %s)", GATES, self.key)
        self.closed = True

    def waiting(self):
        """The server processes that wait at this gate."""
        rows = execute(
            self.session,
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND NOT granted"
            " AND classid::bigint = %s AND objid::bigint = %s",
            GATES,
            self.key,
        )
        return [pid for (pid,) in rows]

    def open(self):
        if self.closed:
            self.closed = False
            execute(self.session, "SELECT pg_advisory_unlock(%s, %s)", GATES, self.key)


class Background(threading.Thread):
    """A function in a thread with its own Django connections."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.function, self.arguments = function, arguments
        self.returned = self.error = None
        self.start()

    def run(self):
        try:
            self.returned = self.function(*self.arguments)
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    def result(self, timeout=120):
        """Wait for the end; return what the function returned, or raise what it raised."""
        self.join(timeout)
        assert not self.is_alive(), f"{self.function} still runs after {timeout} s"
        if self.error is not None:
            raise self.error
        return self.returned


def worker(*names, batch_size=500):
    """A worker of the named groups of the shop, whose cursors exist."""
    a_worker = Worker(groups=[getattr(consumers, name) for name in names], batch_size=batch_size)
    a_worker.register()
    return a_worker


def exhaust(a_worker):
    """Run a worker until it finds nothing to do; return how many messages it advanced over."""
    advanced = 0
    while (count := a_worker.run_once()) is not None:
        advanced += count
    return advanced


def drain(*groups):
    """Let groups handle what is pending; what fails backs off."""
    return testing.drain(*groups, raise_errors=False)


def handled(group, **conditions):
    """The positions that a group handled, in the order in which it did."""
    effects = Effect.objects.filter(group=group, **conditions).order_by("id")
    return list(effects.values_list("position", flat=True))


def stored():
    """The positions in the log."""
    return list(Message.objects.order_by("position").values_list("position", flat=True))


def cursor_of(group, channel="orders"):
    return Cursor.objects.get(group=group, channel=channel)


def due_now(group):
    """Let a group that backs off retry at once."""
    Cursor.objects.filter(group=group).update(retry_at=None)
