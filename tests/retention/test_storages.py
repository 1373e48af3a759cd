"""Storages that fail in their own ways: no worker ends, the log is looked after, what was done is
recorded."""

from __future__ import annotations

import logging

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import CommandError, call_command

from outbox.exceptions import ArchiveBroken
from outbox.models import ArchivedSegment, Message, OperatorAction
from outbox.operations import erasures
from outbox.retention import maintenance, segments
from tests.retention.conftest import run
from tests.retention.test_maintenance import publish

pytestmark = pytest.mark.django_db(transaction=True)


class ClientError(Exception):
    """What the clients of object storages raise: no OSError."""


class Storage(FileSystemStorage):
    """A storage that fails in the methods that a test names, and cuts off what it reads."""

    failing: set[str] = set()
    names: set[str] = set()
    """Of the files at which it fails; empty: at all."""
    cut = 0

    def _fail(self, method, name):
        if method in self.failing and (not self.names or name in self.names):
            raise ClientError(f"{method} denied")

    def _save(self, name, content):
        self._fail("save", name)
        return super()._save(name, content)

    def _open(self, name, mode="rb"):
        self._fail("open", name)
        file = super()._open(name, mode)
        return ContentFile(file.read()[: -self.cut]) if self.cut else file

    def exists(self, name):
        self._fail("exists", name)
        return super().exists(name)

    def delete(self, name):
        self._fail("delete", name)
        super().delete(name)


@pytest.fixture
def storage(small_log, settings):
    """The class of the archive's storage; three segments of expired messages, another with new ones."""
    settings.STORAGES = {
        **settings.STORAGES,
        "cold": {"BACKEND": f"{__name__}.Storage", "OPTIONS": {"location": str(small_log)}},
    }
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(250, days=2)
    publish(100)
    yield Storage
    Storage.failing, Storage.names, Storage.cut = set(), set(), 0


@pytest.mark.parametrize("method", ["save", "open", "exists"])
def test_a_worker_survives_a_storage_that_raises_its_own_errors(storage, method, caplog):
    """Nothing is removed, the error is logged and kept for `groups`."""
    storage.failing = {method}
    before = Message.objects.count()
    passing = maintenance.InPassing("default")
    passing._due_at = 0
    with caplog.at_level(logging.WARNING, "outbox"):
        passing.turn()

    assert Message.objects.count() == before
    assert "maintenance of the log failed" in caplog.text
    assert f"ClientError: {method} denied" in caplog.text
    assert f"{method} denied" in run("SELECT error FROM outbox_maintenance")[0][0]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_short_read_removes_nothing(storage, cut):
    """What comes back is not what was written."""
    storage.cut = cut
    with pytest.raises(ArchiveBroken):
        maintenance.maintain("default")

    assert Message.objects.count() == 350
    assert not ArchivedSegment.objects.exists()


def test_a_storage_that_deletes_nothing_does_not_stop_the_log(storage):
    """Segments are made ahead although an old file cannot go, as under a rule of retention there."""
    maintenance.maintain("default")
    storage.failing = {"delete"}
    with pytest.raises(ArchiveBroken, match="delete denied"):
        erasures.erase("goods", "key-1", reason="asked for", using="default")
    recorded = OperatorAction.objects.get(action="erase").details
    publish(300)
    with pytest.raises(ArchiveBroken, match="delete denied"):
        maintenance.maintain("default")
    ahead = segments.count_ahead(segments.list_segments())
    storage.failing = set()
    erasures.erase("goods", "key-1", reason="again", using="default")

    assert recorded["reason"] == "asked for"
    assert recorded["new"]["files"] > 0
    assert ahead >= maintenance.AHEAD
    assert not ArchivedSegment.objects.filter(is_obsolete=True).exists()


def test_what_was_restored_before_a_failure_is_recorded(storage):
    """The command ends with an error that names the file; the record has those that are back."""
    maintenance.maintain("default")
    first, second, *_ = ArchivedSegment.objects.order_by("first_position")
    storage.failing, storage.names = {"open"}, {second.name}
    with pytest.raises(CommandError, match=f"{second.name}.*ClientError: open denied"):
        call_command("outbox", "restore", "--execute")
    recorded = OperatorAction.objects.get(action="restore").details["new"]

    assert recorded == {"files": [first.name], "messages": first.messages}
    assert Message.objects.filter(position__lte=first.last_position).count() == first.messages


def test_a_role_that_does_not_own_the_log_is_no_fault_of_its_maintenance(small_log, caplog):
    """A worker says it once, and `groups` and the doctor hear nothing: another role maintains."""
    run('CREATE ROLE "no owner"')
    run('GRANT SELECT ON ALL TABLES IN SCHEMA public TO "no owner"')
    run('GRANT ALL ON outbox_maintenance TO "no owner"')
    run('REVOKE ALL ON outbox_message_default FROM "no owner"')
    passing = maintenance.InPassing("default")
    passing._due_at = 0
    try:
        run('SET ROLE "no owner"')
        with caplog.at_level(logging.WARNING, "outbox"):
            passing.turn()
    finally:
        run("RESET ROLE")
        run('DROP OWNED BY "no owner"')
        run('DROP ROLE "no owner"')

    assert "needs the role that owns it" in caplog.text
    assert passing._due_at == float("inf")
    assert run("SELECT error FROM outbox_maintenance WHERE error <> ''") == []


def test_a_lost_file_does_not_keep_a_key_from_being_erased(storage, small_log, capsys):
    """Everything else is erased, the command names the file and ends with an error; with the file it
    erases the rest."""
    maintenance.maintain("default")
    publish(1, key="key-1")
    lost, kept = ArchivedSegment.objects.order_by("first_position")
    content = (small_log / lost.name).read_bytes()
    (small_log / lost.name).unlink()
    arguments = ["outbox", "erase", "--channel", "goods", "--key", "key-1", "--reason", "asked"]
    call_command(*arguments)
    dry_run = capsys.readouterr().err
    with pytest.raises(CommandError, match=lost.name):
        call_command(*arguments, "--execute")
    left = erasures.erase("goods", "key-1", reason="", using="default", execute=False)
    (small_log / lost.name).write_bytes(content)
    call_command(*arguments, "--execute")
    found = erasures.erase("goods", "key-1", reason="", using="default", execute=False)

    assert f"cannot be read: {lost.name}" in dry_run
    assert (left.messages, left.files, left.unreadable) == (0, [], [lost.name])
    assert (found.messages, found.files, found.unreadable) == (0, [], [])
    assert not ArchivedSegment.objects.filter(name=kept.name).exists()
