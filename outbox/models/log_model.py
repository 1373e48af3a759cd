"""What the tables of the outbox share: they belong to the log of one database."""

from __future__ import annotations

import functools
import logging
from typing import Any

from django.db import models
from django.db.models import Func

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
