"""What the two drivers do differently, on real connections."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection, transaction

from outbox import database
from outbox.exceptions import BrokenTransaction
from tests.support.harness import DRIVER_ERROR, backend, execute, terminate
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_transaction_state_is_read_without_a_round_trip(connect):
    """Idle, in a transaction, broken, and idle again after the rollback."""
    session = connect()
    status = database.status_reader(session)
    states = [status()]
    execute(session, "BEGIN")
    states.append(status())
    with pytest.raises(DRIVER_ERROR):
        execute(session, "SELECT 1/0")
    states.append(status())
    execute(session, "ROLLBACK")

    assert [*states, status()] == [
        database.IDLE,
        database.IN_TRANSACTION,
        database.IN_ERROR,
        database.IDLE,
    ]


def test_a_swallowed_database_error_is_noticed():
    """The transaction is broken although the handler went on as if nothing had happened."""
    with transaction.atomic():
        check = database.transaction_check(connection)
        check()
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
        with pytest.raises(
            BrokenTransaction, match=r"wrap the statement that may fail in transaction\.atomic"
        ):
            check()
        transaction.set_rollback(True)


def test_a_transaction_that_is_marked_for_rollback_is_noticed():
    """`set_rollback(True)`, or an inner atomic() without a savepoint, dooms it as well."""
    with transaction.atomic():
        check = database.transaction_check(connection)
        transaction.set_rollback(True)
        with pytest.raises(BrokenTransaction):
            check()


def test_an_error_inside_a_savepoint_is_none():
    """An error that an inner atomic() rolled back leaves the transaction whole."""
    with transaction.atomic():
        check = database.transaction_check(connection)
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
        check()


def test_a_lost_connection_is_told_from_a_living_one(connect):
    """Closed by this side, or ended by the server: both are lost."""
    closed, ended, observer = connect(), connect(), connect()
    assert not database.is_lost(ended)
    closed.close()
    assert terminate(observer, database.backend_pid(ended))
    with pytest.raises(DRIVER_ERROR):
        execute(ended, "SELECT 1")

    assert database.is_lost(closed)
    assert database.is_lost(ended)
    assert database.is_lost(None)


def test_the_server_process_and_the_socket_are_known(connect):
    """The process id is the server's; the descriptor can be waited on."""
    session = connect()

    assert database.backend_pid(session) == backend(session)
    assert database.fileno(session) > 2


def test_notifications_are_counted_once(connect):
    """Those on the socket, and those that came with the result of another statement."""
    listener, sender = connect(), connect()
    heard = database.heard_notifications(listener)
    execute(listener, "LISTEN here")
    assert database.take_notifications(listener, heard) == 0

    execute(sender, "NOTIFY here")
    wait_until(lambda: database.take_notifications(listener, heard) == 1)
    execute(sender, "NOTIFY here, 'a'")
    execute(sender, "NOTIFY here, 'b'")
    wait_until(lambda: execute(listener, "SELECT 1") and len(heard) == 2)
    assert database.take_notifications(listener, heard) == 2
    assert database.take_notifications(listener, heard) == 0


def test_forgotten_notifications_are_not_heard(connect):
    """After `forget_notifications` the list stays as it is emptied."""
    listener, sender = connect(), connect()
    heard = database.heard_notifications(listener)
    execute(listener, "LISTEN here")
    execute(sender, "NOTIFY here")
    wait_until(lambda: execute(listener, "SELECT 1") and heard)
    database.forget_notifications(listener, heard)

    assert not heard
