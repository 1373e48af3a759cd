"""Exactly once, whatever a handler does to the transaction and session that it is called in."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest
from django.db import connection, connections, transaction

import outbox
from outbox.consuming import outcomes
from outbox.consuming.claims import Claims
from outbox.consuming.outcomes import Outcome
from outbox.exceptions import StaleClaim
from outbox.operations import replay
from outbox.worker import Worker
from tests.shop.models import Effect
from tests.support.failing import account
from tests.support.processes import open_session, run_process, wait_until
from tests.support.publishing import CHANNEL, publish

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = outbox.Retry(max_attempts=1)
TWICE = outbox.Retry(max_attempts=2, base=0, jitter=False)


def run(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


def driver_commits():
    connection.connection.commit()
    run("SELECT 1")


def driver_rolls_back():
    connection.connection.rollback()
    run("SELECT 1")


ROLLS_BACK = {
    "ROLLBACK": lambda: run("ROLLBACK"),
    "ROLLBACK; BEGIN": lambda: (run("ROLLBACK"), run("BEGIN")),
    "driver.rollback()": driver_rolls_back,
}
COMMITS = {
    "COMMIT": lambda: run("COMMIT"),
    "COMMIT; BEGIN": lambda: (run("COMMIT"), run("BEGIN")),
    "driver.commit()": driver_commits,
}


def claimed(group, horizon):
    with transaction.atomic():
        claim, _ = Claims("default").claim([group], 10, end_position=horizon)
    return claim


def test_a_write_with_an_older_position_is_refused(script):
    """An advance names the position of its claim: one that has read the row before another worker
    moved it is refused."""
    billing = script()
    positions = publish("a", "b")
    Worker([billing.group]).register()
    claim = claimed(billing.group, positions[-1])
    billing.drain()
    cursor = billing.cursor()
    with pytest.raises(StaleClaim), transaction.atomic():
        with connection.cursor() as locking:
            locking.execute("SELECT pg_current_xact_id()::text")
            (number,) = locking.fetchone()
        outcomes.write(
            Outcome(claim=_of_transaction(claim, number), position=claim.position), "default"
        )

    assert billing.cursor().position == cursor.position
    assert account("scripted") == (2, 2)


@pytest.mark.parametrize("stale", ["generation", "lease_token", "transaction"])
def test_a_write_of_another_generation_token_or_transaction_is_refused(script, stale):
    """The row is at the claim's position, but was reset to it, was leased by another worker, or the
    transaction that locked it has ended: each alone refuses the advance."""
    billing = script()
    positions = publish("a", "b")
    Worker([billing.group]).register()
    claim = claimed(billing.group, positions[-1])
    with pytest.raises(StaleClaim), transaction.atomic():
        with connection.cursor() as locking:
            locking.execute("SELECT pg_current_xact_id()::text")
            (number,) = locking.fetchone()
        if stale != "transaction":
            of_others = {stale: getattr(claim, stale) + 1}
            claim = dataclasses.replace(claim, transaction=number, **of_others)
        outcomes.write(Outcome(claim=claim, position=positions[-1], processed=2), "default")

    assert billing.cursor().position == claim.position
    assert billing.drain() == 2


def _of_transaction(claim, number):
    return dataclasses.replace(claim, transaction=number)


def test_a_back_off_writes_nothing_when_another_worker_went_past(script):
    """Between a failed commit and the back-off after it another worker handles the messages: the
    cursor stays where that one moved it."""
    billing = script()
    positions = publish("a", "b")
    Worker([billing.group]).register()
    claim = claimed(billing.group, positions[-1])
    billing.drain()
    before = billing.cursor()
    outcomes.postpone(claim, ValueError("the commit failed"), "default")
    after = billing.cursor()
    billing.drain()

    assert (after.position, after.retry_at, after.last_error) == (before.position, None, "")
    assert set(billing.times().values()) == {1}


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("how", [*ROLLS_BACK, *COMMITS])
def test_a_handler_that_ends_its_transaction_fails_alone(script, how, size):
    """The message that ends the transaction is charged a failed attempt; the others of its batch are
    handled once."""
    billing = script(retry=TWICE)
    positions = publish(*[str(number) for number in range(size)])
    bad = positions[size // 2]

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == bad:
            {**ROLLS_BACK, **COMMITS}[how]()

    billing.do(handle)
    billing.drain()
    effects = Effect.objects.filter(group="scripted")

    assert billing.parked() == [(bad, "failed")]
    assert [each for each in billing.effects() if each != bad] == [p for p in positions if p != bad]
    assert effects.filter(position=bad).count() == (2 if how in COMMITS else 0)
    assert account("scripted") == (size, size)


def test_the_error_says_that_the_handler_ended_its_transaction(script):
    """The cursor's last error names the message, what it did, and the way out."""
    billing = script(retry=outbox.Retry(base=3600))
    (position,) = publish("a")
    billing.do(lambda payload, message: run("COMMIT"))
    billing.drain()

    assert billing.cursor().last_error.startswith(
        f"Order at {position}: TransactionEnded: The handler ended the transaction"
    )
    assert billing.cursor().attempts == 1


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL ROLE limited_by_test",
        "SET LOCAL search_path = pg_catalog",
        "SET LOCAL statement_timeout = 1",
    ],
)
def test_settings_left_behind_harm_no_message(script, statement, size):
    """SET LOCAL of a role, path or time limit ends with its message where it would be in the way of
    the library's statements."""
    billing = script(retry=ONCE)
    run("CREATE ROLE limited_by_test")
    positions = publish(*[str(number) for number in range(size)])

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == positions[size // 2]:
            run(statement)

    billing.do(handle)
    try:
        billing.drain()
    finally:
        run("DROP ROLE limited_by_test")

    assert billing.effects() == positions
    assert billing.parked() == []
    assert account("scripted") == (size, size)


@pytest.mark.parametrize("size", [1, 3])
def test_a_reset_of_the_own_group_in_a_handler_is_its_failure(script, size):
    """The reset is rolled back with the rest of the handler's work, and the message is charged."""
    billing = script(retry=TWICE)
    positions = publish(*[str(number) for number in range(size)])
    bad = positions[size // 2]

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == bad:
            replay.reset(billing.group, to_latest=True)

    billing.do(handle)
    billing.drain()

    assert billing.parked() == [(bad, "failed")]
    assert billing.effects() == [position for position in positions if position != bad]
    assert account("scripted") == (size, size)


@pytest.mark.parametrize("sqlstate", ["08006", "40001", "53200", "57P03", "58030"])
def test_an_error_of_the_server_is_charged_to_no_message(script, sqlstate):
    """A handler's statement that fails for want of the server's resources is tried again without
    being counted; the messages before it are kept."""
    billing = script(retry=ONCE)
    positions = publish("a", "b", "c")
    faults = [1]

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == positions[1] and faults:
            run(f"DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{sqlstate}'; END $$")

    billing.do(handle)
    Worker([billing.group]).run_once()
    cursor = billing.cursor()
    faults.clear()
    with connection.cursor() as due:
        due.execute("UPDATE outbox_cursor SET retry_at = NULL")
    billing.drain()

    assert (cursor.attempts, cursor.position) == (0, positions[0])
    assert "no room" in cursor.last_error
    assert billing.parked() == []
    assert billing.effects() == positions


def test_on_commit_functions_run_whatever_those_of_others_do(script, caplog):
    """A function that raises is logged with its message; those of all other messages run, and so do
    the signals of a parked one."""
    billing = script(retry=ONCE)
    positions = publish(*[str(number) for number in range(9)])
    ran = []
    heard = []

    def handle(payload, message):
        billing.handle(payload, message)

        def after():
            if message.position == positions[3]:
                raise ValueError("SMTP says no")
            ran.append(message.position)

        transaction.on_commit(after)

    def listen(**facts):
        heard.append(facts["message"].position)

    billing.do(handle)
    billing.faults[positions[5]] = ValueError()
    outbox.signals.message_parked.connect(listen)
    with caplog.at_level(logging.ERROR, "outbox"):
        billing.drain()
    outbox.signals.message_parked.disconnect(listen)

    assert ran == [each for each in positions if each not in (positions[3], positions[5])]
    assert heard == [positions[5]]
    assert (
        f"an on_commit() function of the message at position {positions[3]} raised" in caplog.text
    )
    assert account("scripted") == (9, 9)


def terminate():
    run("SELECT pg_terminate_backend(pg_backend_pid())")


def idle_too_long():
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 20")
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    wait_for_end_of(pid)


def wait_for_end_of(pid):
    """Wait until a backend is gone; another session looks."""
    session = open_session(connection.settings_dict)

    def is_gone():
        with session.cursor() as cursor:
            cursor.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
            return cursor.fetchone() is None

    wait_until(is_gone)
    session.close()


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("act", [terminate, idle_too_long, connections.close_all])
def test_a_message_that_ends_its_session_is_charged(script, act, place):
    """The failed attempt is counted in a new session; in the end the message is parked, and the
    others are handled once."""
    billing = script(retry=TWICE)
    positions = publish(*"abcde")
    bad = positions[place]
    billing.act_at(bad, act)
    billing.drain()
    attempts = [message.attempt for message in billing.runs if message.position == bad]

    assert billing.parked() == [(bad, "failed")]
    assert attempts == [1, 2]
    assert billing.effects() == [position for position in positions if position != bad]
    assert account("scripted") == (5, 5)


def test_the_error_of_an_ended_session_names_the_time_limits(script):
    """Whoever reads it sees which limit of the server may have ended the session."""
    billing = script(retry=outbox.Retry(base=3600))
    publish("a")
    billing.do(lambda payload, message: terminate())
    run("ALTER ROLE CURRENT_USER SET idle_session_timeout = 600000")
    try:
        billing.drain()
    finally:
        run("ALTER ROLE CURRENT_USER RESET idle_session_timeout")
        connection.close()

    assert "SessionEnded" in billing.cursor().last_error
    assert "idle_session_timeout is 600000 ms" in billing.cursor().last_error


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("error", [SystemExit(0), asyncio.CancelledError()], ids=["exit", "cancel"])
def test_what_ends_a_program_is_the_failure_of_its_message(script, error, delivery):
    """sys.exit() and a cancelled task in a handler do not end the worker."""
    billing = script(retry=TWICE, delivery=delivery)
    positions = publish("a", "b", "c")
    billing.faults[positions[1]] = error
    billing.drain()

    assert billing.parked() == [(positions[1], "failed")]
    assert sorted(set(billing.effects()) - {positions[1]}) == [positions[0], positions[2]]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_handler_that_returns_an_awaitable_fails(script, delivery):
    """Nothing of it has run, so it does not count as handled."""
    billing = script(retry=outbox.Retry(base=3600), delivery=delivery)
    publish("a")

    async def work():
        raise AssertionError

    billing.do(lambda payload, message: work())
    billing.drain()

    assert "NotAwaited: The handler returned a coroutine" in billing.cursor().last_error
    assert billing.cursor().processed == 0


SECOND_ALIAS = """
import django
django.setup()
from django.db import connections, transaction
connections.databases["second"] = {**connections.databases["default"]}
import outbox
from outbox.worker import Worker

group = outbox.ConsumerGroup(
    "second-alias", ["second"], retry=outbox.Retry(max_attempts=2, base=0, jitter=False)
)
backends = []

@group.handler("Note")
def handle(payload, message):
    with connections["second"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backends.append(cursor.fetchone()[0])

def publish_and_drain():
    with transaction.atomic():
        outbox.publish_raw("second", "Note", {})
    worker.drain()

worker = Worker([group])
publish_and_drain()
with connections["default"].cursor() as cursor:
    cursor.execute("SELECT pg_terminate_backend(%s, 60000)", backends)
publish_and_drain()
publish_and_drain()
print(len(backends), len(set(backends)))
"""


def test_another_alias_is_connected_again_between_batches():
    """A handler's second connection whose session ended costs one failed attempt; then it is new."""
    process = run_process("-c", SECOND_ALIAS)

    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["3", "2"]


def test_queries_that_debug_collects_are_forgotten_between_batches(script, settings):
    """A worker in DEBUG does not keep every statement it has run."""
    billing = script()
    settings.DEBUG = True
    for _ in range(5):
        publish("a")
        billing.drain()
    connection.force_debug_cursor = False

    assert len(connection.queries_log) < 40


def connects_anew():
    connection.close()
    connection.connect()


def replaces_the_drivers_connection():
    connection.connection = connection.get_new_connection(connection.get_connection_params())


def replaces_djangos_connection():
    del connections["default"]
    run("SELECT 1")


def prepares_it():
    run("PREPARE TRANSACTION 'of a handler'")


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    "act",
    [
        connects_anew,
        replaces_the_drivers_connection,
        replaces_djangos_connection,
        prepares_it,
    ],
)
def test_a_message_that_takes_the_transaction_away_is_charged(script, act, place):
    """A handler that replaces its connection or prepares its transaction fails for its message
    alone; the worker neither waits nor tries it for ever."""
    billing = script(retry=TWICE)
    positions = publish(*"abc")
    bad = positions[place]
    billing.act_at(bad, act)
    for _ in range(6):
        Worker([billing.group]).run_once()
    attempts = [message.attempt for message in billing.runs if message.position == bad]

    assert billing.parked() == [(bad, "failed")]
    assert set(attempts) == {1, 2}
    assert billing.effects() == [position for position in positions if position != bad]
    assert account("scripted") == (3, 3)


def test_a_handler_that_makes_its_transaction_read_only_is_charged(script):
    """The refused write of the progress is no read-only server: the message fails and is parked."""
    billing = script(retry=TWICE)
    positions = publish("a", "b")
    readable = positions[1]

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position != readable:
            run("SET TRANSACTION READ ONLY")

    billing.do(handle)
    Worker([billing.group], batch_size=1).drain()

    assert billing.parked() == [(positions[0], "failed")]
    assert billing.effects() == [readable]
    assert account("scripted") == (2, 2)


class ForeignTimeout(BaseException):
    """As gevent's Timeout: no Exception."""


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_an_error_that_is_no_exception_is_the_failure_of_its_message(script, delivery):
    """Only KeyboardInterrupt ends a worker: any other BaseException is the handler's failure."""
    billing = script(retry=TWICE, delivery=delivery)
    positions = publish("a", "b", "c")
    billing.faults[positions[1]] = ForeignTimeout()
    billing.drain()

    assert billing.parked() == [(positions[1], "failed")]
    assert account("scripted") == (3, 3)


@pytest.mark.parametrize(
    "statement",
    ["SET search_path = pg_catalog", "SET ROLE limited_by_test", "BEGIN"],
)
def test_a_session_that_a_handler_changed_is_replaced(script, caplog, statement):
    """What a handler sets for the whole session does not end the worker: it connects anew."""
    billing = script(retry=ONCE)
    run("CREATE ROLE limited_by_test")
    positions = publish("a", "b", "c")

    def handle(payload, message):
        billing.handle(payload, message)
        transaction.on_commit(lambda: run(statement))

    billing.do(handle)
    try:
        with caplog.at_level(logging.WARNING, "outbox"):
            Worker([billing.group], batch_size=1).run(until_idle=True)
    finally:
        run("DROP ROLE limited_by_test")

    assert billing.effects() == positions
    assert account("scripted") == (3, 3)
    assert statement == "BEGIN" or "may have changed its search_path" in caplog.text


def test_a_leased_handler_that_exchanges_the_driver_s_connection_is_done(script):
    """Django's connection has another session of the driver, not in autocommit mode."""
    billing = script(retry=ONCE, delivery="at_least_once")
    positions = publish("a", "b")

    def handle(payload, message):
        billing.handle(payload, message)
        parameters = connection.get_connection_params()
        connection.connection = connection.get_new_connection(parameters)

    billing.do(handle)
    Worker([billing.group]).run(until_idle=True)

    assert billing.effects() == positions
    assert account("scripted") == (2, 2)


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path = pg_catalog",
        "SET ROLE limited_by_test",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET default_transaction_read_only = on",
    ],
)
def test_a_leased_handler_that_changes_its_session_is_done(script, statement):
    """The progress is written in a new session; the message is not handled again."""
    billing = script(retry=ONCE, delivery="at_least_once")
    run("CREATE ROLE limited_by_test")
    positions = publish("a", "b")

    def handle(payload, message):
        billing.handle(payload, message)
        run(statement)

    billing.do(handle)
    try:
        Worker([billing.group]).run(until_idle=True)
    finally:
        run("DROP ROLE limited_by_test")

    assert billing.effects() == positions
    assert account("scripted") == (2, 2)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("place", ["upgrade", "__post_init__"])
