"""The statements of `queries.sql`, and the templates of `capture.sql`, by name.

A block starts with `-- name: NAME`; the comment lines below it describe the statement and
are sent to nobody; parameters are written `%(name)s`.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from django.utils import timezone

_BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"%\((\w+)\)s")


@functools.cache
def _statements(file: str) -> dict[str, str]:
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    return {name: _without_comments(body) for name, body in _BLOCK.findall(text)}


def _without_comments(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()


@functools.cache
def statement(name: str, file: str = "queries.sql") -> str:
    """Return the SQL text of the statement `name`; KeyError when there is none."""
    return _statements(file)[name]


def run_statement(
    cursor: Any, name: str, parameters: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Execute the statement `name`; KeyError when there is none or a parameter is missing.

    They go by position, since wrappers of the connection such as `pgtrigger.ignore()` put a
    parameter of their own before them.
    """
    sql, names = _positional(name)
    cursor.execute(sql, [parameters[each] for each in names] or None)


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
