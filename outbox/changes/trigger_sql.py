"""The SQL of capture triggers: how one is installed, and expressions over a row.

`row` is what a query calls the row; a field is one of its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from pgtrigger import compiler

from .. import sql

TEMPLATES = sql.load(Path(__file__).with_name("trigger.sql"))
PAIRS_PER_CALL = 50
"""jsonb_build_object() takes 100 arguments."""

# Texts that do not depend on the session's TimeZone, DateStyle and bytea_output.
KEY_TEXTS = {
    "DateTimeField": "to_jsonb({0} AT TIME ZONE 'UTC') #>> '{{}}'",
    "DateField": "to_jsonb({0}) #>> '{{}}'",
    "DurationField": "extract(epoch FROM {0})::text",
    "BinaryField": "encode({0}, 'hex')",
}


class CaptureSql(compiler.UpsertTriggerSql):
    """The statements that install a capture trigger. Migrations hold it, so it keeps its place."""

    def get_template(self) -> str:
        """Return the template, without pgtrigger's function that raises to find nothing muted."""
        return TEMPLATES["trigger"]


def fill(name: str, **values: str) -> str:
    """Return a template of `trigger.sql` on one line, as migrations hold it."""
    return " ".join(TEMPLATES[name].split()).format(**values)


def image(row: str, fields: Sequence[Any] | None, pk: Sequence[Any]) -> str:
    """Return a row as jsonb, by column: `fields`, or all of it; the key alone when it is huge."""
    if fields is None:
        whole, record = f"to_jsonb({row}.*)", f"{row}.*"
    else:
        columns = ", ".join(f"{row}.{column(field)}" for field in fields)
        whole, record = json_object(row, fields), f"(SELECT c FROM (SELECT {columns}) AS c)"
    return fill("image", row=row, image=whole, record=record, keys=json_object(row, pk))


def json_object(row: str, fields: Sequence[Any]) -> str:
    """Return a row's fields as jsonb, by column."""
    pairs = [f"{literal(field.column)}, {row}.{column(field)}" for field in fields]
    calls = [
        f"jsonb_build_object({', '.join(pairs[start : start + PAIRS_PER_CALL])})"
        for start in range(0, len(pairs), PAIRS_PER_CALL)
    ]
    return " || ".join(calls)


def text(field: Any, row: str) -> str:
    """Return a row's field as text, the same in every session."""
    value = f"{row}.{column(field)}"
    while field.remote_field is not None:
        field = field.target_field
    return KEY_TEXTS.get(field.get_internal_type(), "{0}::text").format(value)


def is_changed(field: Any) -> str:
    """Return whether the rows old and new differ in a field; by text where "=" may be missing."""
    known = field.get_internal_type() in connections[DEFAULT_DB_ALIAS].data_types
    cast = "" if known or field.remote_field is not None else "::text"
    return f"old.{column(field)}{cast} IS DISTINCT FROM new.{column(field)}{cast}"


def column(field: Any) -> str:
    """Return the quoted name of a field's column."""
    return '"{}"'.format(field.column.replace('"', '""'))


def literal(text: str) -> str:
    """Return text as an SQL literal that may stand in a function between dollar quotes."""
    if text.isprintable() and not set(text) & {"\\", "$"}:
        return "'{}'".format(text.replace("'", "''"))
    plain = " _.-"
    escaped = (c if c.isalnum() or c in plain else f"\\U{ord(c):08x}" for c in text)
    return "E'{}'".format("".join(escaped))
