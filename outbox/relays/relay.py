"""The relay: a consumer group whose handler sends the messages to a destination.

    claimed -> resume point read -> sent -> confirmed -> progress written
                                     |-> refused for good: parked with its key
                                     |-> destination unavailable: the range waits, nothing is parked

What the destination has confirmed is remembered until the cursor has moved past it, so that a
record that fails does not send those before it again.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

from ..consuming import cursors, leased
from ..consuming.cursors import Claim
from ..exceptions import DestinationUnavailable, FailedAt, InvalidGroup, RecordRefused
from ..groups import ConsumerGroup, Start
from ..messages import Message
from ..retry import Retry
from ..routes import Route as HandlerRoute
from . import records
from .sink import Origin, Record, Sink, logger, unavailable


class _EveryType(dict[str, HandlerRoute]):
    """The one route of all types: a relay sends what it does not know, too."""

    def __init__(self, route: HandlerRoute) -> None:
        super().__init__()
        self._route = route

    def get(self, _: str, default: Any = None) -> Any:
        return self._route

    def __contains__(self, _: object) -> bool:
        return True


class _RawRoute(HandlerRoute):
    """Hands messages over without decoding their payloads."""

    __slots__ = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_of", _no_event)


def _no_event(message: Message) -> None:
    """Return nothing: the sink takes the payload as it is stored."""


@dataclasses.dataclass(slots=True)
class _Progress:
    """What is known about the records of one origin."""

    confirmed: int
    """The destination has everything up to this position."""
    token: int
    """The lease during which that was learnt."""
    failed: tuple[int, Exception] | None = None
    """The position that failed during this lease, so that it is not sent twice to find that out."""
    is_doubtful: bool = False
    """Whether records were sent of which no answer came."""


class Relay(ConsumerGroup):
    """A consumer group that sends the messages of its channels to a destination, in order.

    `name`, `channels`, `start`, `retry`, `parallelism`, `lease`: as for a ConsumerGroup.
    `to`: the sink, such as `outbox.relays.Kafka(...)`.
    `route`: called with each message; returns an `outbox.relays.Target`, the name of a topic, or
    `outbox.relays.DROP`. What it raises is the message's failure: it is tried again by `retry` and
    then parked.

    A destination that is down makes the relay wait and parks nothing. Raises InvalidGroup.
    """

    def __init__(
        self,
        name: str,
        channels: Sequence[str],
        *,
        to: Sink,
        route: records.Route | None = None,
        start: Start = "earliest",
        retry: Retry | None = None,
        parallelism: int = 1,
        lease: float = 30.0,
    ) -> None:
        if not isinstance(to, Sink):
            raise InvalidGroup(
                f"Relay {name!r}: to={to!r} is no sink: use one of outbox.relays, such as "
                "outbox.relays.Kafka(…), or an object with position, send and close."
            )
        if route is not None and not callable(route):
            raise InvalidGroup(f"Relay {name!r}: route={route!r} is no function of a message.")
        self.to = to
        self.route = route
        super().__init__(
            name,
            channels,
            start=start,
            retry=retry,
            parallelism=parallelism,
            delivery="at_least_once",
            lease=lease,
        )
        self._route = _RawRoute("*", None, self._forward, True, None, to.most_together)
        self._progress: dict[Origin, _Progress] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Relay {self.name!r} of {', '.join(self.channels)} to {self.to!r}>"

    def routes(self, channel: str) -> dict[str, HandlerRoute]:
        """Return the one route of all types."""
        return _EveryType(self._route)

    def place(self, channel: str) -> str | None:
        """Return where the messages of a channel go; None when they go to several places."""
        if self.route is not None or "{type}" in self.to.to:
            return None
        return records.place(self.to.to, channel, "")

    def _forward(self, _: Any, messages: list[Message]) -> None:
        """Send messages of one range; raises FailedAt for the first that is not confirmed."""
        claim = leased.current_claim.get()
        with self._lock:
            if claim is None:  # a redrive: the cursor has moved past its message
                origin = Origin(self.name, messages[0].channel, 0, -1, 0)
                return self._send(origin, messages, _Progress(0, 0))
            slots = claim.slot_from, claim.slot_to
            origin = Origin(self.name, claim.channel, *slots, claim.generation)
            progress = self._progress_at(origin, claim, messages[0])
            rest = [each for each in messages if each.position > progress.confirmed]
            self._send(origin, rest, progress)
            progress.confirmed = max(progress.confirmed, messages[-1].position)

    def _progress_at(self, origin: Origin, claim: Claim, first: Message) -> _Progress:
        """Return what is known about an origin, read from the destination where that is needed."""
        known = self._progress.get(origin)
        if known is not None and known.token == claim.lease_token:
            if known.failed is not None and known.failed[0] == first.position:
                raise FailedAt(first, known.failed[1])
            return known
        if known is None or known.is_doubtful or claim.leased_by != cursors.holder():
            known = _Progress(0, claim.lease_token)
            self._progress = {
                each: state for each, state in self._progress.items() if not origin.replaces(each)
            }
            self._progress[origin] = known
            try:
                known.confirmed = self.to.position(origin, self.place(claim.channel)) or 0
            except Exception as error:
                raise self._failure(first, error, known) from error
            if known.confirmed >= first.position:
                _say_resumed(origin, first.position, known.confirmed)
        known.token, known.failed = claim.lease_token, None
        return known

    def _send(self, origin: Origin, messages: Sequence[Message], progress: _Progress) -> None:
        sources: list[Message] = []
        batch: list[Record] = []
        broken: FailedAt | None = None
        recorder = records.Recorder(origin, self.to.to, self.route)
        for message in messages:
            try:
                record = recorder.record(message)
            except Exception as error:  # of the routing function
                broken = FailedAt(message, error)
                break
            if record is not None:
                sources.append(message)
                batch.append(record)
        try:
            if batch:
                self.to.send(origin, batch)
        except Exception as error:
            failed = sources[min(getattr(error, "sent", 0), len(sources) - 1)]
            raise self._failure(failed, error, progress) from error
        if broken is not None:
            progress.confirmed = broken.message.position - 1
            raise broken

    def _failure(self, message: Message, error: Exception, progress: _Progress) -> FailedAt:
        """Note what a send found out about a message; unless it is refused, connect anew."""
        if not isinstance(error, RecordRefused):
            self.to.close()
            progress.is_doubtful = True
            if not isinstance(error, DestinationUnavailable):
                error = unavailable(error)
        progress.confirmed = max(progress.confirmed, message.position - 1)
        progress.failed = message.position, error
        return FailedAt(message, error)


def _say_resumed(origin: Origin, first: int, confirmed: int) -> None:
    logger.info(
        "%s: the destination has the messages of %s from %d to %d: they are not sent again",
        origin.relay,
        origin.channel,
        first,
        confirmed,
        extra={"group": origin.relay, "channel": origin.channel},
    )
