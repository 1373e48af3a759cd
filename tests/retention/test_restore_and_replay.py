"""Archive, drop, restore, reset: a group sees what it saw the first time; refusals say why."""

from __future__ import annotations

import hashlib

import pytest
from django.core.management import CommandError, call_command

from outbox.models import ArchivedSegment, Message
from outbox.retention import maintenance
from outbox.testing import drain
from tests.retention.conftest import run
from tests.retention.test_maintenance import publish

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=["ndjson", "parquet"])
def group(request, small_log, settings, declare_group):
    """A group and the messages that it handles: of a segment that goes, and of one that stays."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold", "ARCHIVE_FORMAT": request.param}
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, headers, created_at) "
        "SELECT 'goods', NULLIF('k' || n %% 7, 'k3'), 'Made', "
        "jsonb_build_object('n', n, 'price', 1.50, 'text', E'zwölf \\U0001F600 \\\\ \"' || n), "
        "jsonb_build_object('h', n), "
        "clock_timestamp() - interval '2 days' FROM generate_series(1, %s) AS n",
        150,
    )
    group, handled = declare_group("reader", "goods"), []

    @group.handler("Made")
    def handle(event, message):
        facts = (message.position, message.key, message.type, message.payload, message.headers)
        handled.append((message.position, repr(facts)))

    return group, handled


def digest(handled):
    """The hash of what was handled, in order, and its positions."""
    text = "\n".join(facts for _, facts in handled)
    return hashlib.sha256(text.encode()).hexdigest(), [position for position, _ in handled]


def test_a_replay_of_restored_messages_equals_the_first_run(group):
    """By a hash over position, key, type, payload and headers."""
    group, handled = group
    drain(group)
    first = digest(handled)
    handled.clear()
    done = maintenance.maintain("default")
    assert done.dropped == ["outbox_message_1"]
    assert not Message.objects.filter(position__lt=100).exists()

    call_command("outbox", "restore", "--execute")
    call_command("outbox", "reset", "reader", "--to-position", "0", "--execute")
    drain(group)

    assert digest(handled) == first
    assert first[1] == list(range(1, 151))


def test_a_restore_that_is_refused_names_the_file_and_the_reason(small_log, settings):
    """A changed file, and positions that the log still has; nothing comes back."""
    settings.OUTBOX = {"KEEP": "1 day", "ARCHIVE": "cold"}
    publish(150, days=2)
    maintenance.maintain("default")
    (record,) = ArchivedSegment.objects.all()
    path = small_log / record.name
    right = path.read_bytes()

    path.write_bytes(right[:50] + bytes([right[50] ^ 1]) + right[51:])
    with pytest.raises(CommandError, match=rf"{record.name}.*its checksum is another one"):
        call_command("outbox", "restore", "--execute")
    assert not Message.objects.filter(position__lt=100).exists()

    path.write_bytes(right)
    call_command("outbox", "restore", "--execute")
    with pytest.raises(CommandError, match=rf"{record.name}.*the log still holds position 1\b"):
        call_command("outbox", "restore", "--execute")
    assert Message.objects.filter(position__lt=100).count() == 99
