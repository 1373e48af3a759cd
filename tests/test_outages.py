"""A database that goes away: the worker comes back, loses nothing, repeats nothing, listens again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.embedded import Server
from tests.support.amounts import amount
from tests.support.processes import MANAGE, ROOT, driver, wait_until

BACKLOG = amount(700, 3_000)
SECONDS = amount(3, 10)
NO_POLL = "600"
"""Seconds of the poll interval: what arrives earlier was announced by a NOTIFY."""

WORKERS = "FROM pg_stat_activity WHERE application_name LIKE 'outbox:%'"
PUBLISH = """
    INSERT INTO outbox_message (channel, key, type, payload)
    SELECT 'orders', n::text, 'OrderPlaced', jsonb_build_object('order_id', n)
    FROM generate_series(1, %s) AS n
"""


def is_alive(session: Any) -> bool:
    """Whether the server still has the session."""
    try:
        session.cursor().execute("SELECT 1")
    except driver.Error:
        return False
    return True


class Site:
    """A database of a durable server, with the test project's tables and one worker."""

    def __init__(self, server: Server) -> None:
        self.server = server
        entry = server.settings("site")
        self.address = {
            "dbname": "site",
            "user": entry["USER"],
            "host": entry["HOST"],
            "port": entry["PORT"],
        }
        self.environment = {
            **os.environ,
            "DATABASE_URL": server.url.replace("/postgres?", "/site?"),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": str(ROOT),
        }
        self.environment.pop("OUTBOX_TEST_DB", None)
        self.worker: subprocess.Popen[bytes] | None = None
        self.observer: Any = None

    def migrate(self) -> None:
        subprocess.run([sys.executable, MANAGE, "migrate", "-v0"], env=self.environment, check=True)

    def connect(self, database: str = "site") -> Any:
        session = driver.connect(**{**self.address, "dbname": database})
        session.autocommit = True
        return session

    def run(
        self, statement: str, *parameters: object, database: str = "site"
    ) -> list[tuple[Any, ...]]:
        session = self.connect(database)
        try:
            with session.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            session.close()

    def consume(self, path: Any, *options: str, group: str = "billing") -> None:
        self.path = path
        with path.open("wb") as output:
            self.worker = subprocess.Popen(
                [
                    *(sys.executable, MANAGE, "consume", group),
                    *("--poll-interval", NO_POLL, "--batch-size", "50", *options),
                ],
                env=self.environment,
                stdout=output,
                stderr=output,
            )

    def effects(self) -> int:
        """How many messages were handled; asked often, so by a session that is kept."""
        if self.observer is None or not is_alive(self.observer):
            self.observer = self.connect()
        with self.observer.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM shop_effect WHERE \"group\" = 'billing'")
            return cursor.fetchone()[0]

    def terminate_worker(self) -> None:
        self.run(f"SELECT pg_terminate_backend(pid) {WORKERS}")

    def kill_worker_backend(self) -> None:
        """No farewell on the socket; the server then ends all sessions and recovers."""
        observer = self.connect()
        for (pid,) in self.run(f"SELECT pid {WORKERS}"):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(observer))

    def is_up(self, database: str = "site") -> bool:
        """Whether the server takes sessions."""
        try:
            return bool(self.run("SELECT 1", database=database))
        except driver.Error:
            return False

    def assert_alive_and_listening(self) -> None:
        """The worker's process lives, and handles the next message, woken by its NOTIFY."""
        wait_until(self.is_up)
        wait_until(self.is_asleep, message=self.path.read_text())
        before = self.effects()
        self.run(PUBLISH, 1)
        wait_until(lambda: self.effects() > before, message=self.path.read_text())

        assert self.worker.poll() is None

    def assert_complete_and_listening(self) -> None:
        """Everything was handled once, and a new message arrives without waiting for the poll."""
        expected = self.run("SELECT count(*) FROM outbox_message")[0][0]
        wait_until(lambda: self.effects() >= expected, timeout=120)
        wait_until(self.is_asleep)
        self.run(PUBLISH, 1)
        wait_until(lambda: self.effects() >= expected + 1)
        doubles = self.run(
            "SELECT position FROM shop_effect GROUP BY position HAVING count(*) <> 1"
        )

        assert doubles == []
        assert self.effects() == expected + 1

    def is_asleep(self) -> bool:
        idle = "locktype = 'advisory' AND mode = 'ShareLock' AND classid::bigint >> 16 = 20297"
        return bool(self.run(f"SELECT 1 FROM pg_locks WHERE {idle}"))

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        if self.observer is not None:
            self.observer.close()


