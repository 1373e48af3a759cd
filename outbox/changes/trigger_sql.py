"""The SQL of capture triggers: how one is installed, and expressions over a row.

`row` is what a query calls the row; a field is one of its table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pgtrigger
from django.db import DEFAULT_DB_ALIAS, connections

from .. import sql

TEMPLATES = sql.load(Path(__file__).with_name("trigger.sql"))
PAIRS_PER_CALL = 50
"""jsonb_build_object() takes 100 arguments."""

# Types whose text does not depend on the session's TimeZone, DateStyle and bytea_output.
KEY_TEXTS = {
    "DateTimeField": "to_jsonb({0} AT TIME ZONE 'UTC') #>> '{{}}'",
    "DateField": "to_jsonb({0}) #>> '{{}}'",
    "DurationField": "extract(epoch FROM {0})::text",
    "BinaryField": "encode({0}, 'hex')",
}


RESERVED_COLUMNS = frozenset({"outbox_ordinal", "outbox_operation", "outbox_row", "outbox_headers"})
"""What the triggers' own statements call a column or a variable beside the row's columns."""
OPERATIONS: dict[str, tuple[pgtrigger.Operation, dict[str, str]]] = {
    "insert": (pgtrigger.Insert, {"new": "new_values"}),
    "update": (pgtrigger.Update, {"old": "old_values", "new": "new_values"}),
    "delete": (pgtrigger.Delete, {"old": "old_values"}),
}
"""Of each operation what PostgreSQL calls it, and its transition tables."""


class CaptureSql(pgtrigger.Trigger):
    """A capture trigger as migrations hold it: its SQL, but not the name of its table.

    The state of the migrated models names the table, so that a migration can rename the table
    before or after it changes the trigger. Migrations name this class `outbox.changes.CaptureSql`:
    that path and these arguments stay.

    `captures`: the operation. `channel`: whose floor the writer takes. `pgid`: the name of trigger
    and function. `append`, `found`: the statement that stores messages, and when to run it. `pk`:
    the columns of the primary key.
    """

    def __init__(
        self,
        *,
        name: str,
        captures: str,
        channel: str = "",
        pgid: str = "",
        append: str = "",
        found: str = "true",
        pk: Sequence[str] = (),
        hash: str | None = None,
    ) -> None:
        operation, tables = OPERATIONS[captures]
        super().__init__(
            name=name,
            when=pgtrigger.After,
            level=pgtrigger.Statement,
            operation=operation,
            referencing=pgtrigger.Referencing(**tables),  # type: ignore[no-untyped-call]
        )
        self.arguments: dict[str, Any] = {
            "captures": captures,
            "channel": channel,
            "pgid": pgid,
            "append": append,
            "found": found,
            "pk": list(pk),
        }
        self.pgid = pgid
        text = TEMPLATES["install"] + TEMPLATES["body"] + repr(sorted(self.arguments.items()))
        self.hash = hash or hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.table = ""
        """The quoted name of the table; empty until `compile()` gives it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaptureSql) and self.deconstruct() == other.deconstruct()

    __hash__ = None  # type: ignore[assignment]

    def compile(self, model: Any) -> CaptureSql:  # type: ignore[override]
        """Return the trigger on the table that the model has in this state of the migrations."""
        bound = CaptureSql(**self.deconstruct()[2])
        bound.table = quoted(model._meta.db_table)
        return bound

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return what a migration writes."""
        arguments = {"name": self.name, **self.arguments, "hash": self.hash}
        return "outbox.changes.CaptureSql", [], arguments

    @property
    def body(self) -> str:
        """The source of the trigger's function, as the server keeps it."""
        captures, append = self.arguments["captures"], self.arguments["append"]
        is_same = " AND ".join(f"now.{name(c)} = told.{name(c)}" for c in self.arguments["pk"])
        now = append.replace(fill(captures), fill(f"{captures}_now", is_same=is_same))
        return TEMPLATES["body"].format(
            channel=literal(self.arguments["channel"]),
            append=append,
            append_now=now.replace("), outbox_headers FROM ", "), $1 FROM ", 1),
            found=self.arguments["found"],
        )

    @property
    def install_sql(self) -> str:
        """The statements that make the trigger, and remove older captures of the channel."""
        return self._statement("install")

    @property
    def uninstall_sql(self) -> str:
        """The statement that drops the trigger."""
        return self._statement("uninstall")

    @property
    def enable_sql(self) -> str:
        """The statement that lets the trigger fire."""
        return self._statement("enable")

    @property
    def disable_sql(self) -> str:
        """The statement that keeps the trigger from firing."""
        return self._statement("disable")

    def _statement(self, template: str) -> str:
        return TEMPLATES[template].format(
            pgid=self.pgid,
            name=self.name,
            body=self.body,
            operation=self.operation,
            referencing=self.referencing,
            table=self.table,
            table_literal=literal(self.table),
            hash=self.hash,
        )


def fill(name: str, **values: str) -> str:
    """Return a template of `trigger.sql` on one line, as migrations hold it."""
    return " ".join(TEMPLATES[name].split()).format(**values)


def image(row: str, fields: Sequence[Any] | None, pk: Sequence[Any]) -> str:
    """Return a row as jsonb, by column: `fields`, or all of it; the key alone when it is huge."""
    if fields is None:
        whole, record = f"to_jsonb({row}.*)", f"{row}.*"
    else:
        columns = ", ".join(f"{row}.{column(field)}" for field in fields)
        whole, record = (
            json_object(row, fields),
            f"(SELECT outbox_row FROM (SELECT {columns}) AS outbox_row)",
        )
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
    return name(field.column)


def name(identifier: str) -> str:
    """Return a quoted identifier."""
    return '"{}"'.format(identifier.replace('"', '""'))


def quoted(table: str) -> str:
    """Return the name of a table as Django quotes it; `"schema"."table"` stays as it is."""
    is_quoted = table.startswith('"') and table.endswith('"')
    return table if is_quoted else f'"{table}"'


def literal(text: str) -> str:
    """Return text as an SQL literal that may stand in a function between dollar quotes."""
    if text.isprintable() and not set(text) & {"\\", "$"}:
        return "'{}'".format(text.replace("'", "''"))
    plain = " _.-"
    escaped = (c if c.isalnum() or c in plain else f"\\U{ord(c):08x}" for c in text)
    return "E'{}'".format("".join(escaped))


def slug(channel: str) -> str:
    """Return a part of a trigger's name that is unique to the channel, of at most 33 characters."""
    if re.fullmatch(r"[a-z0-9_]{1,33}", channel):
        return channel
    plain = re.sub(r"[^a-z0-9_]", "_", channel.lower())[:24]
    return f"{plain}_{hashlib.sha256(channel.encode()).hexdigest()[:8]}"
