"""Findings: what must not be, by kind, and what happened to a message and its range around one."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from django.db import connection

MOST_SHOWN = 3
"""Examples of each kind."""
MOST_EVENTS = 20
"""Lines of a history, the last ones."""


class Finding(NamedTuple):
    """Something that must not be; with a group, its history can be told."""

    kind: str
    text: str
    group: str = ""
    channel: str = ""
    slot: int = 0
    position: int = 0
    order: int = 0


class Action(NamedTuple):
    """What the rack did: seconds since its start, the order number before it, and what it was."""

    seconds: float
    order: int
    text: str


def rows(statement: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall())


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = collections.defaultdict(list)
    for finding in findings:
        found[finding.kind].append(finding)
    return dict(sorted(found.items()))


def tell(findings: Sequence[Finding], actions: Sequence[Action]) -> None:
    """Print a few findings of each kind, each with the smallest history that shows it."""
    for kind, found in by_kind(findings).items():
        for finding in found[:MOST_SHOWN]:
            print(f"\nFINDING {kind}: {finding.text}")
            if finding.group:
                _tell_history(finding, actions)
        if len(found) > MOST_SHOWN:
            print(f"... and {len(found) - MOST_SHOWN} more of the kind {kind}")


def _tell_history(finding: Finding, actions: Sequence[Action]) -> None:
    events = history(finding)[-MOST_EVENTS:]
    orders = [order for order, _ in events] or [finding.order]
    around = [
        (action.order, f"                    {action.seconds:.1f} s: {action.text[:200]}")
        for action in actions
        if orders[0] - 20 <= action.order <= orders[-1] + 20
    ]
    for order, text in sorted([*events, *around[-MOST_EVENTS:]]):
        print(f"    {order:9d} {text}")


def history(finding: Finding) -> list[tuple[int, str]]:
    """What happened to the message and to its range, by order."""
    told = [
        (order, f"process {process} handled {position} (attempt {attempt})")
        for order, position, process, attempt in rows(
            'SELECT id, position, process, attempt FROM soak_journal WHERE "group" = %s'
            " AND channel = %s AND position = %s",
            finding.group,
            finding.channel,
            finding.position,
        )
    ]
    told += [
        (
            order,
            f"{op} of cursor {number} ({first} to {last}): {old} -> {new}, generation {generation},"
            f" by {application}",
        )
        for order, op, number, first, last, old, new, generation, application in rows(
            "SELECT id, op, cursor_id, slot_from, slot_to, old_position, position, generation, application"
            ' FROM soak_cursor WHERE "group" = %s AND channel = %s AND %s BETWEEN slot_from AND slot_to'
            " AND (%s BETWEEN COALESCE(LEAST(old_position, position), 0)"
            "          AND GREATEST(old_position, position)"
            "      OR generation IS DISTINCT FROM old_generation OR op <> 'UPDATE')"
            " ORDER BY id DESC LIMIT 60",
            finding.group,
            finding.channel,
            finding.slot,
            finding.position,
        )
    ]
    return sorted(told)
