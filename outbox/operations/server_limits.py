"""Whether the timeouts and the lock table of the server suit the workers."""

from __future__ import annotations

from django.db import connections

from .. import groups
from ..conf import settings
from ..sql import all_rows, one_row, scalar
from .findings import Answer
from .sessions import worker_sessions

MOST_IDLE_LOCKS = 32
"""Locks that a sleeping worker holds at most."""


def idle_timeout(using: str) -> Answer:
    """Return whether the server ends transactions that were forgotten."""
    if milliseconds := _timeouts_of(using)["idle_in_transaction_session_timeout"]:
        return "ok", f"{milliseconds / 1000:.0f} s", ""
    name = connections[using].ops.quote_name(str(connections[using].settings_dict["NAME"]))
    fix = f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '10min';"
    return (
        "warn",
        "off: a forgotten transaction that published holds the horizon without limit",
        fix,
    )


def timeouts(using: str) -> Answer:
    """Compare the timeouts of this role with how long workers take."""
    found = _timeouts_of(using)
    batch, sleep = 1000 * settings().batch_seconds, 1000 * settings().poll_interval
    least = {
        "statement_timeout": (batch, "a claim that it ends is repeated with fewer messages"),
        "lock_timeout": (batch, "a worker that waits for a row gives up and tries again"),
        "transaction_timeout": (2 * batch, "it ends batches that take their time"),
        "idle_in_transaction_session_timeout": (2 * batch, "it ends handlers that compute"),
        "idle_session_timeout": (2 * sleep, "it ends workers that sleep"),
    }
    for setting, (milliseconds, effect) in least.items():
        if 0 < found.get(setting, 0) < milliseconds:
            role = connections[using].ops.quote_name(str(scalar("current_role", using)))
            detail = f"{setting} of this role is {found[setting] / 1000:g} s: {effect}"
            return "warn", detail, f"ALTER ROLE {role} SET {setting} = '{milliseconds:.0f}ms';"
    limits = [f"{each} {found[each] / 1000:g} s" for each in least if found.get(each)]
    return "ok", ", ".join(limits) or "none is set", ""


def _timeouts_of(using: str) -> dict[str, int]:
    return dict(all_rows("read_timeouts", using))


def locks(using: str) -> Answer:
    """Compare what workers lock with the lock table; a full one stops publishers as well."""
    each, sessions, relations = one_row("read_lock_table", using) or (0, 0, 0)
    workers = max(1, len(worker_sessions(using)))
    channels = {channel for group in groups.all_groups() for channel in group.channels}
    needed = workers * (relations + min(len(channels), MOST_IDLE_LOCKS))
    detail = f"{workers} workers take up to {needed} of {each * sessions} locks"
    if needed < each * sessions / 2:
        return "ok", detail, ""
    fix = f"Set max_locks_per_transaction = {2 * needed // sessions + 64}, and restart."
    return "warn", detail, fix
