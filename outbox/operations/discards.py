"""Discard a selection of parked messages: they are deleted without being handled.

They count as skipped from then on, so that the account of the group stays exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from django.db import transaction

from ..conf import log_alias
from ..consuming import parked_messages
from ..consuming.parked_messages import ParkedKey
from ..exceptions import NotParked
from ..sql import all_rows, array
from . import action_log, cursor_locks, parked_selection
from .parked_selection import Selection, Total

LISTED = 1000
"""Positions that the record of a discard names."""


def discard_all(
    chosen: Selection, *, reason: str, execute: bool = True, using: str | None = None
) -> Total:
    """Delete the parked messages of a selection, and return it in numbers.

    `reason`: stored in the action log. `execute=False`: change nothing. Waits for the batches that
    are being handled. Messages of the same keys that are not selected stay parked: redrive them.

    Raises NotParked when the selection is empty, and UnknownGroup.
    """
    using = log_alias(using)
    with transaction.atomic(using=using):
        if execute:
            cursor_locks.rows_of(chosen.group, None, using)
        found = parked_selection.total(chosen, using)
        if not found.messages:
            raise NotParked(group=chosen.group, wanted="of this selection")
        if execute:
            positions = list(chosen.rows(using).values_list("position", flat=True))
            _drop(chosen.group, positions, using)
            old = {
                **{name: str(value) for name, value in _given(chosen).items()},
                **dataclasses.asdict(found),
                "positions": positions[:LISTED],
            }
            action_log.record("discard", chosen.group, using=using, old=old, reason=reason)
    return found


def _drop(group: str, positions: Sequence[int], using: str) -> None:
    dropped = all_rows("discard_parked", using, group=group, positions=array(positions))
    for channel, key in dropped:
        released = ParkedKey(group, channel, key, 0, 0)
        transaction.on_commit(partial(parked_messages.tell_released, released), using=using)


def _given(chosen: Selection) -> dict[str, object]:
    given = dataclasses.asdict(chosen)
    return {name: value for name, value in given.items() if value is not None and name != "group"}
