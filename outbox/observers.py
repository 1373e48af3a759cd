"""Observers: functions that are called around publishing and handling, for numbers and traces.

The lists are empty unless `monitoring` fills them; an empty list costs next to nothing.

An observer never fails what it observes: an exception of its own is logged, the first time of each
observer and class of exception, and the call that it stands around is made without it, or has been
made and keeps its result. What the observed call raises reaches the caller.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger("outbox.monitoring")

Store = Callable[[Sequence[Any]], list[int]]
"""Stores drafts of messages and returns their positions."""

around_publish: list[Callable[[Store, Sequence[Any]], list[int]]] = []
"""`(store, drafts)`: must return what `store` returns; may give it drafts with more headers."""

around_handling: list[Callable[[Callable[[], Any], str, Sequence[Any]], Any]] = []
"""`(run, group, messages)`: around the handlers of a part of a batch; must return what `run` does,
`Done` or `Failed`."""

around_call: list[Callable[[Callable[..., Any], Any, Any], Any]] = []
"""`(handler, event, message)`: around each call of a handler; lists for a batch handler. Must
return what the handler returns."""

after_calls: list[Callable[[str, Sequence[Any], Sequence[float]], object]] = []
"""`(group, routes, seconds)`: the calls of a part of a batch that have ended."""

after_batch: list[Callable[[str, str, int, float], object]] = []
"""`(group, channel, moved, seconds)`: a batch is done; `moved`: messages moved past."""

trace_headers: list[Callable[[], Mapping[str, str]]] = []
"""What to add to the values of `outbox.context()`; called once per transaction."""


_reported: set[tuple[str, type[Exception]]] = set()
"""Which failures of observers were logged in this process."""


def publish(drafts: Sequence[Any], store: Store) -> list[int]:
    """Store drafts, within the observers of publishing."""
    for around in around_publish:
        store = functools.partial(_observed, around, store, ())
    return store(drafts)


def handle(run: Callable[[], Any], group: str, messages: Sequence[Any]) -> Any:
    """Run the handlers of a part of a batch, within the observers of handling."""
    for around in around_handling:
        run = functools.partial(_observed, around, run, (group, messages))
    return run()


def call(handler: Callable[..., Any], event: Any, message: Any) -> Any:
    """Call a handler, within the observers of calls."""
    for around in around_call:
        handler = functools.partial(_observed, around, handler, ())
    return handler(event, message)


def notify(observed: Iterable[Callable[..., object]], *facts: Any) -> None:
    """Call the observers of a list that are called afterwards."""
    for after in observed:
        try:
            after(*facts)
        except Exception as error:
            report(after, error)


def headers_of_trace() -> dict[str, str]:
    """Return what the observers add to the values of `outbox.context()`."""
    found: dict[str, str] = {}
    for each in trace_headers:
        try:
            found |= each()
        except Exception as error:
            report(each, error)
    return found


def report(observer: Callable[..., object], error: Exception) -> None:
    """Log the failure of an observer, with its traceback, the first time of its kind."""
    name = f"{observer.__module__}.{getattr(observer, '__qualname__', repr(observer))}"
    if (name, type(error)) not in _reported:
        _reported.add((name, type(error)))
        logger.error(
            "%s failed; what it observes goes on, and later failures of this kind are not logged",
            name,
            exc_info=error,
        )


def _observed(
    around: Callable[..., object], inner: Callable[..., Any], facts: tuple[Any, ...], *given: Any
) -> Any:
    """Call `inner` within an observer; whatever that does, the outcome is the one of `inner`."""
    outcome: list[Any] = []
    failure: BaseException | None = None

    def run(*changed: Any) -> Any:
        nonlocal failure
        try:
            outcome.append(inner(*changed))
        except BaseException as error:
            failure = error
            raise
        return outcome[0]

    try:
        around(run, *facts, *given)
    except Exception as error:
        if error is not failure:
            report(around, error)
    try:
        if failure is not None:
            raise failure
        return outcome[0] if outcome else inner(*given)
    finally:
        failure = None  # it refers to this frame
