"""What empties the database after a test with real commits.

Django's `flush` truncates every table and then makes all content types and permissions anew, which
costs more than most tests. Here the tables that have rows are truncated, and those two are kept. Of
the log's segments, too: each has half a dozen files, and a TRUNCATE of the parent makes all anew.
"""

from __future__ import annotations

import functools
from typing import Any

from django.db import connections
from django.test import TransactionTestCase

KEPT = {"django_content_type", "auth_permission"}
LOG, CURSORS = "outbox_message", "outbox_cursor"
"""The cursors are truncated each time: by their file sessions know whether facts that they cached
about the log still hold."""
SEGMENTS = f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{LOG}'::regclass"


@functools.cache
def tables(alias: str) -> list[str]:
    """Return the tables of the project's models."""
    names = connections[alias].introspection.django_table_names(
        only_existing=True, include_views=False
    )
    return sorted(set(names) - KEPT - {LOG})


def flush(alias: str) -> None:
    """Empty the database of an alias, but for what is kept."""
    connection = connections[alias]
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(SEGMENTS)
        segments = [name for (name,) in cursor.fetchall()]
        looks = [
            f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {quote(name)})"
            for name in [*tables(alias), *segments]
        ]
        cursor.execute(" UNION ALL ".join(looks))
        written = {CURSORS, *(name for (name,) in cursor.fetchall())}
        cursor.execute(f"TRUNCATE {', '.join(map(quote, sorted(written)))} CASCADE")


def _fixture_teardown(test_case: Any) -> None:
    for alias in test_case._databases_names(include_mirrors=False):
        flush(alias)


TransactionTestCase._fixture_teardown = _fixture_teardown  # type: ignore[method-assign]
