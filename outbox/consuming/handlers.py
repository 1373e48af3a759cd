"""Handlers: calls them for messages in order; the result is a value, `Done` or `Failed`.

Everything is decoded before the first call: that is faster than in turns, and a message that does
not decode costs no call that would have to be undone.
"""

from __future__ import annotations

import bisect
import dataclasses
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import observers
from ..exceptions import FailedAt, NotAwaited
from ..groups import ConsumerGroup
from ..messages import Message
from ..routes import Route
from . import known_types
from .in_flight import Record

AfterCall = Callable[[int, float], None]
"""Called after each handler, with the position of its first message and the seconds that it took.

What it raises is the failure of these messages.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The first `count` messages are handled; `skipped` of them have no handler."""

    count: int
    skipped: int


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The handling of messages[start:stop] failed with `cause`; no later message was tried."""

    start: int
    stop: int
    cause: BaseException
    skipped: int = 0
    """How many of the messages before `start` have no handler."""

    def moved(self, by: int) -> Failed:
        """Return the same, of a list with `by` more messages in front."""
        return dataclasses.replace(self, start=self.start + by, stop=self.stop + by)


_Call = tuple[int, int, int, Route, Any, Any]
"""messages[start:stop], the position of the first, its route, and the handler's two arguments.

A plain tuple: one is made for every message.
"""


def run(
    group: ConsumerGroup,
    messages: Sequence[Message],
    after_call: AfterCall,
    record: Record,
    *,
    deadline: float = float("inf"),
    most_together: int | None = None,
) -> Done | Failed:
    """Call the handlers of a group for messages of one channel, in order.

    Ends after the call during which `deadline` passes, by `time.monotonic()`. `record`: see
    `in_flight.recorder`. `most_together`: the most messages for one call of a batch handler.
    """
    calls: list[_Call] = []
    skipped: list[int] = []
    failed = _prepare(group, messages, most_together or len(messages), calls, skipped)
    if failed is not None:
        return failed

    def run_calls() -> Done | Failed:
        seconds: list[float] | None = [] if observers.after_calls else None
        try:
            return _call_handlers(calls, skipped, messages, after_call, record, deadline, seconds)
        finally:
            if seconds:
                routes = [call[3] for call in calls[: len(seconds)]]
                observers.notify(observers.after_calls, group.name, routes, seconds)

    result: Done | Failed = observers.handle(run_calls, group.name, messages)
    return result


def _call_handlers(
    calls: Sequence[_Call],
    skipped: Sequence[int],
    messages: Sequence[Message],
    after_call: AfterCall,
    record: Record,
    deadline: float,
    seconds: list[float] | None,
) -> Done | Failed:
    """Call the handlers in order; `seconds`: takes what each call took, None when nothing asks."""
    call = observers.call if observers.around_call else None
    now = time.monotonic()
    for start, stop, position, route, event, message in calls:
        before = now
        try:
            record(position, route.timeout)
            result = call(route.handler, event, message) if call else route.handler(event, message)
            if result is not None:
                _refuse_awaitable(result)
            now = time.monotonic()
            if seconds is not None:
                seconds.append(now - before)
            after_call(position, now - before)
        except KeyboardInterrupt:
            raise  # ends the worker; anything else that a handler raises is its failure
        except BaseException as error:
            if seconds is not None and now == before:
                seconds.append(time.monotonic() - before)
            record(0, None)
            return _failed(messages, start, stop, error, bisect.bisect_left(skipped, start))
        if now >= deadline and stop < len(messages):
            record(0, None)
            return Done(stop, bisect.bisect_left(skipped, stop))
    record(0, None)
    return Done(len(messages), len(skipped))


def _prepare(
    group: ConsumerGroup,
    messages: Sequence[Message],
    most_together: int,
    calls: list[_Call],
    skipped: list[int],
) -> Failed | None:
    """Decode the messages into calls; return which one cannot be handled, if any."""
    routes = group.routes(messages[0].channel) if messages else {}
    for index, message in enumerate(messages):
        route = routes.get(message.type)
        if route is None:
            if not known_types.may_skip(group, message.channel, message.type):
                return Failed(index, index + 1, known_types.error(group, message))
            skipped.append(index)
            continue
        try:
            event = route.event_of(message)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # upgrade() and __post_init__() are the project's code, too
            return Failed(index, index + 1, error)
        if not route.is_batch:
            calls.append((index, index + 1, message.position, route, event, message))
            continue
        if calls and calls[-1][3] is route and len(calls[-1][4]) < most_together:
            start, _, position, _, events, together = calls[-1]
            events.append(event)
            together.append(message)
            calls[-1] = (start, index + 1, position, route, events, together)
        else:
            calls.append((index, index + 1, message.position, route, [event], [message]))
    return None


def _failed(
    messages: Sequence[Message], start: int, stop: int, error: BaseException, skipped: int
) -> Failed:
    """Return which messages of a call failed; FailedAt names one of them."""
    if isinstance(error, FailedAt):
        for index in range(start, stop):
            if messages[index].position == error.message.position:
                return Failed(index, index + 1, error, skipped)
    return Failed(start, stop, error, skipped)


def _refuse_awaitable(result: Any) -> None:
    """Raise NotAwaited for what a coroutine function returns: nothing of it has run."""
    if inspect.isawaitable(result) or inspect.isgenerator(result):
        if hasattr(result, "close"):
            result.close()
        raise NotAwaited(kind=type(result).__name__)
