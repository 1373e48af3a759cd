"""System checks: a wrong setting or database is found at start, with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.db import connections, router

from . import groups
from .conf import Settings
from .queries import statement

OLDEST_POSTGRES = 140000


@checks.register("outbox")
def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E001: OUTBOX is not a dict. E002: unknown key. E003: a value of the wrong type."""
    given = getattr(django_settings, "OUTBOX", {})
    if not isinstance(given, dict):
        return [checks.Error("OUTBOX is not a dict.", id="outbox.E001")]
    return [_unknown_key(key) for key in given if key not in Settings.keys()]


def _unknown_key(key: Any) -> checks.CheckMessage:
    nearest = difflib.get_close_matches(str(key).upper(), Settings.keys(), n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else None
    known = ", ".join(Settings.keys())
    return checks.Error(
        f"OUTBOX has an unknown key {key!r}. Known keys: {known}.", hint=hint, id="outbox.E002"
    )


@checks.register("outbox")
def check_groups(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E004: two consumer groups under one name."""
    return [
        checks.Error(
            f"Two consumer groups are named {second.name!r}: {first!r} and {second!r}.",
            hint="They would share one cursor. Rename one of them.",
            id="outbox.E004",
        )
        for first, second in groups.duplicates()
    ]


@checks.register("outbox", checks.Tags.database)
def check_database(
    databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E005: not PostgreSQL. E006: too old. E007: sequence cache. E008: trigger missing."""
    found: list[checks.CheckMessage] = []
    for alias in databases or []:
        found += _check_alias(alias)
    return found


def _check_alias(alias: str) -> list[checks.CheckMessage]:
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return [
            checks.Error(
                f"Database {alias!r} is {connection.vendor}; the outbox needs PostgreSQL.",
                hint="Route the app 'outbox' to a PostgreSQL database.",
                id="outbox.E005",
            )
        ]
    with connection.cursor() as cursor:
        cursor.execute(statement("describe_log"))
        version, cache, missing = cursor.fetchone()
    found: list[checks.CheckMessage] = []
    if version < OLDEST_POSTGRES:
        found.append(
            checks.Error(
                f"Database {alias!r} runs PostgreSQL {version // 10000}; the outbox needs 14.",
                id="outbox.E006",
            )
        )
    if cache is not None and cache != 1:
        found.append(
            checks.Error(
                f"The sequence outbox_message_position_seq has CACHE {cache}: "
                "readers would skip messages.",
                hint="ALTER SEQUENCE outbox_message_position_seq CACHE 1;",
                id="outbox.E007",
            )
        )
    if cache is not None and missing:
        found.append(
            checks.Error(
                f"The log lacks its trigger(s), or they are disabled: {', '.join(missing)}.",
                hint="manage.py pgtrigger install; manage.py pgtrigger enable",
                id="outbox.E008",
            )
        )
    return found
