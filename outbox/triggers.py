"""The triggers of the log, managed by django-pgtrigger.

Each executes a function of its own that the migrations create (`migrations/sql`). So they
cannot be switched off by `pgtrigger.ignore()`: without a floor a reader could skip messages.
"""

from __future__ import annotations

from typing import Any

import pgtrigger
from django.db import models


class LogTrigger(pgtrigger.Trigger):
    """A statement trigger of the log that executes the SQL function `executes`."""

    level = pgtrigger.Statement

    def __init__(self, *, executes: str, **options: Any) -> None:
        self.executes = executes
        super().__init__(func="RETURN NULL;", **options)

    def render_execute(self, model: models.Model) -> str:
        """Return the call that replaces pgtrigger's own function."""
        return f"{self.executes}()"


TAKE_FLOOR = LogTrigger(
    name="take_floor",
    executes="outbox_take_floor",
    when=pgtrigger.Before,
    operation=pgtrigger.Insert,
)
SEAL_AND_SIGNAL = LogTrigger(
    name="seal_and_signal",
    executes="outbox_seal_and_signal",
    when=pgtrigger.After,
    operation=pgtrigger.Insert,
    referencing=pgtrigger.Referencing(new="appended"),  # type: ignore[no-untyped-call]
)
APPEND_ONLY = LogTrigger(
    name="append_only",
    executes="outbox_refuse_rewrite",
    when=pgtrigger.Before,
    operation=pgtrigger.Update | pgtrigger.Delete | pgtrigger.Truncate,
)
