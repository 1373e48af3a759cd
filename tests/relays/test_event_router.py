"""The view `outbox_event_router`: the log as Debezium's outbox event router expects a table."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection, transaction

import outbox

pytestmark = pytest.mark.django_db(transaction=True)

COLUMNS = """
    SELECT column_name::text, udt_name::text FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = 'outbox_event_router'
    ORDER BY ordinal_position
"""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def rows(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def test_the_view_has_the_columns_of_the_event_router():
    """Names and types are the defaults of its options."""
    assert rows(COLUMNS)[:7] == [
        ("id", "uuid"),
        ("aggregatetype", "varchar"),
        ("aggregateid", "text"),
        ("type", "text"),
        ("payload", "json"),
        ("timestamp", "timestamptz"),
        ("tracingspancontext", "text"),
    ]


def test_each_message_is_a_row_of_the_view():
    """A message without a key has its position as aggregateid, so that rows without keys spread."""
    with transaction.atomic():
        keyed = outbox.publish_raw(
            "orders", "Raw", {"n": 1}, key="order-1", headers={"traceparent": TRACE}
        )
        plain = outbox.publish_raw("orders", "Raw", {"n": 2})
    found = rows(
        "SELECT id, aggregatetype, aggregateid, type, payload ->> 'n', tracingspancontext"
        " FROM outbox_event_router ORDER BY position"
    )

    assert [(uuid.UUID(str(first)), *rest) for first, *rest in found] == [
        (uuid.UUID(int=keyed), "orders", "order-1", "Raw", "1", f"traceparent={TRACE}"),
        (uuid.UUID(int=plain), "orders", str(plain), "Raw", "2", None),
    ]
