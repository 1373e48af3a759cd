"""Consumer groups: their options, their handlers, and the registry of both.

A group is code; its progress is rows of `outbox_cursor`. Every group sees every message of
its channels, whatever other groups do.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from . import events
from .exceptions import DuplicateHandler, InvalidGroup, UnknownGroup

Handler = TypeVar("Handler", bound=Callable[..., Any])
Start = Literal["earliest", "latest"]
OnFailure = Literal["park", "halt", "skip"]
Delivery = Literal["exactly_once", "at_least_once"]

GROUP_LENGTH = 63
MOST_RANGES = 1024

_registry: dict[str, ConsumerGroup] = {}
_duplicates: list[tuple[ConsumerGroup, ConsumerGroup]] = []


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """When a failed message is tried again, and when its group gives up on it."""

    max_attempts: int = 5
    """Tries in all before the group gives up; 0 for no limit."""
    base: float = 0.5
    """Seconds before the second try."""
    factor: float = 2.0
    """By how much each further delay grows."""
    max_delay: float = 300.0
    """Seconds that no delay exceeds."""
    jitter: bool = True
    """Full jitter: each delay is drawn evenly between 0 and its value."""
    max_seconds: float | None = None
    """Seconds since the first failure after which the group gives up; None for no limit."""

    def delay(self, attempts: int) -> float:
        """Return the seconds to wait after `attempts` failed tries (1 or more)."""
        exponent = min(attempts - 1, 64)
        delay = min(self.max_delay, self.base * self.factor**exponent)
        return random.uniform(0, delay) if self.jitter else delay

    def is_exhausted(self, attempts: int, failing_for: datetime.timedelta) -> bool:
        """Tell whether the group gives up after `attempts` failed tries over `failing_for`."""
        if self.max_attempts and attempts >= self.max_attempts:
            return True
        return self.max_seconds is not None and failing_for.total_seconds() >= self.max_seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """How one type of message is handled."""

    type: str
    event_type: type[events.Event] | None
    handler: Callable[..., Any]
    is_batch: bool
    timeout: float | None


class ConsumerGroup:
    """A named set of handlers that reads its channels at its own cursor.

    `name`: 1 to 63 characters; the identity of its progress in the database.
    `channels`: the channels it reads.
    `start`: where a new group begins: "earliest" retained message, or "latest" (only what is
    published from now on).
    `retry`: when failed messages are tried again.
    `on_failure`: what happens when tries are used up: "park" keeps the message aside and goes
    on, "halt" tries for ever, "skip" counts and logs it.
    `parallelism`: into how many slot ranges each channel is divided at the start; messages
    with the same key stay in order whatever the number.
    `delivery`: "exactly_once" for effects in this database; "at_least_once" runs handlers
    outside a transaction under a lease of `lease` seconds.
    `timeout`: seconds a handler may take per call before a supervisor ends its worker; None
    for no limit.
    `savepoint_per_message`: isolate each message in a savepoint instead of repeating the
    messages before one that fails.

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
        parallelism: int = 1,
        delivery: Delivery = "exactly_once",
        lease: float = 30.0,
        timeout: float | None = None,
        savepoint_per_message: bool = False,
    ) -> None:
        self.name = name
        self.channels = _valid_channels(channels)
        self.start = start
        self.retry = retry or Retry()
        self.on_failure = on_failure
        self.parallelism = parallelism
        self.delivery = delivery
        self.lease = lease
        self.timeout = timeout
        self.savepoint_per_message = savepoint_per_message
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

    def routes(self, channel: str) -> dict[str, Route]:
        """Return the routes of a channel by type name."""
        return {
            type_name: route
            for (of_channel, type_name), route in self._routes.items()
            if of_channel == channel
        }

    def _registrar(
        self, event_type: type[Any] | str, *, is_batch: bool, timeout: float | None
    ) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            for channel, type_name, event_class in self._targets(event_type):
                known = self._routes.get((channel, type_name))
                if known is not None and _path(known.handler) != _path(handler):
                    raise DuplicateHandler(
                        group=self.name, type=type_name, first=_path(known.handler)
                    )
                self._routes[channel, type_name] = Route(
                    type_name, event_class, handler, is_batch, timeout or self.timeout
                )
            return handler

        return register

    def _targets(
        self, event_type: type[Any] | str
    ) -> Iterable[tuple[str, str, type[events.Event] | None]]:
        if isinstance(event_type, str):
            return [(channel, event_type, None) for channel in self.channels]
        contract: events.Contract | None = getattr(event_type, "contract", None)
        if contract is None:
            raise InvalidGroup(
                f"Group {self.name!r} cannot handle {event_type!r}: name an outbox.Event subclass "
                "with a channel, or a type name."
            )
        if contract.channel not in self.channels:
            raise InvalidGroup(
                f"Group {self.name!r} handles {event_type.__name__} of channel "
                f"{contract.channel!r} but reads only {', '.join(self.channels)}: add the channel."
            )
        return [(contract.channel, contract.type, event_type)]

    def _check(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= GROUP_LENGTH:
            raise InvalidGroup(f"{self.name!r} is not a group name: use 1 to 63 characters.")
        if self.start not in ("earliest", "latest"):
            raise InvalidGroup(self._refusal("start", '"earliest" or "latest"'))
        if self.on_failure not in ("park", "halt", "skip"):
            raise InvalidGroup(self._refusal("on_failure", '"park", "halt" or "skip"'))
        if self.delivery not in ("exactly_once", "at_least_once"):
            raise InvalidGroup(self._refusal("delivery", '"exactly_once" or "at_least_once"'))
        if not 1 <= self.parallelism <= MOST_RANGES:
            raise InvalidGroup(self._refusal("parallelism", f"1 to {MOST_RANGES}"))
        if self.lease <= 0:
            raise InvalidGroup(self._refusal("lease", "seconds above 0"))

    def _refusal(self, option: str, allowed: str) -> str:
        return f"Group {self.name!r}: {option}={getattr(self, option)!r}; use {allowed}."


def get(name: str) -> ConsumerGroup:
    """Return the group `name`; raises UnknownGroup, which lists the known ones."""
    try:
        return _registry[name]
    except KeyError:
        nearest = difflib.get_close_matches(name, _registry, n=1)
        raise UnknownGroup(name, sorted(_registry), nearest[0] if nearest else None) from None


def all_groups() -> list[ConsumerGroup]:
    """Return every declared group, by name."""
    return [_registry[name] for name in sorted(_registry)]


def duplicates() -> list[tuple[ConsumerGroup, ConsumerGroup]]:
    """Return pairs of groups that were declared under one name."""
    return list(_duplicates)


def _register(group: ConsumerGroup) -> None:
    known = _registry.get(group.name)
    if known is not None and known.channels != group.channels:
        _duplicates.append((known, group))
    _registry[group.name] = group


def _valid_channels(channels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(channels, str) or not channels:
        raise InvalidGroup(f"channels={channels!r}: use a list of channel names, at least one.")
    return tuple(dict.fromkeys(events.valid_channel(channel) for channel in channels))


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
