"""Guards: a transaction conflicts at its end if streams that it read were changed since."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from django.db import OperationalError

from .. import database, message_log
from ..conf import log_alias
from ..encoding import Key
from ..exceptions import InvalidStream, StreamConflict
from ..publisher import writable_alias
from ..sql import one_row, scalar
from .stream import stream

Name = tuple[str, str]
"""A channel and a key."""


@contextlib.contextmanager
def guard(*streams: tuple[str, Key], using: str | None = None) -> Iterator[Mapping[Name, int]]:
    """Raise StreamConflict at the end of the block if one of the streams was changed meanwhile.

    `streams`: pairs of channel and key. Gives the version of each. What the block itself appends
    does not count. The streams are locked at the end, in one order, until commit; a deadlock with
    another guard is a StreamConflict as well. Raises TransactionRequired outside `atomic()`.
    """
    alias = writable_alias(using)
    if not streams:
        raise InvalidStream("guard() names no stream: give pairs of channel and key.")
    for each in streams:
        if not isinstance(each, tuple | list) or len(each) != 2:
            raise InvalidStream(f"guard({each!r}): give pairs, as in guard(('accounts', '17')).")
    found = [stream(channel, key, using=log_alias(alias)) for channel, key in streams]
    looks = {
        (each.channel, each.key): one_row("guard_stream", alias, channel=each.channel, key=each.key)
        or (0, 0)
        for each in found
    }
    seen = {name: version - own for name, (version, own) in looks.items()}
    guards = message_log.open_guards(alias)
    guards.append(seen)
    try:
        yield {name: version for name, (version, _) in looks.items()}
    finally:
        guards.pop()
    for channel, key in sorted(seen):
        _check(channel, key, seen[channel, key], alias)


def _check(channel: str, key: str, expected: int, using: str) -> None:
    conflict: dict[str, Any] = {"channel": channel, "key": key, "expected": expected}
    try:
        actual = scalar("lock_stream", using, channel=channel, key=key, for_write=False)
    except OperationalError as error:
        if database.is_conflict(error):
            raise StreamConflict(**conflict, actual=None) from error
        raise
    if actual != expected:
        raise StreamConflict(**conflict, actual=actual)
