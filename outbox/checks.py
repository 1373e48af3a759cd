"""System checks: a wrong setting or database is found at start, with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core import checks
from django.db import OperationalError, connections, router

from . import events, groups
from .conf import ALLOWED, Settings
from .sql import run_statement

OLDEST_POSTGRES = 140000


@checks.register("outbox")
def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E001: OUTBOX is not a dict. E002: unknown key. E003: a value of the wrong type."""
    given = getattr(django_settings, "OUTBOX", {})
    if not isinstance(given, dict):
        return [
            checks.Error(
                f"OUTBOX is {given!r}, not a dict.",
                hint="Known keys: " + ", ".join(Settings.keys()),
                id="outbox.E001",
            )
        ]
    unknown = [_unknown_key(key) for key in given if key not in ALLOWED]
    wrong = [
        checks.Error(f"OUTBOX[{key!r}] is {value!r}; use {ALLOWED[key][1]}.", id="outbox.E003")
        for key, value in given.items()
        if key in ALLOWED and not ALLOWED[key][0](value)
    ]
    return [*unknown, *wrong]


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
            f"Two consumer groups are named {second.name!r}: {_described(first)} and "
            f"{_described(second)}.",
            hint="They would share one cursor, and only the second one's handlers would run. "
            "Rename one of them.",
            id="outbox.E004",
        )
        for first, second in groups.duplicates()
    ]


def _described(group: groups.ConsumerGroup) -> str:
    place = f" in {group.declared_at}" if group.declared_at else ""
    return f"one of {', '.join(group.channels)}{place}"


@checks.register("outbox")
def check_events(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E010: an event class whose payload cannot be decoded."""
    found: list[checks.CheckMessage] = []
    for event_type in events.all_event_types():
        try:
            events.decoder_of(event_type)
        except (NameError, TypeError) as error:
            found.append(
                checks.Error(
                    f"Event {event_type.__module__}.{event_type.__qualname__}: {error}",
                    hint="Give its fields types that msgspec decodes and that its module names.",
                    id="outbox.E010",
                )
            )
    return found


@checks.register("outbox")
def check_vendor(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E005: the database that messages are published to is not PostgreSQL."""
    return _check_vendor(_default_alias())


def _default_alias() -> str:
    return router.db_for_write(apps.get_model("outbox", "Message"))


def _check_vendor(alias: str) -> list[checks.CheckMessage]:
    vendor = connections[alias].vendor
    if vendor == "postgresql":
        return []
    return [
        checks.Error(
            f"Database {alias!r} is {vendor}; the outbox needs PostgreSQL.",
            hint="Let DATABASE_ROUTERS send the app 'outbox' to a PostgreSQL database.",
            id="outbox.E005",
        )
    ]


@checks.register("outbox", checks.Tags.database)
def check_database(
    databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E005: not PostgreSQL. E006: too old. E007: sequence cache. E008: trigger missing.

    W009: the database cannot be reached.
    """
    default = _default_alias()
    found: list[checks.CheckMessage] = []
    for alias in databases or []:
        if router.allow_migrate(alias, "outbox"):
            found += [] if alias == default else _check_vendor(alias)
            found += _check_alias(alias)
    return found


def _check_alias(alias: str) -> list[checks.CheckMessage]:
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return []
    try:
        with connection.cursor() as cursor:
            run_statement(cursor, "describe_log")
            version, cache, missing = cursor.fetchone()
    except OperationalError as error:
        return [
            checks.Warning(
                f"Database {alias!r} cannot be reached, so its log is not checked: {error}",
                id="outbox.W009",
            )
        ]
    found: list[checks.CheckMessage] = []
    if version < OLDEST_POSTGRES:
        found.append(
            checks.Error(
                f"Database {alias!r} runs PostgreSQL {version // 10000}; the outbox needs 14 or "
                "newer.",
                hint="Upgrade the server, or route the app 'outbox' to another database.",
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
