"""What the tables of the outbox share: they belong to the log of one database."""

from __future__ import annotations

import functools
import logging
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func
from django.db.models.expressions import Col
from django.db.models.sql.compiler import SQLCompiler

from ..conf import require_apps

require_apps()

logger = logging.getLogger("outbox")

CHANNEL_LENGTH = 63
GROUP_LENGTH = 63
SLOTS = 32768


class ClockTimestamp(Func):
    """The database's clock, also within a transaction."""

    function = "clock_timestamp"
    arity = 0
    output_field = models.DateTimeField()


class PayloadField(models.JSONField):
    """JSON as it was written: a column of type json, which keeps the order of names and all digits
    of numbers, and costs less to write and to read than jsonb.

    Lookups such as `payload__order_id=7` cast it to jsonb; no index serves them.
    """

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        """Return the type of the column."""
        return "json"

    def get_col(self, alias: str, output_field: models.Field[Any, Any] | None = None) -> Col:
        """Return the column for a query."""
        return _PayloadCol(alias, self, output_field)

    @property
    def cached_col(self) -> Col:
        """The column of the model's own table."""
        return self.get_col(self.model._meta.db_table)


class _PayloadCol(Col):
    """Selected as text, which each driver leaves as it is; compared as jsonb."""

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Any:
        sql, parameters = super().as_sql(compiler, connection)
        return f"{sql}::jsonb", parameters

    def select_format(self, compiler: SQLCompiler, sql: str, params: Any) -> Any:
        return f"{sql.removesuffix('::jsonb')}::text", params


class LogModel(models.Model):
    """A table that belongs to one database's log, so that no fixture can carry it.

    The rows of a fixture are not stored: positions and cursors of another log, or of this one
    before a flush, would make groups pass over messages.
    """

    class Meta:
        abstract = True

    def _save_table(self, raw: bool = False, *args: Any, **kwargs: Any) -> bool:
        """Store the row unless it comes from a fixture: those save without `save()`."""
        if raw:
            _report_fixture(self._meta.label)
            return False
        return bool(super()._save_table(raw, *args, **kwargs))  # type: ignore[misc]


@functools.cache
def _report_fixture(label: str) -> None:
    """Log once for a model that the rows of a fixture are left out."""
    logger.warning(
        "rows of %s in a fixture are not loaded: they belong to the log of one database. Leave "
        "them out with dumpdata --exclude outbox, in tests with TEST_NON_SERIALIZED_APPS.",
        label,
    )
