"""The triggers of the log and of its cursors, managed by django-pgtrigger.

Each executes a function of its own that the migrations create (`migrations/sql`). So they
cannot be switched off by `pgtrigger.ignore()`: without a floor a reader could skip messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pgtrigger
from pgtrigger import compiler

from . import sql

TEMPLATES = sql.load(Path(__file__).with_name("triggers.sql"))


class LogTriggerSql(compiler.UpsertTriggerSql):
    """The statements that install a trigger of the log. Migrations hold it: it keeps its place."""

    def get_template(self) -> str:
        """Return the template, without a function of pgtrigger's own."""
        return TEMPLATES["trigger"]


class LogTrigger(pgtrigger.Trigger):
    """A trigger, by default of a statement, that executes the SQL function `executes`."""

    level = pgtrigger.Statement

    def __init__(self, *, executes: str, **options: Any) -> None:
        self.executes = executes
        super().__init__(func="RETURN NULL;", **options)

    def compile(self, model: Any) -> compiler.Trigger:
        """Return the trigger as migrations hold it."""
        sql = LogTriggerSql(
            pgid=self.get_pgid(model),
            func="",
            table=model._meta.db_table,
            when=self.when,
            operation=self.operation,
            referencing=self.referencing or "",
            level=self.level,
            execute=f"{self.executes}()",
        )
        return compiler.Trigger(name=self.name, sql=sql)


TAKE_FLOOR = LogTrigger(
    name="take_floor",
    executes="outbox_take_floor",
    when=pgtrigger.Before,
    operation=pgtrigger.Insert,
)
CHECK_POSITIONS_AND_NOTIFY = LogTrigger(
    name="check_positions_and_notify",
    executes="outbox_check_positions_and_notify",
    when=pgtrigger.After,
    operation=pgtrigger.Insert,
    referencing=pgtrigger.Referencing(new="appended"),  # type: ignore[no-untyped-call]
)
APPEND_ONLY = LogTrigger(
    name="append_only",
    executes="outbox_forbid_changes",
    when=pgtrigger.Before,
    operation=pgtrigger.Update | pgtrigger.Delete | pgtrigger.Truncate,
)
CHECK_POSITION = LogTrigger(
    name="check_position",
    executes="outbox_check_cursor",
    level=pgtrigger.Row,
    when=pgtrigger.Before,
    operation=pgtrigger.Insert | pgtrigger.UpdateOf("position"),  # type: ignore[no-untyped-call]
)