def test_what_ends_a_program_in_an_event_class_is_the_failure_of_its_message(
    script, delivery, place
):
    """sys.exit() in upgrade() or __post_init__() is the project's code like a handler's: the worker
    goes on, the message is tried again and parked."""
    name = f"Exits_{place}_{delivery}"

    def exit_with(*args):
        raise SystemExit(3)

    body = {"upgrade": classmethod(exit_with)} if place == "upgrade" else {place: exit_with}
    namespace = {"__annotations__": {"number": int}, "__module__": __name__, **body}
    kind = type(outbox.Event)(name, (outbox.Event,), namespace, channel=CHANNEL, version=2)
    billing = script(retry=TWICE, delivery=delivery)
    billing.group.handler(kind)(billing.handle)
    with transaction.atomic():
        failing = outbox.publish_raw(CHANNEL, name, {"number": 1}, key="a")
    [good] = publish("b")
    billing.drain()
    billing.due()
    billing.drain()

    assert billing.parked() == [(failing, "failed")]
    assert billing.effects() == [good]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_handler_that_changes_the_encoding_of_the_session(script, encoding, delivery, caplog):
    """The worker goes on in a new session, in which it reads and writes any text."""
    billing = script(retry=TWICE, delivery=delivery)
    positions = publish("a", "b")
    billing.act_at(positions[1], lambda: run(f"SET client_encoding = '{encoding}'"))
    worker = Worker([billing.group])
    with caplog.at_level(logging.WARNING, "outbox"):
        worker.drain()
        later = publish("zwölf €", "c")
        worker.drain()

    assert billing.effects() == [*positions, *later]
    assert billing.parked() == []
    assert "changed the client_encoding of the worker's session" in caplog.text
