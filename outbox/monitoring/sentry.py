"""Traces by Sentry: spans for its Queues page, one per publish and one per call of a handler.

Errors need nothing here: a message that a group gives up on is logged as an error with its
traceback, which Sentry's logging integration sends. Needs the extra `sentry`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sentry_sdk

from .. import observers
from ..messages import Draft, Message
from ..observers import Store

TRACE, BAGGAGE = "sentry-trace", "baggage"


def attach() -> None:
    """Trace publishing and handling in this process."""
    observers.around_publish.append(publish)
    observers.around_call.append(call)


def publish(store: Store, drafts: Sequence[Draft]) -> list[int]:
    """Store drafts within a span, with its context in their headers; their own headers win."""
    if sentry_sdk.get_current_span() is None:
        return store(drafts)
    channel = drafts[0].channel
    with sentry_sdk.start_span(op="queue.publish", name=channel) as span:
        span.set_data("messaging.destination.name", channel)
        carried = {TRACE: sentry_sdk.get_traceparent(), BAGGAGE: sentry_sdk.get_baggage()}
        carried = {name: value for name, value in carried.items() if value}
        positions = store(
            [
                msgspec.structs.replace(each, headers={**carried, **(each.headers or {})})
                for each in drafts
            ]
        )
        span.set_data("messaging.message.id", str(positions[0]))
        return positions


def call(handler: Callable[..., Any], event: Any, message: Any) -> Any:
    """Call a handler within a transaction that goes on with the trace of its message."""
    first: Message = message[0] if isinstance(message, list) else message
    carried = first.headers
    name = f"{first.group}: {first.type}"
    now = datetime.datetime.now(datetime.UTC)
    with (
        sentry_sdk.isolation_scope(),
        sentry_sdk.start_transaction(
            sentry_sdk.continue_trace(carried, op="queue.process", name=name, source="task")
        ),
        sentry_sdk.start_span(op="queue.process", name=name) as span,
    ):
        span.set_data("messaging.destination.name", first.channel)
        span.set_data("messaging.message.id", str(first.position))
        span.set_data("messaging.message.retry.count", first.attempt - 1)
        latency = max(0.0, (now - first.created_at).total_seconds())
        span.set_data("messaging.message.receive.latency", round(latency * 1000))
        try:
            return handler(event, message)
        except BaseException:
            span.set_status("internal_error")
            raise