OPTIONS = {"fsync": "off", "full_page_writes": "off", "max_prepared_transactions": "0"}
"""Commits are in the log before they are confirmed; a crash of processes loses no file. Raw INSERTs
send a NOTIFY, since no transaction can be prepared."""


@pytest.fixture(scope="module")
def durable() -> Iterator[Server]:
    """A durable server whose database `site` has the test project's tables."""
    with Server(durable=True, options=OPTIONS) as server:
        server.create_database("site")
        Site(server).migrate()
        yield server


@pytest.fixture
def site(durable: Server) -> Iterator[Site]:
    """An empty log on the server that all these tests harm, one after the other."""
    place = Site(durable)
    yield place
    place.stop()
    wait_until(lambda: place.is_up("postgres"))
    place.run("ALTER DATABASE site ALLOW_CONNECTIONS true", database="postgres")
    place.run("ALTER DATABASE site RESET ALL", database="postgres")
    place.run("ALTER SYSTEM RESET ALL", database="postgres")
    place.run("SELECT pg_reload_conf()", database="postgres")
    place.run("TRUNCATE outbox_message, outbox_cursor, shop_effect")


def test_a_terminated_backend_costs_nothing(site, tmp_path):
    """pg_terminate_backend in the middle of a backlog, five times."""
    site.run(PUBLISH, BACKLOG)
    site.consume(tmp_path / "log")
    for n in range(1, 6):
        wait_until(lambda share=n: site.effects() >= share * BACKLOG // 7)
        site.terminate_worker()

    site.assert_complete_and_listening()


def test_a_crashed_server_costs_nothing(site, tmp_path):
    """pg_ctl restart -m immediate in the middle of a backlog."""
    site.run(PUBLISH, BACKLOG)
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() >= BACKLOG // 3)
    site.server.restart("immediate")

    site.assert_complete_and_listening()


def test_seconds_without_a_database_cost_those_seconds(site, tmp_path):
    """All sessions are cut and none is let in for a while, in the middle of a backlog; the worker
    says so once, and once when it is back."""
    site.run(PUBLISH, BACKLOG)
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() >= BACKLOG // 3)
    administrator = driver.connect(**{**site.address, "dbname": "postgres"})
    administrator.autocommit = True
    with administrator.cursor() as cursor:
        cursor.execute("ALTER DATABASE site ALLOW_CONNECTIONS false")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'site'"
        )
        until = time.monotonic() + SECONDS
        wait_until(lambda: time.monotonic() > until)
        cursor.execute("ALTER DATABASE site ALLOW_CONNECTIONS true")
    administrator.close()

    site.assert_complete_and_listening()
    log = site.path.read_text()
    assert log.count("the connection to the database was lost") == 1
    assert log.count("the database is back") == 1


