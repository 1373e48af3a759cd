"""What an operator can do about a status: the command beside the cause."""

from __future__ import annotations

import shlex

from .sessions import Holder


def of_range(group: str, status: str, failed_position: int | None, blocker: Holder | None) -> str:
    """Return the way out for a slot range; empty when its status says it, or none is needed.

    `blocker`: who holds the horizon back, when that stops the range.
    """
    name = shlex.quote(group)
    if status == "paused":
        return f"outbox resume {name}"
    if status == "failing" and failed_position is not None:
        return failed(group, failed_position)
    if status == "stopped":
        return start(group)
    if blocker is not None:
        return end(blocker)
    return ""


def failed(group: str, position: int) -> str:
    """Return what can be done about a message that fails."""
    return (
        "mend the handler, it is tried again by itself; or leave the message out: "
        f"outbox skip {shlex.quote(group)} --position {position} --reason …"
    )


def start(group: str) -> str:
    """Return the command that starts a worker for a group."""
    return f"manage.py consume {shlex.quote(group)}"


def end(holder: Holder) -> str:
    """Return the SQL that ends what holds the horizon back."""
    if holder.prepared:
        gid = holder.prepared.replace("'", "''")
        return f"COMMIT PREPARED '{gid}' or ROLLBACK PREPARED '{gid}' in SQL"
    return f"end its transaction, or in SQL: SELECT pg_terminate_backend({holder.pid})"


def parked(group: str) -> str:
    """Return the commands for parked messages."""
    name = shlex.quote(group)
    return f"outbox parked {name}, then outbox redrive {name} --all"
