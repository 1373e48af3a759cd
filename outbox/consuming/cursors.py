"""Cursors: where each group is in each channel, per range of slots.

The cursor row is the only lock. Every change of a slot range of a group locks the row of the
range until commit; `generation` rises when a range is moved or reshaped from outside, and
an advance that knows an older one is refused.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from django.db import connections, transaction

from .. import message_log
from ..exceptions import StaleClaim
from ..groups import ConsumerGroup
from ..messages import Message
from ..sql import array, one_row, run_statement
from .idle_ranges import IdleRanges

SLOTS = 32768
IDLE_GAP = 10_000
"""Positions a range without messages may lag behind before it is moved to the horizon."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A locked cursor row, as it was when it was locked."""

    id: int
    group: str
    channel: str
    slot_from: int
    slot_to: int
    position: int
    generation: int
    lease_token: int
    leased_by: str
    """The process that leased the range last."""
    transaction: str | None
    """The id of the transaction that locked the row; None where the lease is the proof."""
    max_position: int
    parked: int
    """How many messages of the range are parked; 0 saves the look for their keys."""
    attempts: int
    failed_position: int | None
    """The message that `attempts` and `failing_seconds` are about."""
    rate: float
    """Messages per second, averaged over the last half minute or so."""
    idle_seconds: float
    """Since its last commit."""
    failing_seconds: float | None
    """Since the first failure of the failed message; None when none has failed."""
    limit: int
    """Up to which position this batch may move the range, at most the horizon."""

    @property
    def slots(self) -> tuple[int, int]:
        """First and last slot, both inclusive."""
        return self.slot_from, self.slot_to

    def message(self, row: message_log.Row) -> Message:
        """Return a row of the range as its handler sees it."""
        position, key, type_name, payload, headers, created_at = row
        return Message(
            position,
            self.channel,
            key,
            type_name,
            self.attempts + 1 if position == self.failed_position else 1,
            position <= self.max_position,
            self.group,
            payload,
            headers,
            created_at,
        )

    def continues(self, other: Claim) -> bool:
        """Return whether the range is unchanged since another claim of it."""
        return _state(self) == _state(other)

    def attempts_at(self, position: int) -> int:
        """Return how many recorded attempts at a position have failed."""
        return self.attempts if position == self.failed_position else 0

    def failing_seconds_at(self, position: int) -> float:
        """Return the seconds since the first failed attempt of a message; 0 when there is none."""
        return (self.failing_seconds or 0.0) if position == self.failed_position else 0.0


_state = operator.attrgetter("generation", "lease_token", "position", "attempts", "parked")
decode_claim = msgspec.json.Decoder(Claim).decode


def register(groups: Iterable[ConsumerGroup], using: str, *, log_was_emptied: bool = False) -> None:
    """Create the cursors of groups that have none yet in one of their channels.

    A group that starts at "latest" begins at the horizon, so that a message whose
    transaction is still open is not lost to it. `log_was_emptied`: the groups had cursors and lost
    them with the log, so all messages that are there are new to them.
    """
    for group in groups:
        is_latest = group.start == "latest" and not log_was_emptied
        position = message_log.horizon(using, group.channels) if is_latest else 0
        for channel in group.channels:
            _register_channel(group, channel, position, using)


def _register_channel(group: ConsumerGroup, channel: str, position: int, using: str) -> None:
    bounds = slot_ranges(group.parallelism)
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        run_statement(cursor, "hold_off_removal")
        run_statement(cursor, "lock_group_shape", {"group": group.name, "channel": channel})
        run_statement(
            cursor,
            "create_cursors",
            {
                "group": group.name,
                "channel": channel,
                "position": position,
                "slots_from": [first for first, _ in bounds],
                "slots_to": [last for _, last in bounds],
            },
        )


