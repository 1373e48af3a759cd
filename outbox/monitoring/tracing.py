"""Traces by OpenTelemetry: a span for each publish, and spans for the handlers.

    OUTBOX["TRACING"] = "links"    a span per part of a batch, linked to the spans that published
    OUTBOX["TRACING"] = "parent"   a span per call of a handler, a child of the span that published

The headers carry the context of the publishing span as the configured propagator writes it, by
default `traceparent`. Needs the extra `otel`, which is the API alone: without an SDK in the project
nothing is recorded. Names follow the semantic conventions of messaging.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from .. import observers
from ..messages import Draft, Message
from ..observers import Store

SYSTEM = "django_pgoutbox"
"""The value of `messaging.system`."""
MOST_LINKS = 32
"""Links of a span, to the newest distinct contexts of its messages."""
_MARK = '"traceparent"'
_W3C = {"traceparent", "tracestate", "baggage"}
_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_tracer = trace.get_tracer("outbox")


def attach(mode: str) -> None:
    """Trace publishing and handling in this process; `mode`: "links" or "parent"."""
    observers.around_publish.append(publish)
    observers.trace_headers.append(headers)
    if mode == "parent":
        observers.around_call.append(call)
    else:
        observers.around_handling.append(handle)


def headers(context: Context | None = None) -> Mapping[str, str]:
    """Return the headers that carry a context, by default the current one; empty without a span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier


def publish(store: Store, drafts: Sequence[Draft]) -> list[int]:
    """Store drafts within a span, with its context in their headers; their own headers win."""
    channel = drafts[0].channel
    if len(drafts) > 1 and any(draft.channel != channel for draft in drafts):
        channel = ""
    attributes = _attributes("send", "publish", channel)
    if len(drafts) > 1:
        attributes["messaging.batch.message_count"] = len(drafts)
    # Do not make it the current span: that costs twice as much, and the statement does not need it.
    span = _tracer.start_span(
        f"publish {channel}" if channel else "publish",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
    )
    try:
        if carried := _headers_of(span):
            drafts = [_with_headers(draft, carried) for draft in drafts]
        positions = store(drafts)
        if len(positions) == 1:
            span.set_attribute("messaging.message.id", str(positions[0]))
        return positions
    except BaseException as error:
        _record(span, error)
        raise
    finally:
        span.end()


def handle(run: Callable[[], Any], group: str, messages: Sequence[Message]) -> Any:
    """Run the handlers of a part of a batch within a span that links to the publishing ones."""
    first = messages[0]
    attributes = _attributes("process", "process", first.channel, group)
    attributes["messaging.batch.message_count"] = len(messages)
    with _tracer.start_as_current_span(
        f"process {first.channel}",
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=_links(messages),
    ) as span:
        result = run()
        if (cause := getattr(result, "cause", None)) is not None:
            _record(span, cause)
        return result


def call(handler: Callable[..., Any], event: Any, message: Any) -> Any:
    """Call a handler within a span that is a child of the one that published its message.

    For a batch handler: a child of the first message's, with links to the others'.
    """
    messages: Sequence[Message] = message if isinstance(message, list) else [message]
    first = messages[0]
    attributes = _attributes("process", "process", first.channel, first.group)
    attributes["messaging.message.id"] = str(first.position)
    attributes["outbox.message.type"] = first.type
    attributes["outbox.message.attempt"] = first.attempt
    if isinstance(message, list):
        attributes["messaging.batch.message_count"] = len(messages)
    with _tracer.start_as_current_span(
        f"process {first.channel}",
        context=propagate.extract(_carried(first), Context()),
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=_links(messages[1:]),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            return handler(event, message)
        except BaseException as error:
            _record(span, error)
            raise


def _attributes(kind: str, name: str, channel: str, group: str = "") -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": SYSTEM,
        "messaging.operation.type": kind,
        "messaging.operation.name": name,
    }
    if channel:
        attributes["messaging.destination.name"] = channel
    if group:
        attributes["messaging.consumer.group.name"] = group
    return attributes


@functools.cache
def _writes_w3c(propagator: TextMapPropagator) -> bool:
    """Return whether a propagator writes W3C's trace context and baggage, as the default one."""
    return type(propagator) is CompositePropagator and propagator.fields == _W3C


def _headers_of(span: trace.Span) -> Mapping[str, str]:
    """Return the headers that carry a span's context.

    The usual one is written here, as W3C says: the propagators cost half as much as a span.
    """
    context = span.get_span_context()
    if (
        not context.is_valid
        or context.trace_state
        or baggage.get_all()
        or not _writes_w3c(propagate.get_global_textmap())
    ):
        return headers(trace.set_span_in_context(span))
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return {"traceparent": f"00-{trace_id}-{span_id}-{context.trace_flags:02x}"}


def _with_headers(draft: Draft, carried: Mapping[str, str]) -> Draft:
    return msgspec.structs.replace(draft, headers={**carried, **(draft.headers or {})})


def _carried(message: Message) -> dict[str, Any]:
    if _MARK not in message.raw_headers:
        return {}
    return {name: value for name, value in message.headers.items() if isinstance(value, str)}


def _links(messages: Sequence[Message]) -> list[Link]:
    """Return links to the distinct contexts that published some messages, the newest ones."""
    distinct: dict[str, None] = {}
    for message in reversed(messages):
        if _MARK in message.raw_headers:
            distinct.setdefault(message.raw_headers)
            if len(distinct) == MOST_LINKS:
                break
    contexts = {}
    for message in messages:
        if distinct and message.raw_headers in distinct:
            del distinct[message.raw_headers]
            context = _context_of(message)
            contexts[context.trace_id, context.span_id] = context
    return [Link(context) for context in contexts.values() if context.is_valid]


def _context_of(message: Message) -> SpanContext:
    """Return the context of the span that published a message; the usual one is read here."""
    carried = _carried(message)
    usual = _TRACEPARENT.fullmatch(carried.get("traceparent", ""))
    if usual and "tracestate" not in carried and _writes_w3c(propagate.get_global_textmap()):
        trace_id, span_id, flags = (int(text, 16) for text in usual.groups())
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    span = trace.get_current_span(propagate.extract(carried, Context()))
    return span.get_span_context()


def _record(span: trace.Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
