"""Values that travel as headers with every message of a transaction, captured or published.

They are a transaction-local setting of the session, so they end with the transaction, revert
with a savepoint, and cannot reach another request however the connection is shared. Around
transactions that have not begun, they wait in Python and are set before the first write.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.db import transaction

from . import database, events
from .conf import log_alias
from .encoding import encode
from .exceptions import InvalidContext
from .sql import run_statement

_LEAD = r"(?:\s|\(|/\*.*?\*/|--[^\n]*\n)*"
WRITE = re.compile(rf"{_LEAD}(?:INSERT|UPDATE|DELETE|MERGE|COPY|WITH)\b", re.I | re.S)
ROLLBACK = re.compile(rf"{_LEAD}ROLLBACK\b", re.I | re.S)


@contextlib.contextmanager
def context(*, using: str | None = None, **values: Any) -> Iterator[None]:
    """Attach values, as headers, to every message of the transactions within the block.

    `values`: JSON values, or functions without arguments that return one, called when a
    transaction writes. Inner blocks add to outer ones. A message's own headers win.
    `using`: the database alias; by default the one the router writes messages to.

    Within `atomic()` the values hold for the statements of the block, until then as before.
    Around it they hold for all its writes; a statement that writes in autocommit mode then gets
    a transaction of its own. In a transaction that is broken nothing happens.

    Raises InvalidContext for the name "version", UnencodableValue and NulCharacter.
    """
    if events.VERSION_HEADER in values:
        raise InvalidContext(name=events.VERSION_HEADER)
    encode({k: v for k, v in values.items() if not callable(v)}, "context")
    alias = log_alias(using)
    carrier = _carrier_of(transaction.get_connection(alias))
    carrier.enter(values)
    try:
        if not any(map(callable, values.values())):
            carrier.apply_if_open()
        yield
    finally:
        carrier.leave()


class _Carrier:
    """Keeps the values of the open blocks applied on one connection: an execute wrapper of it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.blocks: list[Mapping[str, Any]] = []
        self.applied: str | None = ""
        """What the open transaction has, "" for nothing; None when a rollback left it unknown."""
        self.is_resolving = False

    def enter(self, values: Mapping[str, Any]) -> None:
        """Begin a block; the first one starts to watch the connection's statements."""
        if not self.blocks:
            # At index 0: execute_wrapper() takes away the last one, whosever it is.
            self.connection.execute_wrappers.insert(0, self)
        self.blocks.append(values)

    def leave(self) -> None:
        """End a block: what held before it holds again, unless the transaction is broken."""
        self.blocks.pop()
        if not self.blocks:
            self.connection.execute_wrappers.remove(self)
        if self._status() == database.IN_TRANSACTION:
            self.apply()

    def apply_if_open(self) -> None:
        """Apply the values at once inside a transaction, also one without a statement so far."""
        if self.connection.connection is not None and not self._is_alone():
            self._see_new_transaction()
            self.apply()

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Run a statement of the connection; apply the values first when it may write."""
        text = sql if isinstance(sql, str) else ""
        if self.is_resolving:
            return execute(sql, params, many, context)
        self._see_new_transaction()
        if WRITE.match(text):
            if self._is_alone():
                with transaction.atomic(using=self.connection.alias):
                    self.apply()
                    return execute(sql, params, many, context)
            self.apply()
        elif ROLLBACK.match(text):
            self.applied = None
        return execute(sql, params, many, context)

    def apply(self) -> None:
        """Make the values of the blocks those of the open transaction, if it is not broken."""
        if self.connection.needs_rollback or self._status() == database.IN_ERROR:
            self.applied = None
            return
        wanted = self._resolved()
        if wanted != self.applied:
            # The driver's own cursor: not a statement of the project, not to be watched.
            with self.connection.wrap_database_errors, self.connection.connection.cursor() as raw:
                run_statement(raw, "set_context", {"context": wanted})
            self.applied = wanted

    def _resolved(self) -> str:
        merged: dict[str, Any] = {}
        self.is_resolving = True
        try:
            for block in self.blocks:
                merged |= {k: v() if callable(v) else v for k, v in block.items()}
        finally:
            self.is_resolving = False
        return encode(merged, "context") if self.blocks else ""

    def _is_alone(self) -> bool:
        """Tell whether the next statement will be a transaction of its own."""
        return self.connection.autocommit and self._status() == database.IDLE

    def _see_new_transaction(self) -> None:
        if self._status() == database.IDLE:
            self.applied = ""

    def _status(self) -> int:
        raw = self.connection.connection
        return database.IDLE if raw is None else database.status_reader(raw)()


def _carrier_of(connection: Any) -> _Carrier:
    """Return the carrier of a connection, a new one when no block is open on it."""
    for wrapper in connection.execute_wrappers:
        if isinstance(wrapper, _Carrier):
            return wrapper
    return _Carrier(connection)
