"""Values that travel as headers with every message of a transaction, captured or published.

They are a transaction-local setting of the session, so they end with the transaction, revert
with a savepoint, and cannot reach another request however the connection is shared. Around
transactions that have not begun they wait in a context variable, which asyncio and `sync_to_async`
hand on; a wrapper of every connection sets them before the first write.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.db import connections, router, transaction

from . import database, observers
from .conf import log_alias
from .encoding import encode
from .exceptions import InvalidContext
from .messages import RESERVED_HEADERS, VERSION_HEADER
from .sql import run_statement

_LEAD = r"(?:\s|\(|/\*.*?\*/|--[^\n]*\n)*"
WRITE = re.compile(
    rf"{_LEAD}(?:INSERT|UPDATE|DELETE|MERGE|COPY|WITH"
    r"|SELECT\b[\w\s,]{0,40}\boutbox_(?:publish|append)\w+)\b",
    re.I | re.S,
)
ROLLBACK = re.compile(rf"{_LEAD}ROLLBACK\b", re.I | re.S)
Function = TypeVar("Function", bound=Callable[..., Any])


def context(*, using: str | None = None, **values: Any) -> Block:
    """Attach values, as headers, to every message of the transactions within the block.

    Use it with `with` or `async with`, or as a decorator of a function or coroutine function.

    `values`: JSON values, or functions without arguments that return one, called when a
    transaction writes. Inner blocks add to outer ones. A message's own headers win.
    `using`: the database alias; by default every alias on which the router allows the outbox.

    Within `atomic()` the values hold for the statements of the block, until then as before.
    Around it they hold for all its writes; a statement that writes in autocommit mode then gets
    a transaction of its own. In a transaction that is broken nothing happens.

    Raises InvalidContext for the names "version", "stream_version" and "outbox.erased",
    UnencodableValue and NulCharacter.
    """
    for name in (RESERVED_HEADERS | {VERSION_HEADER}).intersection(values):
        raise InvalidContext(name=name)
    encode({k: v for k, v in values.items() if not callable(v)}, "context")
    return Block(log_alias(using) if using is not None else None, values)


class Block:
    """The values of one `context()`; they hold from enter to exit."""

    def __init__(self, using: str | None, values: Mapping[str, Any]) -> None:
        self.using = using
        self.values = values

    def __enter__(self) -> None:
        if self.using is not None:
            _injector_of(transaction.get_connection(self.using))
        _blocks.set((*_blocks.get(), self))
        for injector in _injectors():
            if not any(map(callable, self.values.values())):
                injector.apply_if_open()

    def __exit__(self, *error: object) -> None:
        # No token of contextvars: a generator may be closed in another context than it began in.
        blocks = list(_blocks.get())
        if self in blocks:
            blocks.reverse()
            blocks.remove(self)
            blocks.reverse()
        _blocks.set(tuple(blocks))
        for injector in _injectors():
            injector.apply_if_written()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()

    def __call__(self, function: Function) -> Function:
        """Return a function that runs within the block."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"outbox.context() cannot decorate {function!r}: a generator runs after the block "
                "has ended; use the block inside it, around each step that writes."
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return wrapped_coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


_blocks: contextvars.ContextVar[tuple[Block, ...]] = contextvars.ContextVar(
    "outbox.context", default=()
)
"""The open blocks of this thread, task or request, the outermost first."""


class ContextInjector:
    """Sets the values of the open blocks on one connection: an execute wrapper of it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.applied: str | None = ""
        """What the open transaction has, "" for nothing; None when a rollback left it unknown."""
        self.is_resolving = False
        self.trace: dict[str, str] | None = None
        """Headers of the trace of the open transaction; None before they are asked for."""

    def apply_if_open(self) -> None:
        """Apply the values at once inside a transaction, also one without a statement so far."""
        if self.connection.connection is not None and not self._is_alone():
            self._see_new_transaction()
            self.apply()

    def apply_if_written(self) -> None:
        """Apply what holds now inside a transaction that has a statement, unless it is broken."""
        if self._status() == database.IN_TRANSACTION:
            self.apply()

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Run a statement of the connection; apply the values first when it may write."""
        if self.is_resolving or (self.applied == "" and not _blocks.get()):
            return execute(sql, params, many, context)
        text = sql if isinstance(sql, str) else ""
        self._see_new_transaction()
        if WRITE.match(text):
            if self._is_alone() and self._open_blocks():
                with transaction.atomic(using=self.connection.alias):
                    self.apply()
                    return execute(sql, params, many, context)
            self.apply()
        elif ROLLBACK.match(text):
            self.applied = None
        return execute(sql, params, many, context)

    def apply(self) -> None:
        """Set the values of the open blocks for this transaction, unless an error has ended it."""
        if self.connection.needs_rollback or self._status() == database.IN_ERROR:
            self.applied = None
            return
        wanted = self._resolved()
        if wanted != self.applied:
            # The driver's own cursor, so that this statement does not count as the project's.
            with self.connection.wrap_database_errors, self.connection.connection.cursor() as raw:
                run_statement(raw, "set_context", {"context": wanted})
            self.applied = wanted

    def _resolved(self) -> str:
        blocks = self._open_blocks()
        if blocks and self.trace is None:
            self.trace = observers.headers_of_trace()
        merged: dict[str, Any] = dict(self.trace or {})
        self.is_resolving = True
        try:
            for block in blocks:
                merged |= {k: v() if callable(v) else v for k, v in block.values.items()}
        finally:
            self.is_resolving = False
        return encode(merged, "context") if blocks else ""

    def _open_blocks(self) -> list[Block]:
        alias = self.connection.alias
        return [block for block in _blocks.get() if block.using in (None, alias)]

    def _is_alone(self) -> bool:
        """Return whether the next statement will be a transaction of its own."""
        return self.connection.autocommit and self._status() == database.IDLE

    def _see_new_transaction(self) -> None:
        if self._status() == database.IDLE:
            self.applied, self.trace = "", None

    def _status(self) -> int:
        raw = self.connection.connection
        return database.IDLE if raw is None else database.status_reader(raw)()


def watch(*, connection: Any, **kwargs: Any) -> None:
    """Add the wrapper to a connection that was opened; see Django's connection_created."""
    if connection.vendor == "postgresql" and router.allow_migrate(connection.alias, "outbox"):
        _injector_of(connection)


def _injectors() -> list[ContextInjector]:
    """Return the wrappers of this thread's connections."""
    return [
        wrapper
        for connection in connections.all(initialized_only=True)
        for wrapper in connection.execute_wrappers
        if isinstance(wrapper, ContextInjector)
    ]


def _injector_of(connection: Any) -> ContextInjector:
    """Return the wrapper of a connection, a new one where there is none."""
    for wrapper in connection.execute_wrappers:
        if isinstance(wrapper, ContextInjector):
            return wrapper
    injector = ContextInjector(connection)
    # Insert at index 0: execute_wrapper() removes the last wrapper of the list, whoever added it.
    connection.execute_wrappers.insert(0, injector)
    return injector