def test_max_outage_ends_a_worker_that_waits_in_vain(site, tmp_path):
    """With --max-outage the worker gives up, with an error."""
    nowhere = site.environment["DATABASE_URL"].replace("/site?", "/nowhere?")
    ended = subprocess.run(
        [sys.executable, MANAGE, "consume", "billing", "--skip-checks", "--max-outage", "1"],
        env={**site.environment, "DATABASE_URL": nowhere},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 1
    assert "the database was away" in ended.stderr


HARMS = {
    "terminated": Site.terminate_worker,
    "killed": Site.kill_worker_backend,
    "restarted": lambda site: site.server.restart("fast"),
    "crashed": lambda site: site.server.restart("immediate"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_sleeping_worker_survives_the_end_of_its_session(site, tmp_path, harm):
    """However its session ends while it waits for a NOTIFY, the process reconnects and listens."""
    site.run(PUBLISH, 1)
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() == 1)
    for _ in range(2):
        wait_until(site.is_asleep)
        harm(site)

        site.assert_alive_and_listening()


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_polling_worker_survives_the_end_of_its_session(site, tmp_path, harm):
    """The same without LISTEN: the loss shows in whatever statement comes next."""
    site.run(PUBLISH, 1)
    site.consume(tmp_path / "log", "--no-listen", "--poll-interval", "0.05")
    wait_until(lambda: site.effects() == 1)
    for turn in range(2, 5):
        harm(site)
        wait_until(site.is_up)
        site.run(PUBLISH, 1)
        wait_until(lambda n=turn: site.effects() == n, message=site.path.read_text())

    assert site.worker.poll() is None


def test_a_server_that_turns_read_only_is_waited_for(site, tmp_path):
    """After a fail-over the old server may take no writes for a while; the worker comes back."""
    site.run(PUBLISH, 1)
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() == 1)
    wait_until(site.is_asleep)
    site.run("ALTER SYSTEM SET default_transaction_read_only = on")
    site.run("SELECT pg_reload_conf()")
    # The server tells its sessions before it takes a new one with the new value.
    wait_until(lambda: site.run("SHOW default_transaction_read_only") == [("on",)])
    publisher = site.connect()
    with publisher.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute(PUBLISH, [1])
    publisher.close()
    wait_until(lambda: "read-only transaction" in site.path.read_text())
    site.run("ALTER SYSTEM RESET default_transaction_read_only")
    site.run("SELECT pg_reload_conf()")
    wait_until(lambda: site.effects() == 2)

    site.assert_alive_and_listening()


@pytest.mark.parametrize("limit", ["cancel", "statement_timeout", "lock_timeout"])
def test_a_statement_that_is_ended_costs_neither_session_nor_worker(site, tmp_path, limit):
    """A claim that waits for a lock is cancelled or times out; the worker asks again, for less."""
    site.run(PUBLISH, 1)
    if limit != "cancel":
        site.run(f"ALTER DATABASE site SET {limit} = '2s'")
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() == 1)
    wait_until(site.is_asleep)
    blocker = site.connect()
    with blocker.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE outbox_cursor IN ACCESS EXCLUSIVE MODE")
        site.run(PUBLISH, 1)
        wait_until(lambda: site.run(f"SELECT 1 {WORKERS} AND wait_event_type = 'Lock'"))
        if limit == "cancel":
            site.run(f"SELECT pg_cancel_backend(pid) {WORKERS}")
        wait_until(lambda: "at most 25 messages" in site.path.read_text())
        cursor.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: site.effects() == 2, message=site.path.read_text())

    site.assert_alive_and_listening()


def test_the_end_of_an_outage_is_told_before_the_worker_sleeps(site, tmp_path):
    """The log says that the database is back while the worker sleeps, and not when it wakes."""
    site.run(PUBLISH, 1)
    site.consume(tmp_path / "log")
    wait_until(lambda: site.effects() == 1)
    wait_until(site.is_asleep)
    site.terminate_worker()

    wait_until(lambda: "the database is back" in site.path.read_text())


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_drain_goes_on_after_the_end_of_its_session(site, tmp_path, harm):
    """`consume --drain` reconnects as well, and ends when it has handled what was there."""
    site.run(PUBLISH, BACKLOG)
    site.consume(tmp_path / "log", "--drain")
    wait_until(lambda: site.effects() >= BACKLOG // 3)
    harm(site)

    assert site.worker.wait(120) == 0
    wait_until(site.is_up)
    assert site.effects() == BACKLOG
