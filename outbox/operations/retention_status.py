"""What delays retention: a failed maintenance, groups that have not read, cursors behind it."""

from __future__ import annotations

import dataclasses
import datetime

from ..conf import log_alias
from ..exceptions import InvalidRule
from ..retention import removals
from ..retention.removals import Hold
from ..sql import all_rows, one_row
from .findings import Answer


@dataclasses.dataclass(frozen=True, slots=True)
class RetentionStatus:
    """The state of retention in one log."""

    succeeded_at: datetime.datetime | None
    """When maintenance ended last without an error; None: never."""
    failed_at: datetime.datetime | None
    """When it failed; None when it has succeeded since."""
    error: str
    holds: list[Hold]
    """The group that holds each channel back, and since when."""
    behind: list[str]
    """A sentence for each group that stands before the first message its channel still has."""

    @property
    def notes(self) -> list[str]:
        """A sentence for each fault, the worst first."""
        failed = [f"Maintenance of the log failed: {self.error}"] if self.error else []
        held = [f"Retention is held back: {hold}." for hold in self.holds]
        return [*self.behind, *failed, *held]


def see(using: str | None = None) -> RetentionStatus:
    """Return the state of retention, read now."""
    using = log_alias(using)
    succeeded_at, failed_at, error = one_row("see_maintenance", using) or (None, None, "")
    behind = [
        f"Group {group} stands in {channel} before position {removed_to}, up to which messages "
        "were removed."
        for group, channel, removed_to in all_rows("cursors_behind_retention", using)
    ]
    try:
        holds = removals.holds(using)
    except InvalidRule as broken:
        error, holds = str(broken), []
    return RetentionStatus(succeeded_at, failed_at, error, holds, behind)


def run_checks(using: str) -> Answer:
    """Return what the doctor says of retention."""
    state = see(using)
    if state.behind:
        return "fail", state.behind[0], "Run `outbox restore`, or reset the group."
    if state.error:
        fix = "Mend that, then run `manage.py outbox segments --maintain`."
        return "fail", f"maintenance failed: {state.error}", fix
    if state.holds:
        more = f" (and {len(state.holds) - 1} more)" if state.holds[1:] else ""
        fix = f"Start its workers; if the group is gone: `outbox forget {state.holds[0].group}`."
        return "warn", f"{state.holds[0]}{more}", fix
    return "ok", "nothing holds it back", ""
