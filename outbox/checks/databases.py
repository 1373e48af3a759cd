"""System checks of the databases: the server, the log, its sequence and triggers, and the route."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db import connections, router

from .. import outages, positions
from ..conf import log_alias
from ..exceptions import RightsMissing
from ..outages import Meaning
from ..sql import run_statement

OLDEST_POSTGRES = 140000


@checks.register("outbox")
def check_vendor(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E005: the database that messages are published to is not PostgreSQL."""
    return _check_vendor(log_alias())


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

    W009: the database cannot be reached. W013: `migrate` was forgotten. W014: the router names a
    database without a log. E011: a cursor above the
    sequence, or a sequence below the log. I028: the role may not read cursors.

    `manage.py check` checks the database of the log also without --database; see `check_log`.
    """
    default, is_check = log_alias(), sys.argv[1:2] == ["check"]
    found: list[checks.CheckMessage] = []
    for alias in databases or []:
        if not router.allow_migrate(alias, "outbox"):
            continue
        found += [] if alias == default else _check_vendor(alias)
        try:
            found += log_faults(alias, must_exist=is_check)
        except outages.errors(alias) as error:
            _raise_unless_away(error, alias)
            found.append(
                checks.Warning(
                    f"Database {alias!r} cannot be reached, so its log is not checked: {error}",
                    id="outbox.W009",
                )
            )
    return found + _check_route(default, list(databases or []))


def _check_route(routed: str, databases: Sequence[str]) -> list[checks.CheckMessage]:
    """Compare the database that messages are written to with those that have a log."""
    aliases = [alias for alias in databases if connections[alias].vendor == "postgresql"]
    if routed not in aliases or len(aliases) == 1:
        return []
    try:
        with_log = [alias for alias in aliases if _has_log(alias)]
    except outages.errors(routed) as error:
        _raise_unless_away(error, routed)
        return []
    if not with_log or routed in with_log:
        return []
    return [
        checks.Warning(
            f"Messages are written to database {routed!r}, which has no log; the log is in "
            f"{', '.join(map(repr, with_log))}.",
            hint=f"Let DATABASE_ROUTERS send the app 'outbox' to {with_log[0]!r}, or run manage.py "
            f"migrate outbox --database {routed}.",
            id="outbox.W014",
        )
    ]


def _has_log(alias: str) -> bool:
    return "outbox_message" in connections[alias].introspection.table_names()


@checks.register("outbox")
def check_log(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """E006, E007, E008 and W013 for `manage.py check` alone, if the database can be reached.

    Since Django 6.1 a check with the tag "database" is not called without --database, and others
    get all aliases.
    """
    if sys.argv[1:2] != ["check"] or any(each.startswith("--database") for each in sys.argv):
        return []
    alias = log_alias()
    try:
        return log_faults(alias, must_exist=True)
    except outages.errors(alias) as error:
        _raise_unless_away(error, alias)
        return []


def _raise_unless_away(error: Exception, alias: str) -> None:
    """Give up the session when the database cannot be reached, or went away; else raise."""
    if outages.meaning(error, alias) not in (Meaning.OUTAGE, Meaning.CANCELLED):
        raise error
    outages.discard(alias)


def log_faults(alias: str, *, must_exist: bool = False) -> list[checks.CheckMessage]:
    """Return what is wrong with the log in a database: E006, E007 and E008.

    `must_exist`: also W013. Raises the error of an outage when the database cannot be reached.
    """
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        run_statement(cursor, "describe_log")
        version, cache, missing = cursor.fetchone()
    option = "" if alias == "default" else f" --database {alias}"
    found: list[checks.CheckMessage] = []
    if cache is None and must_exist:
        text, hint = f"Database {alias!r} has no log yet.", f"manage.py migrate outbox{option}"
        found.append(checks.Warning(text, hint=hint, id="outbox.W013"))
    if version < OLDEST_POSTGRES:
        text = (
            f"Database {alias!r} runs PostgreSQL {version // 10000}; the outbox needs 14 or newer."
        )
        hint = "Upgrade the server, or route the app 'outbox' to another database."
        found.append(checks.Error(text, hint=hint, id="outbox.E006"))
    if cache is not None and cache != 1:
        name = "outbox_message_position_seq"
        text = f"The sequence {name} has CACHE {cache}: readers would skip messages."
        hint = f"ALTER SEQUENCE {name} CACHE 1;"
        found.append(checks.Error(text, hint=hint, id="outbox.E007"))
    if cache is not None and missing:
        text = f"The log in database {alias!r} lacks its trigger(s), or they are disabled: "
        hint = f"manage.py pgtrigger install{option}"
        found.append(checks.Error(f"{text}{', '.join(missing)}.", hint=hint, id="outbox.E008"))
    return found if cache is None else [*found, *_check_positions(alias)]


def _check_positions(alias: str) -> list[checks.CheckMessage]:
    try:
        faults = positions.find_faults(alias)
    except RightsMissing as error:
        text = f"Sequence, log and cursors are not compared. {error}"
        hint = "That is right for the role of a process that only publishes."
        return [checks.Info(text, hint=hint, id="outbox.I028")]
    return [
        checks.Error(_sentence(fault.detail), hint=fault.fix, id="outbox.E011") for fault in faults
    ]


def _sentence(detail: str) -> str:
    return f"{detail[0].upper()}{detail[1:]}."