def slot_ranges(count: int) -> list[tuple[int, int]]:
    """Return `count` neighbouring ranges that cover all slots, of nearly equal size."""
    edges = [SLOTS * index // count for index in range(count + 1)]
    return [(edges[index], edges[index + 1] - 1) for index in range(count)]


def lock(cursor_id: int, using: str, wait: float | None = None) -> tuple[Claim, str | None] | None:
    """Lock a cursor row until commit; return it and the holder of its lease, None if it is gone.

    Must run inside a transaction; waits for the batch that holds the row, at most `wait` seconds
    when given (then DatabaseError, SQLSTATE 55P03).
    """
    with connections[using].cursor() as cursor:
        if wait is not None:
            run_statement(cursor, "wait_for_lock", {"wait": str(int(wait * 1000))})
        run_statement(cursor, "lock_cursor", {"id": cursor_id})
        row = cursor.fetchone()
    if row is None:
        return None
    locked = _locked(row[0], row[1])
    return locked, locked.leased_by if row[2] else None


def _locked(transaction: str, image: str) -> Claim:
    return dataclasses.replace(decode_claim(image), transaction=transaction)


def lock_unchanged(claim: Claim, using: str, wait: float | None = None) -> Claim | None:
    """Lock the row of an earlier claim again; None when anything has happened to it since.

    Called before every write to a cursor row whose lock was not held since the row was read.
    """
    locked, _ = lock(claim.id, using, wait) or (None, None)
    return locked if locked is not None and locked.continues(claim) else None


def lock_slot(group: str, channel: str, slot: int, using: str) -> Claim | None:
    """Lock the cursor row that covers a slot until commit; None when it was reshaped meanwhile."""
    parameters = {"group": group, "channel": channel, "slot": slot}
    row = one_row("lock_slot", using, **parameters)
    return None if row is None else _locked(*row)


def holds(claim: Claim, using: str) -> tuple[bool, bool]:
    """Return whether this is the claim's transaction, and whether its row is unchanged."""
    parameters: dict[str, Any] = {
        "id": claim.id,
        "generation": claim.generation,
        "lease_token": claim.lease_token,
        "position": claim.position,
        "transaction": claim.transaction,
    }
    is_same, is_unchanged = one_row("see_claim", using, **parameters) or (False, False)
    return bool(is_same), bool(is_unchanged)


def holder(pid: int | None = None) -> str:
    """Return the name under which a process of this machine holds leases; this one by default."""
    return f"{socket.gethostname()}:{os.getpid() if pid is None else pid}"


def session_name(groups: Iterable[str]) -> str:
    """Return which groups and which process, in the 63 bytes that the server keeps."""
    host, _, pid = holder().rpartition(":")
    who = f" {host[:24]}:{pid}"
    names = "outbox:" + ",".join(groups)
    room = 63 - len(who.encode())
    if len(names.encode()) > room:
        names = names.encode()[: room - 3].decode(errors="ignore") + "..."
    return names + who


def lease(claim: Claim, seconds: float, using: str) -> Claim:
    """Lease a claimed range, so that it stays claimed after the commit; return the new claim."""
    parameters: dict[str, Any] = {"id": claim.id, "lease": seconds, "holder": holder()}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "take_lease", parameters)
        token = int(cursor.fetchone()[0])
    return dataclasses.replace(claim, lease_token=token, transaction=None)


def renew(claim: Claim, seconds: float | None, using: str) -> None:
    """Extend the lease of a range to `seconds` from now; None ends it.

    Raises StaleClaim when the lease ended or another process took it.
    """
    parameters: dict[str, Any] = {
        "id": claim.id,
        "generation": claim.generation,
        "lease_token": claim.lease_token,
        "lease": seconds,
    }
    with connections[using].cursor() as cursor:
        run_statement(cursor, "renew_lease", parameters)
        if cursor.rowcount != 1:
            raise StaleClaim(cursor=claim.id)


def advance_idle(idle: IdleRanges, using: str) -> int:
    """Move ranges that are known to be idle to their horizons, and return how many moved.

    Only those that lag by more than `IDLE_GAP` positions: it keeps the search for pending
    messages short without a write per message.
    """
    parameters: dict[str, Any] = {"log": idle.log, "idle_gap": IDLE_GAP, **idle.parameters()}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "settle_cursors", parameters)
        return int(cursor.rowcount)


def next_look(
    groups: Sequence[ConsumerGroup], state: message_log.LogState, idle: IdleRanges, using: str
) -> tuple[float | None, bool, bool]:
    """Return when to look again, after nothing could be claimed up to the horizons of `state`.

    The seconds until the earliest retry, resume or lease end, None when none is due; whether
    another session holds a range that is none of the `idle` ones, and so may have messages; and
    whether cursors of the groups are missing, as after a DELETE by hand.
    """
    parameters: dict[str, Any] = {**pairs(places(groups), state), **idle.parameters()}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "next_look", parameters)
        seconds, is_locked, is_missing = cursor.fetchone()
    return None if seconds is None else max(0.0, float(seconds)), is_locked, is_missing


def places(groups: Iterable[ConsumerGroup]) -> list[tuple[str, str]]:
    """Return each group with each of its channels."""
    return [(group.name, channel) for group in groups for channel in group.channels]


def pairs(known: Iterable[tuple[str, str]], state: message_log.LogState) -> dict[str, Any]:
    """Return groups with their channels for the statements, and the horizon of each channel."""
    known = list(known)
    return {
        "groups": array(name for name, _ in known),
        "channels": array(channel for _, channel in known),
        "horizons": array(state.horizons.get(channel, 0) for _, channel in known),
    }
