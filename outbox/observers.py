"""Observers: functions that are called around publishing and handling, for numbers and traces.

The lists are empty unless `monitoring` fills them; an empty list costs next to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def publish(drafts: Sequence[Any], store: Store) -> list[int]:
    """Store drafts, within the observers of publishing."""
    for around in around_publish:
        store = functools.partial(around, store)
    return store(drafts)


def handle(run: Callable[[], Any], group: str, messages: Sequence[Any]) -> Any:
    """Run the handlers of a part of a batch, within the observers of handling."""
    for around in around_handling:
        run = functools.partial(around, run, group, messages)
    return run()


def call(handler: Callable[..., Any], event: Any, message: Any) -> Any:
    """Call a handler, within the observers of calls."""
    for around in around_call:
        handler = functools.partial(around, handler)
    return handler(event, message)
