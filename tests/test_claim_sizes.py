"""Batches are bounded by bytes as well as by count, and never drop what they leave out."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.test import override_settings

import outbox
from outbox.consuming import cursors
from outbox.consuming.claims import Claims
from outbox.operations import scaling
from outbox.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"BATCH_BYTES": 100_000}


@pytest.fixture
def group():
    """A group that keeps the positions that it handled, in order."""
    made = outbox.ConsumerGroup("sizes", channels=["sizes"])
    made.seen = []
    made.handler("Blob")(lambda payload, message: made.seen.append(message.position))
    return made


def publish(*texts: str, **headers: str) -> list[int]:
    with transaction.atomic():
        return [outbox.publish_raw("sizes", "Blob", {"t": text}, headers=headers) for text in texts]


def noise(size: int) -> str:
    """A text that does not compress."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(md5(random()::text), '') FROM generate_series(1, %s)", [size // 32]
        )
        return cursor.fetchone()[0]


def batches(group, **options) -> list[int]:
    """How many messages each batch moved past, until nothing is pending."""
    worker, sizes = Worker([group], **options), []
    while (moved := worker.run_once()) is not None:
        sizes.append(moved)
    return sizes


@override_settings(OUTBOX=LIMIT)
@pytest.mark.parametrize("is_compressible", [True, False])
def test_a_batch_ends_before_it_exceeds_its_bytes(group, is_compressible):
    """Ten messages of 30 kB come three at a time under a limit of 100 kB, compressed in the table
    or not, and each is handled once."""
    positions = publish(*("x" * 30_000 if is_compressible else noise(30_000) for _ in range(10)))

    assert batches(group) == [3, 3, 3, 1]
    assert group.seen == positions


@override_settings(OUTBOX=LIMIT)
@pytest.mark.parametrize("is_compressible", [True, False])
def test_a_message_larger_than_the_limit_comes_alone(group, is_compressible):
    """Neither the small ones before it nor those behind it share its batch."""
    large = "x" * 300_000 if is_compressible else noise(300_000)
    positions = publish("a", "b", large, "c", large, large, "d")

    assert batches(group) == [2, 1, 1, 1, 1, 1]
    assert group.seen == positions


@override_settings(OUTBOX=LIMIT)
def test_headers_count_as_well(group):
    """Small payloads with headers of 40 kB come two at a time."""
    positions = publish(*"abcde", trace=noise(40_000))

    assert batches(group) == [2, 2, 1]
    assert group.seen == positions


def test_small_messages_fill_a_batch_by_count(group):
    """The limit of bytes does not shorten a batch that fits, and the count is kept."""
    positions = publish(*(str(number) for number in range(25)))

    assert batches(group, batch_size=10) == [10, 10, 5]
    assert group.seen == positions


@override_settings(OUTBOX=LIMIT)
def test_every_range_of_slots_has_the_limit_of_its_own_messages(group):
    """With 4 ranges of slots each claim counts the bytes of its own keys only."""
    cursors.register([group], "default")
    with transaction.atomic():
        positions = [
            outbox.publish_raw("sizes", "Blob", {"t": "x" * 30_000}, key=str(number))
            for number in range(40)
        ]
    scaling.scale(group, 4)

    assert max(batches(group)) == 3
    assert sorted(group.seen) == positions


@override_settings(OUTBOX=LIMIT)
def test_a_claim_says_where_its_batch_ends(group):
    """The position of the last message that fits, not the horizon; the horizon when all fit."""
    cursors.register([group], "default")
    positions = publish(*("x" * 30_000 for _ in range(5)))
    with transaction.atomic():
        claim, rows = Claims("default").claim([group], 500)
        ended = claim.limit, [row[0] for row in rows]
    with transaction.atomic():
        claim, rows = Claims("default").claim([group], 500, most_bytes=10**9)

    assert ended == (positions[2], positions[:3])
    assert (claim.limit, len(rows)) == (positions[-1], 5)
