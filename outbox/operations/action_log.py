"""Operator actions: who changed what about a group, when, from what to what, and why.

Every intervention writes one row of `outbox_operator_action`, in the transaction that makes the
change, so that neither exists without the other.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import getpass
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..conf import settings
from ..models import OperatorAction

_actor: contextvars.ContextVar[str] = contextvars.ContextVar("outbox_actor", default="")


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """What an operator did to a group."""

    at: datetime.datetime
    actor: str
    action: str
    details: dict[str, Any]
    """`old`, `new` and `reason`."""


def actor() -> str:
    """Return the name for the records: `acting_as`, else the setting OPERATOR, else user@host."""
    if name := _actor.get() or settings().operator:
        return name
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Let the records of the block carry a name, such as the user of a request."""
    token = _actor.set(name)
    try:
        yield
    finally:
        _actor.reset(token)


def record(
    action: str,
    group: str,
    *,
    using: str,
    old: Any = None,
    new: Any = None,
    reason: str = "",
    by: str | None = None,
) -> OperatorAction:
    """Store what an operator did; call it in the transaction of the change.

    `action`: the verb. `old`, `new`: what changed, any JSON values. `by`: who; None for `actor()`.
    """
    details = {"old": old, "new": new, "reason": reason}
    return OperatorAction.objects.using(using).create(
        actor=by or actor(), action=action, group=group, details=details
    )


def latest(group: str, most: int, using: str) -> list[Action]:
    """Return the last actions on a group, the newest first."""
    rows = OperatorAction.objects.using(using).filter(group=group)[:most]
    return [Action(row.at, row.actor, row.action, row.details) for row in rows]
