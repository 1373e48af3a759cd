"""The archive in Parquet: read without the product, restored as it was, refused when changed."""

from __future__ import annotations

import json

import pytest
from django.db import connection

from outbox.exceptions import ArchiveBroken
from outbox.models import ArchivedSegment, Message
from outbox.operations import erasures
from outbox.retention import maintenance, restore
from tests.retention.conftest import run
from tests.retention.test_maintenance import publish
from tests.support.processes import run_process

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.django_db(transaction=True)
COLUMNS = "position, channel, key, type, payload::text, headers::text, created_at"


@pytest.fixture
def archived(small_log, settings):
    """A dropped segment of 99 messages: the rows that it had, and its file."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold", "ARCHIVE_FORMAT": "parquet"}
    publish(150, days=2)
    rows = run(f"SELECT {COLUMNS} FROM outbox_message WHERE position < 100 ORDER BY 1")
    maintenance.maintain("default")
    record = ArchivedSegment.objects.get()
    return rows, record, small_log / record.name


def test_a_file_is_read_by_pyarrow_alone(archived):
    """Every column as it was in the log, in another process that knows nothing of the outbox."""
    rows, _, path = archived
    code = (
        "import json, sys, pyarrow.parquet as parquet; "
        f"table = parquet.read_table({str(path)!r}); assert 'outbox' not in sys.modules; "
        "print(json.dumps([[*map(str, row.values())] for row in table.to_pylist()]))"
    )

    found = run_process("-c", code, is_warm=False)

    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [[str(value) for value in row] for row in rows]


def test_restored_messages_are_equal_in_every_column(archived):
    """Archive, drop, restore: the same rows at the same positions."""
    rows, record, _ = archived

    assert restore.restore([record], "default") == 99
    assert run(f"SELECT {COLUMNS} FROM outbox_message WHERE position < 100 ORDER BY 1") == rows


def test_any_flipped_byte_is_found(archived):
    """Wherever in the file it is, nothing is restored."""
    _, record, path = archived
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 40)):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)

        with pytest.raises(ArchiveBroken):
            restore.restore([record], "default")
    assert not Message.objects.filter(position__lt=100).exists()
    connection.ensure_connection()


def test_erased_values_are_gone_from_a_parquet_file(archived):
    """It is written again as Parquet; the old file is deleted."""
    _, record, path = archived

    erasures.erase("goods", "key-2", reason="asked", using="default")

    record.refresh_from_db()
    assert record.name.endswith(".parquet")
    assert [each.name for each in path.parent.iterdir()] == [record.name.partition("/")[2]]
    assert erasures.erase("goods", "key-2", reason="", using="default", execute=False).files == []
    assert restore.restore([record], "default") == 99
    payloads = Message.objects.filter(key="key-2", position__lt=100).values_list(
        "payload", flat=True
    )
    assert set(payloads) == {None}
