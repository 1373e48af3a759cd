"""A database that goes away: the worker comes back, loses nothing, repeats nothing, listens again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.embedded import Server
from tests.support.processes import MANAGE, ROOT, driver, wait_until

BACKLOG = 3000
NO_POLL = "600"
"""Seconds of the poll interval: what arrives earlier was announced by a NOTIFY."""

PUBLISH = """
    INSERT INTO outbox_message (channel, key, type, payload)
    SELECT 'orders', n::text, 'OrderPlaced', jsonb_build_object('order_id', n)
    FROM generate_series(1, %s) AS n
"""


class Site:
    """A durable server of its own, with the test project's tables and one worker."""

    def __init__(self, server: Server) -> None:
        self.server = server
        server.create_database("site")
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
        self.log = ""
        subprocess.run([sys.executable, MANAGE, "migrate", "-v0"], env=self.environment, check=True)

    def connect(self) -> Any:
        session = driver.connect(**self.address)
        session.autocommit = True
        return session

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        session = self.connect()
        try:
            with session.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            session.close()

    def consume(self, path: Any) -> None:
        self.path = path
        with path.open("wb") as output:
            self.worker = subprocess.Popen(
                [
                    *(sys.executable, MANAGE, "consume", "billing"),
                    *("--poll-interval", NO_POLL, "--batch-size", "50"),
                ],
                env=self.environment,
                stdout=output,
                stderr=output,
            )

    def effects(self) -> int:
        return self.run("SELECT count(*) FROM shop_effect WHERE \"group\" = 'billing'")[0][0]

    def terminate_worker(self) -> None:
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'outbox:%'"
        )

    def assert_complete_and_listening(self) -> None:
        """Everything was handled once, and a new message arrives without waiting for the poll."""
        expected = self.run("SELECT count(*) FROM outbox_message")[0][0]
        wait_until(lambda: self.effects() >= expected, timeout=120)
        wait_until(self.is_asleep)
        self.run(PUBLISH, 1)
        wait_until(lambda: self.effects() >= expected + 1, timeout=60)
        doubles = self.run(
            "SELECT position FROM shop_effect GROUP BY position HAVING count(*) <> 1"
        )

        assert doubles == []
        assert self.effects() == expected + 1

    def is_asleep(self) -> bool:
        rows = self.run("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'")
        return bool(rows)

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()


@pytest.fixture
def site() -> Iterator[Site]:
    with Server(durable=True) as server:
        place = Site(server)
        yield place
        place.stop()


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


def test_ten_seconds_without_a_database_cost_ten_seconds(site, tmp_path):
    """All sessions are cut and none is let in for ten seconds, in the middle of a backlog; the
    worker says so once, and once when it is back."""
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
        until = time.monotonic() + 10
        wait_until(lambda: time.monotonic() > until)
        cursor.execute("ALTER DATABASE site ALLOW_CONNECTIONS true")
    administrator.close()

    site.assert_complete_and_listening()
    log = site.path.read_text()
    assert log.count("the database went away") == 1
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
