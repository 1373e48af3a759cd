"""The statements that the outbox runs, by name; a file of this folder per topic.

A block starts with `-- name: NAME`. The comment lines below it say which lock the statement takes
and which index it uses; they are not sent to the server. Parameters are written `%(name)s`.

A statement becomes a function of the database only where it must be planned once for a session, or
be held to an index walk; those stand in `migrations/sql`.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from ..exceptions import (
    NotMigrated,
    NotPostgres,
    OutboxError,
    PayloadTooLarge,
    RightsMissing,
)

_BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"%\((\w+)\)s")

UNDEFINED = ("42P01", "42883", "42703")
"""Table, function, column."""
LIMIT_EXCEEDED = "54000"
INSUFFICIENT_PRIVILEGE = "42501"


def load(file: Path) -> dict[str, str]:
    """Return the statements of a file by name, without their comments."""
    blocks = _BLOCK.findall(file.read_text(encoding="utf-8"))
    return {name: _without_comments(body) for name, body in blocks}


def _without_comments(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()


@functools.cache
def _statements() -> dict[str, str]:
    files = sorted(Path(__file__).parent.glob("*.sql"))
    return {name: text for file in files for name, text in load(file).items()}


def statement(name: str) -> str:
    """Return the SQL text of the statement `name`; KeyError when there is none."""
    return _statements()[name]


def run_statement(
    cursor: Any, name: str, parameters: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Execute the statement `name`; KeyError when there is none or a parameter is missing.

    They go by position, since wrappers of the connection such as `pgtrigger.ignore()` put a
    parameter of their own before them.

    Raises NotMigrated, NotPostgres, RightsMissing and PayloadTooLarge instead of what the
    database says.
    """
    sql, names = _positional(name)
    try:
        cursor.execute(sql, [parameters[each] for each in names] or None)
    except DatabaseError as error:
        if clearer := clearer_error(error, cursor.db):
            raise clearer from error
        raise


def clearer_error(error: DatabaseError | InterfaceError, connection: Any) -> OutboxError | None:
    """Return an error that names the cause and the cure, if this is one of a known kind.

    `error`: as Django raises it. `connection`: Django's.
    """
    if connection.vendor != "postgresql":
        return NotPostgres(using=connection.alias, vendor=connection.vendor)
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    reason = str(error).strip().partition("\n")[0]
    if code in UNDEFINED and "outbox_" in reason:
        return NotMigrated(connection.alias, reason)
    if code == INSUFFICIENT_PRIVILEGE and "outbox_" in reason:
        return RightsMissing(using=connection.alias, reason=reason)
    if code == LIMIT_EXCEEDED and "jsonb" in reason:
        return PayloadTooLarge(name="The payload", reason=reason)
    return None


def one_row(query: str, using: str, **parameters: Any) -> tuple[Any, ...] | None:
    """Run a statement and return its first row, if any."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, parameters)
        row: tuple[Any, ...] | None = cursor.fetchone()
    return None if row is None else with_zones(row)


def all_rows(query: str, using: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, parameters)
        return [with_zones(row) for row in cursor.fetchall()]


def scalar(query: str, using: str, **parameters: Any) -> Any:
    """Run a statement and return the first column of its first row, None without one."""
    row = one_row(query, using, **parameters)
    return None if row is None else row[0]


def scalar_reader(name: str, using: str) -> Callable[[], Any]:
    """Return a function that runs a statement without parameters and returns its first column.

    For a loop that asks often: it leaves out the cursor that Django makes for each statement.
    """
    connection = connections[using]
    connection.ensure_connection()
    cursor, sql = connection.connection.cursor(), statement(name)

    def read() -> Any:
        with connection.wrap_database_errors:
            cursor.execute(sql)
            return cursor.fetchone()[0]

    return read


@functools.cache
def _positional(name: str) -> tuple[str, list[str]]:
    text = statement(name)
    return _PARAMETER.sub("%s", text), _PARAMETER.findall(text)


def array(values: Iterable[object]) -> str:
    """Return values as an array literal: a parameter that driver and server read fastest."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def zoned(time: datetime.datetime) -> datetime.datetime:
    """Return a time of the database with its zone; without USE_TZ Django leaves it out."""
    return timezone.make_aware(time) if timezone.is_naive(time) else time


def with_zones(row: Iterable[Any]) -> tuple[Any, ...]:
    """Return a row of the database whose times have their zones."""
    return tuple(zoned(each) if isinstance(each, datetime.datetime) else each for each in row)
