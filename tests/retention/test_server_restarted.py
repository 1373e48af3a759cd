"""The server crashes in the middle of a step of maintenance; maintenance runs again."""

from __future__ import annotations

import pytest
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.db import DatabaseError, InterfaceError, connection, connections

from outbox.embedded import Server
from tests.retention.test_killed import fill, maintain, state

pytestmark = pytest.mark.django_db(transaction=True)
FILE = "a file of the archive is written"
STEPS = [
    "outbox_promise_range_v1",
    "outbox_validate_range_v1",
    "outbox_make_table_v1",
    "outbox_promote_default_v1",
    "outbox_attach_v1",
    FILE,
    "outbox_copy_segment_v1",
    "LOCK TABLE outbox_message",
    "outbox_swap_segment_v1",
    "outbox_drop_segment_v1",
    'INSERT INTO "outbox_archived_segment"',
    "INSERT INTO outbox_maintenance",
]
"""Text of a statement after which the server crashes, before or just after its commit."""


@pytest.fixture
def own_server(transactional_db):
    """A server for this test alone, with the tables of the outbox; it is the default database."""
    shared = connections["default"]
    with Server(options={"synchronous_commit": "on"}) as server:
        server.create_database("site")
        entry = {**shared.settings_dict, **server.settings("site")}
        connections["default"] = type(shared)(entry, alias="default")
        try:
            call_command("migrate", verbosity=0)
            yield server
        finally:
            connections["default"].close()
            connections["default"] = shared


@pytest.fixture
def folder(settings, tmp_path):
    """The folder of the archive."""
    options = {"location": str(tmp_path)}
    backend = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {**settings.STORAGES, "cold": {"BACKEND": backend, "OPTIONS": options}}
    settings.OUTBOX = {"CHANNELS": {"goods": {"keep": "30 days"}}, "ARCHIVE": "cold"}
    return tmp_path


def crash_after(step, server, patch):
    """Maintain the log until a step, after which the server crashes; tell whether it came there."""
    crashed, save = [], FileSystemStorage.save

    def note(what):
        if step in what and not crashed:
            crashed.append(what)
            server.restart("immediate")

    def execute(execute, sql, *arguments):
        result = execute(sql, *arguments)
        note(sql)
        return result

    def save_file(*arguments, **options):
        name = save(*arguments, **options)
        note(FILE)
        return name

    with patch.context() as patched, connection.execute_wrapper(execute):
        patched.setattr(FileSystemStorage, "save", save_file)
        try:
            maintain()
        except (DatabaseError, InterfaceError):
            assert crashed
        finally:
            connection.close()
    return bool(crashed)


def test_the_server_crashes_after_any_step_and_the_next_maintenance_ends_in_the_same_state(
    own_server, folder, monkeypatch
):
    """Segments, messages, files and what is recorded are as if nothing had happened."""
    fill(folder)
    maintain()
    right = state(folder)
    found = {}
    for step in STEPS:
        fill(folder)
        reached = crash_after(step, own_server, monkeypatch)
        maintain()
        found[step] = reached, state(folder)

    assert {step: each for step, each in found.items() if each != (True, right)} == {}
