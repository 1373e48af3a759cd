"""Rebuild all rows of an event-sourced model from their streams, while writers go on."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections, router

from ..sql import run_statement
from .aggregate import Aggregate

CHUNK = 500


def rebuild_all(
    model: type[Aggregate], *, after: str = "", using: str | None = None
) -> Iterator[str]:
    """Rebuild the row of every stream of a model's channel, in order of the keys; give each key.

    Each row is a transaction of its own. `after`: go on behind this key, where a rebuild ended.
    """
    alias = using or router.db_for_write(model)
    while True:
        parameters = {"channel": model.channel, "after": after, "most": CHUNK}
        with connections[alias].cursor() as cursor:
            run_statement(cursor, "list_streams", parameters)
            keys = [key for key, _ in cursor.fetchall()]
        for key in keys:
            model.rebuild(key, using=alias)
            yield key
        if len(keys) < CHUNK:
            return
        after = keys[-1]
