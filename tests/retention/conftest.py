"""A log of small segments, for the tests of retention."""

import pytest
from django.db import connection

from outbox.models import ArchivedSegment, ChannelRetention, OperatorAction
from outbox.retention import segments

SIZE = 100


def run(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else None


def empty_log(first=1, size=SIZE, count=4):
    """Begin the log again at a position, with some segments."""
    names = [each.name for each in segments.list_segments() if each.lower is not None]
    run("TRUNCATE outbox_message, outbox_cursor")
    for name in names:
        run(f"DROP TABLE {name}")
    run(f"ALTER SEQUENCE outbox_message_position_seq RESTART WITH {first}")
    for number in range(first // size, first // size + count):
        segments._create(max(1, number * size), (number + 1) * size, "default")
    ChannelRetention.objects.all().delete()
    ArchivedSegment.objects.all().delete()


@pytest.fixture
def small_log(settings, tmp_path):
    """A log of segments of 100 positions, whose messages can be made older; put back at the end."""
    settings.STORAGES = {
        **settings.STORAGES,
        "cold": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(tmp_path)},
        },
    }
    empty_log()
    yield tmp_path
    size = segments.DEFAULT_SIZE
    empty_log(size=size, count=8)
    run("SELECT setval('outbox_message_position_seq', 1000)")
    OperatorAction.objects.all().delete()
    run("DELETE FROM outbox_maintenance")
