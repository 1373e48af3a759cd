"""The log: append messages, read the horizon, read a range of one channel.

The horizon is read first, in a statement of its own and outside the transaction that reads
the rows; the rows are read under a newer snapshot. Reading both at once could skip messages
of a transaction that commits in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import IntegrityError, OperationalError, connections

from . import database, observers, payloads, positions
from .encoding import encode
from .exceptions import OutboxError, PayloadTooLarge, PositionTaken, StreamConflict
from .messages import Draft
from .sql import array, run_statement

MOST_BYTES = 2**28 - 1
"""Of a payload: what a cast to jsonb takes, which a query of the project may make."""
MOST_BYTES_OF_BATCH = 10**9
"""Of a parameter of a statement, and a little less."""

Row = tuple[int, str | None, str, str, str, str]
"""Position, key, type, and payload, headers and time of publication as text."""


class LogState(NamedTuple):
    """The log at one moment."""

    log: str
    """Which log it is: another text after TRUNCATE, and on another server."""
    last_position: int
    """The highest position allocated so far."""
    horizons: Mapping[str, int]
    """Of some channels: the highest position at or below which nothing can appear any more."""

    @property
    def is_held(self) -> bool:
        """Whether a publisher in flight holds back one of the channels."""
        return min(self.horizons.values(), default=self.last_position) < self.last_position


NOTHING_KNOWN = LogState("", 0, {})


def append(draft: Draft, using: str) -> int:
    """Store one message in the current transaction and return its position."""
    return observers.publish([draft], lambda drafts: [_append(drafts[0], using)])[0]


def _append(draft: Draft, using: str) -> int:
    with connections[using].cursor() as cursor, _explained():
        run_statement(cursor, "append_message", _columns(draft))
        return int(cursor.fetchone()[0])


def append_to_stream(draft: Draft, expected: int | None, using: str) -> int:
    """Append one message to the stream of its key; return its position.

    `expected`: the version at which the stream must stand, None for any. Waits for other writers of
    the stream. Raises StreamConflict; then nothing is stored, and the transaction can go on unless
    the conflict was a deadlock.
    """
    return observers.publish(
        [draft], lambda drafts: [_append_to_stream(drafts[0], expected, using)]
    )[0]


def _append_to_stream(draft: Draft, expected: int | None, using: str) -> int:
    parameters = {
        **_columns(draft),
        "expected": expected,
        "guarded": guarded_version(draft.channel, draft.key, using),
    }
    conflict: dict[str, Any] = {"channel": draft.channel, "key": draft.key, "expected": expected}
    try:
        with connections[using].cursor() as cursor, _explained():
            run_statement(cursor, "append_to_stream", parameters)
            position, version = cursor.fetchone()[0]
    except OperationalError as error:
        if database.is_conflict(error):
            raise StreamConflict(**conflict, actual=None) from error
        raise
    if position is None:
        raise StreamConflict(**conflict, actual=version)
    return int(position)


def open_guards(using: str) -> list[dict[tuple[str, str], int]]:
    """Return what the open guards of a connection have seen, the innermost last."""
    connection: Any = connections[using]
    guards: list[dict[tuple[str, str], int]] = connection.__dict__.setdefault("outbox_guards", [])
    return guards


def guarded_version(channel: str, key: str | None, using: str) -> int | None:
    """Return the version at which a guard saw a stream, None for one that is not guarded."""
    for seen in reversed(open_guards(using)):
        if (channel, key) in seen:
            return seen[channel, str(key)]
    return None


def append_many(drafts: Sequence[Draft], using: str) -> list[int]:
    """Store messages with one statement and return their positions, in the given order."""
    if not drafts:
        return []
    return observers.publish(drafts, lambda final: _append_many(final, using))


def _append_many(drafts: Sequence[Draft], using: str) -> list[int]:
    parameters = {
        "messages": _encode_batch(drafts),
        "channels": array({draft.channel for draft in drafts}),
    }
    with connections[using].cursor() as cursor, _explained():
        run_statement(cursor, "append_messages", parameters)
        return [position for (position,) in cursor.fetchall()]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say why a position is taken: the sequence is behind the log."""
    try:
        yield
    except IntegrityError as error:
        diagnosis = getattr(error.__cause__, "diag", None)
        table = getattr(diagnosis, "table_name", None) or ""
        if getattr(diagnosis, "sqlstate", None) != "23505" or not table.startswith(
            "outbox_message"
        ):
            raise
        raise PositionTaken(fix=positions.MEND) from error


def horizon(
    using: str, channels: Iterable[str] | None = None, *, count_own_floor: bool = True
) -> int:
    """Return the highest position at or below which nothing can appear any more.

    `channels`: in these channels, whose publishers alone hold it back, beside those that name no
    channel; None: in any channel. `count_own_floor=False` leaves out the floor of this very
    session: for tests that publish and consume within one transaction, which sees its own rows.
    """
    if channels is None:
        return int(_scalar("read_horizon" if count_own_floor else "read_horizon_within", using))
    parameters = {"channels": array(channels), "without_own": not count_own_floor}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "read_horizon_of", parameters)
        return int(cursor.fetchone()[0])


def last_position(using: str) -> int:
    """Return the highest position allocated so far, 0 when none was."""
    return int(_scalar("read_last_position", using))


def read(
    using: str, channel: str, *, after: int, until: int, slots: tuple[int, int], most: int
) -> list[Row]:
    """Return the next messages of a range of slots, in position order.

    `after` is exclusive, `until` inclusive and never above a horizon that was read before.
    """
    parameters: dict[str, Any] = {
        "channel": channel,
        "after": after,
        "until": until,
        "slot_from": slots[0],
        "slot_to": slots[1],
        "most": most,
    }
    with connections[using].cursor() as cursor:
        run_statement(cursor, "read_messages", parameters)
        rows: list[Row] = cursor.fetchall()
    return rows


def _columns(draft: Draft) -> dict[str, Any]:
    return {
        "channel": draft.channel,
        "key": draft.key,
        "type": draft.type,
        "payload": _encode_payload(draft),
        "headers": encode(draft.headers, "headers") if draft.headers else "{}",
    }


def _encode_payload(draft: Draft) -> str:
    text = payloads.payload_text(draft.payload, draft.type)
    # A character takes at most 4 bytes, so the number of characters nearly always decides.
    if len(text) > MOST_BYTES // 4 and (size := len(text.encode())) > MOST_BYTES:
        raise PayloadTooLarge(name=draft.type, reason=f"it is {size // 10**6} MB of JSON")
    return text


def _encode_batch(drafts: Sequence[Draft]) -> str:
    text = encode(drafts, "batch", _free_parts(drafts))
    if len(text) > MOST_BYTES // 4 or not payloads.are_decodable(drafts, text):
        for index, draft in enumerate(drafts):
            try:
                _encode_payload(draft)
            except OutboxError as error:
                error.add_note(f"It is about batch[{index}].")
                raise
        if (size := len(text.encode())) > MOST_BYTES_OF_BATCH:
            raise PayloadTooLarge(
                f"The batch is {size // 10**6} MB of JSON, and a statement takes at most "
                f"{MOST_BYTES_OF_BATCH // 10**6} MB: publish it in several calls."
            )
    return text


def _free_parts(drafts: Sequence[Draft]) -> list[Any]:
    return [part for draft in drafts for part in (draft.payload, draft.headers)]


def _scalar(name: str, using: str) -> Any:
    with connections[using].cursor() as cursor:
        run_statement(cursor, name)
        return cursor.fetchone()[0]
