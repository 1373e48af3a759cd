"""Routes: how one type of message is handled, and what can be a handler."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from asgiref.sync import AsyncToSync

from . import events, messages
from .exceptions import InvalidGroup


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """How one type of message is handled."""

    type: str
    event_type: events.EventType | None
    handler: Callable[..., Any]
    is_batch: bool
    timeout: float | None
    most_together: int | None = None
    """With "at_least_once" the most messages for one call of a batch handler; None: no limit."""
    event_of: Callable[[messages.Message], Any] = dataclasses.field(init=False)
    """Returns what the handler takes as the event of a message; raises UndecodableMessage."""

    def __post_init__(self) -> None:
        reader = _payload_of if self.event_type is None else messages.reader(self.event_type)
        object.__setattr__(self, "event_of", reader)


def _payload_of(message: messages.Message) -> Any:
    return message.payload


def check_handler(handler: Callable[..., Any], is_batch: bool, group: str) -> None:
    """Raise InvalidGroup for what cannot be a handler of group `group`."""
    # Look behind decorators: one around a coroutine function does not run the coroutine.
    function = inspect.unwrap(handler, stop=lambda each: isinstance(each, AsyncToSync))
    is_lazy = any(
        kind(each)
        for each in (handler, function, getattr(function, "__call__", None))  # noqa: B004
        for kind in (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        )
    )
    if is_lazy or not callable(handler):
        raise InvalidGroup(
            f"Group {group!r}: {_described(handler)} would not run when it is called: a handler is "
            "a plain function; make one of a coroutine with asgiref.sync.async_to_sync."
        )
    arguments = "events, messages" if is_batch else "event, message"
    if not _takes_two_arguments(handler):
        raise InvalidGroup(
            f"Group {group!r}: {signature_of(handler)} cannot be called with ({arguments}): "
            f"declare it as {_name(handler)}({arguments})."
        )


def _described(handler: Any) -> str:
    return signature_of(handler) if inspect.isroutine(handler) else repr(handler)


def _takes_two_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def signature_of(function: Callable[..., Any]) -> str:
    """Return the declaration of a function, with the module that holds it."""
    try:
        signature = str(inspect.signature(function))
    except ValueError:
        signature = "(…)"
    return f"{path_of(function)}{signature}"


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def origin_of(function: Callable[..., Any]) -> str:
    """Return the path of a function, with the line of its declaration where it has one."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{path_of(function)} (line {code.co_firstlineno})" if code else path_of(function)


def path_of(function: Callable[..., Any]) -> str:
    """Return the module and the name of a function."""
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
