"""A PgBouncer in transaction mode before the test database."""

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

from tests.support.processes import driver, wait_until

PORT = "6432"


@pytest.fixture
def pooled(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start a pooler in transaction mode before the test database; give the environment for it."""
    if not shutil.which("pgbouncer"):
        pytest.skip("pgbouncer is not installed")
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
