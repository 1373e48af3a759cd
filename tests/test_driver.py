"""What the two drivers do differently, on real connections."""

from __future__ import annotations

import importlib
import os
import subprocess
import venv
from pathlib import Path

import pytest
from django.db import connection

from outbox import database
from tests.support.harness import DRIVER_ERROR, backend, execute, terminate
from tests.support.processes import wait_until
from tests.support.project import Project

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


def test_the_server_process_is_known(connect):
    """The process id is the server's."""
    session = connect()

    assert database.backend_pid(session) == backend(session)


@pytest.fixture
def listener():
    """Listens to "here" on the default alias until the test ends."""
    made = database.Listener("default")
    made.listen(["here"])
    yield made
    made.unlisten()


def test_notifications_end_one_wait(listener, connect):
    """Those on the socket, and those that came with the result of another statement."""
    sender = connect()
    assert not listener.take()

    execute(sender, "NOTIFY here")
    assert listener.wait(120)
    execute(sender, "NOTIFY here, 'a'")
    execute(sender, "NOTIFY here, 'b'")
    wait_until(lambda: execute(connection, "SELECT 1") and len(listener._heard) == 2)
    assert listener.take()
    assert not listener.take()


def test_a_listener_that_stopped_hears_nothing(listener, connect):
    """The session goes on without it, and collects no notifications."""
    sender = connect()
    heard = listener._heard
    listener.unlisten()
    execute(sender, "NOTIFY here")
    execute(connection, "SELECT 1")

    assert not listener.is_listening
    assert not heard
    assert execute(connection, "SELECT count(*) FROM pg_listening_channels()") == [(0,)]


def test_a_wait_ends_for_a_descriptor_of_any_number(listener):
    """A process with more than 1024 open files can wait, which select() cannot."""
    resource = pytest.importorskip("resource")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
    read, write = os.pipe()
    high = os.dup2(read, 2000)
    try:
        os.write(write, b"x")

        assert database.wait_readable([high], 60) == [high]
        listener.interrupt = high
        assert not listener.wait(120)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in (read, write, high):
            os.close(each)


def test_an_alias_of_another_database_is_told_from_the_same_one(tmp_path, empty_database):
    """Two aliases lead to one database if a lock taken through one is seen through the other."""
    here = {name: connection.settings_dict[name] for name in empty_database}
    aliases = {"default": here, "same": here, "other": empty_database}
    project = Project(tmp_path, aliases)
    printed = project.run(
        "from outbox.database import is_same_database\n"
        "for alias in ('default', 'same', 'other'):\n"
        "    print(is_same_database(alias, 'default'))\n"
    )

    assert printed.split() == ["True", "True", "False"]


NEEDED = ("asgiref", "django", "msgspec", "pgtrigger", "sqlparse", "typing_extensions")
"""What the outbox and its dependencies import, but for a driver."""


def test_without_a_driver_the_start_says_what_to_install(tmp_path):
    """In an environment with everything but a driver the error names both commands."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    for name in NEEDED:
        file = Path(importlib.import_module(name).__file__)
        origin = file.parent if file.stem == "__init__" else file
        (packages / origin.name).symlink_to(origin)
    entry = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere"}}
    apps = ["django.contrib.contenttypes", "django.contrib.auth", "outbox", "pgtrigger"]
    project = Project(tmp_path, entry, INSTALLED_APPS=apps)
    done = subprocess.run(
        [environment / "bin" / "python", "-m", "django", "check"],
        cwd=tmp_path,
        env={**os.environ, **project.environment()},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "No driver of PostgreSQL is installed" in last
    assert "pip install psycopg2-binary" in last
    assert "pip install 'django-pgoutbox[psycopg3]'" in last
