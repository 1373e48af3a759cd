"""Consumer groups: their options, their handlers, and the registry of both.

A group is code; its progress is rows of `outbox_cursor`. Every group sees every message of
its channels, whatever other groups do.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from . import events
from .conf import is_number
from .encoding import is_storable
from .exceptions import DuplicateHandler, InvalidGroup, UnknownGroup
from .retry import Retry, default_retry
from .routes import Route, check_handler, origin_of, signature_of

Handler = TypeVar("Handler", bound=Callable[..., Any])
Start = Literal["earliest", "latest"]
OnFailure = Literal["park", "halt", "skip"]
OnUnknown = Literal["wait", "skip", "park"]
Delivery = Literal["exactly_once", "at_least_once"]
Target = tuple[str, str, events.EventType | None]
"""Channel, type name, and the class of the events."""

GROUP_LENGTH = 63
LONGEST_LEASE = 365 * 86400.0
"""Seconds."""
MOST_RANGES = 1024

_registry: dict[str, ConsumerGroup] = {}
_duplicates: list[tuple[ConsumerGroup, ConsumerGroup]] = []


class ConsumerGroup:
    """A named set of handlers that reads its channels at its own cursor.

    `name`: 1 to 63 characters; the identity of its progress in the database.
    `channels`: the channels it reads.
    `start`: where a new group begins: "earliest" retained message, or "latest" (only what is
    published from now on).
    `retry`: when failed messages are tried again; by default `Retry()`, with "at_least_once"
    `Retry(max_attempts=12)`.
    `on_failure`: what happens when tries are used up: "park" keeps the message aside and goes
    on, "halt" tries forever, "skip" counts and logs it.
    `on_unknown`: what happens at a message whose type this code does not know, because another
    release published it: "wait" tries again, without counting a failed attempt, until a release
    that knows the type has handled it; "skip" passes over it; "park" keeps it aside.
    `parallelism`: into how many slot ranges each channel is divided at the start; messages
    with the same key stay in order whatever the number.
    `delivery`: "exactly_once" for effects in this database; "at_least_once" runs handlers
    outside a transaction under a lease of `lease` seconds.
    `timeout`: seconds a handler may take per call before a supervisor ends its worker; None
    for no limit.
    `savepoint_per_message`: isolate each message in a savepoint instead of repeating the
    messages before one that fails; a batch handler then gets one message at a time.

    Raises InvalidGroup or InvalidChannel.
    """

    def __init__(
        self,
        name: str,
        channels: Sequence[str],
        *,
        start: Start = "earliest",
        retry: Retry | None = None,
        on_failure: OnFailure = "park",
        on_unknown: OnUnknown = "wait",
        parallelism: int = 1,
        delivery: Delivery = "exactly_once",
        lease: float = 30.0,
        timeout: float | None = None,
        savepoint_per_message: bool = False,
    ) -> None:
        self.name = name
        self.channels = _valid_channels(channels, f"Group {name!r}: ")
        self.start = start
        self.retry = default_retry(delivery) if retry is None else retry
        self.on_failure = on_failure
        self.on_unknown = on_unknown
        self.parallelism = parallelism
        self.delivery = delivery
        self.lease = lease
        self.timeout = timeout
        self.savepoint_per_message = savepoint_per_message
        self.declared_at = _place(_declaration(self))
        """Module and line of the declaration; None inside a function."""
        self.ignored_types: set[str] = set()
        """Names of types that the group passes over on purpose; see `ignores`."""
        self._routes: dict[tuple[str, str], Route] = {}
        self._check()
        _register(self)

    def __repr__(self) -> str:
        return f"<ConsumerGroup {self.name!r} of {', '.join(self.channels)}>"

    def handler(
        self, event_type: type[Any] | str, *, timeout: float | None = None
    ) -> Callable[[Handler], Handler]:
        """Register a handler, called as `handler(event, message)` for each message of a type.

        `event_type`: an event class, or a type name; with a name the handler gets the plain
        payload. `timeout`: as for the group, for this handler only.
        """
        return self._registrar(event_type, is_batch=False, timeout=timeout)

    def batch_handler(
        self, event_type: type[Any] | str, *, timeout: float | None = None
    ) -> Callable[[Handler], Handler]:
        """Register a handler, called as `handler(events, messages)` with lists of equal length.

        It gets neighbouring messages of the type together, in order. Arguments as for `handler`.
        """
        return self._registrar(event_type, is_batch=True, timeout=timeout)

    def ignores(self, *types: type[Any] | str) -> None:
        """Declare types that the group passes over on purpose.

        Only a type that this code does not know has to be named: one without an event class and
        without a captured model. `types`: event classes, or names of types.
        """
        for each in types:
            self.ignored_types.update(name for _, name, _ in self._targets(each))

    def routes(self, channel: str) -> dict[str, Route]:
        """Return the routes of a channel by type name.

        Captured models that were renamed, or are captured in another channel now, are among them.
        """
        routes = {
            type_name: route
            for (of_channel, type_name), route in self._routes.items()
            if of_channel == channel
        }
        for route in self._routes.values():
            for type_name in getattr(route.event_type, "__message_types__", tuple)():
                routes.setdefault(type_name, route)
        return routes

    def _registrar(
        self, event_type: type[Any] | str, *, is_batch: bool, timeout: float | None
    ) -> Callable[[Handler], Handler]:
        targets = self._targets(event_type)
        if timeout is not None and not is_number(timeout, 0, is_above=True):
            raise InvalidGroup(f"Group {self.name!r}: timeout={timeout!r}; use seconds above 0.")

        def register(handler: Handler) -> Handler:
            check_handler(handler, is_batch, self.name)
            for channel, type_name, event_class in targets:
                known = self._routes.get((channel, type_name))
                # A module that is imported again declares the same handler at the same line.
                if known is not None and origin_of(known.handler) != origin_of(handler):
                    first = origin_of(known.handler)
                    raise DuplicateHandler(group=self.name, type=type_name, first=first)
                self._routes[channel, type_name] = Route(
                    type_name, event_class, handler, is_batch, timeout or self.timeout
                )
            return handler

        return register

    def _targets(self, event_type: type[Any] | str) -> list[Target]:
        if isinstance(event_type, str):
            name = events.valid_type_name(event_type, f"Group {self.name!r}: ")
            return [(channel, name, None) for channel in self.channels]
        if inspect.isroutine(event_type):
            raise InvalidGroup(
                f"Group {self.name!r}: the decorator of {signature_of(event_type)} names no event: "
                f"write @….handler(EventClass) above {event_type.__name__}."
            )
        sources = events.sources(event_type)
        if not sources:
            raise InvalidGroup(
                f"Group {self.name!r} cannot handle {event_type!r}: name an outbox.Event subclass "
                "with a channel, outbox.Change[…] of a captured model, or a type name."
            )
        targets: list[Target] = [
            (*source, event_type) for source in sources if source[0] in self.channels
        ]
        if not targets:
            raise InvalidGroup(
                f"Group {self.name!r} handles {event_type.__name__} of channel "
                f"{' or '.join(repr(channel) for channel, _ in sources)} but reads only "
                f"{', '.join(self.channels)}: add the channel."
            )
        return targets

    def _check(self) -> None:
        name, timeout = self.name, self.timeout
        if not isinstance(name, str) or not 1 <= len(name) <= GROUP_LENGTH or not is_storable(name):
            raise InvalidGroup(f"{name!r} is not a group name: use 1 to 63 characters without NUL.")
        allowed = {
            "start": (self.start in ("earliest", "latest"), '"earliest" or "latest"'),
            "retry": (
                isinstance(self.retry, Retry),
                "an outbox.Retry, such as outbox.Retry(max_attempts=3)",
            ),
            "on_failure": (self.on_failure in ("park", "halt", "skip"), '"park", "halt" or "skip"'),
            "on_unknown": (self.on_unknown in ("wait", "skip", "park"), '"wait", "skip" or "park"'),
            "parallelism": (
                is_number(self.parallelism, 1, MOST_RANGES, whole=True),
                f"a whole number from 1 to {MOST_RANGES}",
            ),
            "delivery": (
                self.delivery in ("exactly_once", "at_least_once"),
                '"exactly_once" or "at_least_once"',
            ),
            "lease": (
                is_number(self.lease, 0, LONGEST_LEASE, is_above=True),
                "seconds above 0, at most a year",
            ),
            "timeout": (
                timeout is None or is_number(timeout, 0, is_above=True),
                "seconds above 0, or None",
            ),
        }
        for option, (is_allowed, what) in allowed.items():
            if not is_allowed:
                value = getattr(self, option)
                raise InvalidGroup(f"Group {name!r}: {option}={value!r}; use {what}.")


def get(name: ConsumerGroup | str) -> ConsumerGroup:
    """Return a group, given itself or its name; raises UnknownGroup, which lists the known ones."""
    if isinstance(name, ConsumerGroup):
        return name
    if not isinstance(name, str) or not is_storable(name):
        raise InvalidGroup(f"{name!r} is no group: give one, or its name.")
    if name not in _registry:
        raise UnknownGroup(name, sorted(_registry))
    return _registry[name]


def all_groups() -> list[ConsumerGroup]:
    """Return every declared group, by name."""
    return [group for _, group in sorted(_registry.items())]


@contextlib.contextmanager
def isolated(keep: Callable[[ConsumerGroup], bool]) -> Iterator[None]:
    """Undo at the end what the block declares; it sees only the groups that `keep` accepts."""
    groups, pairs = dict(_registry), list(_duplicates)
    routes = {group: dict(group._routes) for group in groups.values()}
    for group in groups.values():
        if not keep(group):
            del _registry[group.name]
    _duplicates[:] = [pair for pair in pairs if keep(pair[0])]
    try:
        yield
    finally:
        _registry.clear()
        _registry.update(groups)
        _duplicates[:] = pairs
        for group, before in routes.items():
            group._routes = before


def duplicates() -> list[tuple[ConsumerGroup, ConsumerGroup]]:
    """Return pairs of groups that were declared under one name."""
    return list(_duplicates)


def _register(group: ConsumerGroup) -> None:
    known = _registry.get(group.name)
    if known is not None:
        places = {known.declared_at, group.declared_at}
        if known.channels != group.channels or (len(places) > 1 and None not in places):
            _duplicates.append((known, group))
    _registry[group.name] = group


def _declaration(group: ConsumerGroup) -> types.FrameType:
    """Return the frame that makes the group: the first that is no `__init__` of it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is group:
        frame = frame.f_back
    return frame


def _place(frame: types.FrameType) -> str | None:
    is_module = frame.f_code.co_name == "<module>"
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}" if is_module else None


def _valid_channels(channels: Sequence[str], place: str) -> tuple[str, ...]:
    said = f"{place}channels={channels!r}"
    if isinstance(channels, str):
        raise InvalidGroup(f"{said} is one text: use a list, channels=[{channels!r}].")
    names = channels if isinstance(channels, Iterable) else ()
    valid = tuple(dict.fromkeys(events.valid_channel(channel, place) for channel in names))
    if not valid:
        raise InvalidGroup(f"{said}: use a list of channel names, at least one.")
    return valid
