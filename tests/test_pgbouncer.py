"""PgBouncer in transaction mode: publishing and poll-only consuming work, LISTEN is not tried."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from django.db import connection

from tests.support import driver, run_code, start_manage, wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not shutil.which("pgbouncer"), reason="pgbouncer is not installed"),
]

PORT = "6432"
PUBLISH = """
import outbox
from django.db import transaction
from tests.shop.events import OrderPlaced
with transaction.atomic():
    print(outbox.publish(OrderPlaced(order_id=1)))
"""


@pytest.fixture
def pooled(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start a pooler in transaction mode before the test database; give the environment for it."""
    entry = connection.settings_dict
    folder = tmp_path_factory.mktemp("pooler")
    owner = pwd.getpwuid(os.stat(entry["HOST"]).st_uid).pw_name
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
[databases]
* = host={entry["HOST"]} port={entry["PORT"] or 5432} user={entry["USER"]}
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 3
logfile = {folder}/log
"""
    )
    as_owner = ["-u", owner] if os.geteuid() == 0 else []
    for parent in [folder, *folder.parents[:2]]:
        parent.chmod(0o755)
    if as_owner:
        shutil.chown(folder, owner)
    process = subprocess.Popen(
        ["pgbouncer", "-q", *as_owner, str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = entry["NAME"]
    wait_until(lambda: can_connect(folder, name))
    url = f"postgres://{entry['USER']}@/{name}?host={quote(str(folder), safe='')}&port={PORT}"
    yield {"DATABASE_URL": url}
    process.terminate()
    process.wait()


def can_connect(folder: Path, name: str) -> bool:
    try:
        driver.connect(host=str(folder), port=PORT, dbname=name, user="postgres").close()
    except driver.OperationalError:
        return False
    return True


def effects() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT position FROM shop_effect WHERE \"group\" = 'billing' ORDER BY id")
        return [position for (position,) in cursor.fetchall()]


def test_poll_only_works_through_a_pooler(pooled):
    """Publishing and consuming through the pooler, without LISTEN."""
    worker = start_manage("consume", "billing", "--no-listen", "--poll-interval", "0.2", **pooled)
    try:
        position = int(run_code(PUBLISH, **pooled).stdout)
        wait_until(lambda: effects() == [position])
    finally:
        worker.terminate()
        _, narration = worker.communicate(timeout=30)

    assert "pooler" not in narration


def test_a_worker_behind_a_pooler_says_so_and_polls(pooled):
    """LISTEN would get lost, so the worker tells the way out, polls, and leaves no lock behind."""
    worker = start_manage("consume", "billing", "--poll-interval", "0.2", **pooled)
    try:
        warning = next(line for line in worker.stderr if "pooler" in line)
        position = int(run_code(PUBLISH, **pooled).stdout)
        wait_until(lambda: effects() == [position])
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            locks = cursor.fetchone()[0]
    finally:
        worker.terminate()
        worker.communicate(timeout=30)

    assert locks == 0
    assert "OUTBOX['LISTEN']" in warning
