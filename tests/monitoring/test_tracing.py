"""Traces: from the span that publishes to the spans that handle, in other processes too."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import outbox
from outbox import messages, observers
from outbox.models import Message
from outbox.monitoring import tracing
from tests.library.models import Author
from tests.shop.events import OrderPlaced
from tests.shop.models import Fault
from tests.support.harness import drain
from tests.support.processes import run_code, run_process

pytestmark = pytest.mark.django_db(transaction=True)

SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
PUBLISH = (
    SPANS
    + """
import outbox
from django.db import connection, transaction
from tests.shop.events import OrderPlaced
with transaction.atomic():
    outbox.publish(OrderPlaced(order_id=1))
    outbox.publish_many([OrderPlaced(order_id=number) for number in (2, 3)])
"""
)
HANDLE = (
    SPANS
    + """
from outbox.worker import Worker
Worker(["billing"]).drain()
"""
)
SHOW = """
import json
print(json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()]))
"""


def spans_of(code, **settings):
    """Run code in a process of its own; return the spans that ended in it."""
    done = run_code(code + SHOW, OUTBOX_TEST_SETTINGS=json.dumps(settings))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def identity(span):
    return span["context"]["trace_id"], span["context"]["span_id"]


def test_a_batch_links_to_the_spans_that_published_it():
    """In one process each publish is a span; in another the batch is one, with a link to each."""
    published = spans_of(PUBLISH, TRACING="links")
    (handled,) = spans_of(HANDLE, TRACING="links")
    links = {identity(link) for link in handled["links"]}

    assert [span["name"] for span in published] == ["publish orders"] * 2
    assert {span["kind"] for span in published} == {"SpanKind.PRODUCER"}
    assert published[0]["attributes"] == {
        "messaging.system": "django_pgoutbox",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "orders",
        "messaging.message.id": str(Message.objects.order_by("position")[0].position),
    }
    assert published[1]["attributes"]["messaging.batch.message_count"] == 2
    assert (handled["name"], handled["kind"]) == ("process orders", "SpanKind.CONSUMER")
    assert handled["parent_id"] is None
    assert links == {identity(span) for span in published}
    assert handled["attributes"] == {
        "messaging.system": "django_pgoutbox",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "orders",
        "messaging.consumer.group.name": "billing",
        "messaging.batch.message_count": 3,
    }


def test_a_call_is_a_child_of_the_span_that_published():
    """With "parent" the trace goes on: a span per message, below the one that published it."""
    published = spans_of(PUBLISH, TRACING="parent")
    handled = spans_of(HANDLE, TRACING="parent")
    one, two = published

    assert len(handled) == 3
    assert [span["parent_id"] for span in handled] == [
        each["context"]["span_id"] for each in (one, two, two)
    ]
    assert [span["context"]["trace_id"] for span in handled] == [
        each["context"]["trace_id"] for each in (one, two, two)
    ]
    assert handled[0]["attributes"]["outbox.message.attempt"] == 1
    assert not handled[0]["links"]


@pytest.fixture(scope="session")
def recorder():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(recorder):
    """Trace this process with links; return what has ended."""
    lists = (observers.around_publish, observers.around_handling, observers.trace_headers)
    tracing.attach("links")
    recorder.clear()
    yield recorder.get_finished_spans
    for each in lists:
        each.pop()


def tracer():
    return trace.get_tracer("the project")


def span_id(message):
    """The span that a message's header names."""
    return int(message.headers["traceparent"].split("-")[2], 16)


def test_a_failure_marks_its_span(spans):
    """The span of a failed batch has the error; the savepoint's second try is a span of its own."""
    Fault.objects.create(group="billing")
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1, note="fragile"))
    drain("billing")
    failed = [span for span in spans() if span.name == "process orders"]

    assert failed[0].status.status_code.name == "ERROR"
    assert failed[0].attributes["error.type"]
    assert failed[0].events[0].name == "exception"


def test_captured_changes_carry_the_trace_of_their_context(spans):
    """Within outbox.context() a captured change names the span around it, also after a publish."""
    request = tracer().start_as_current_span("request")
    with request as around, outbox.context(user="ann"), transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
        Author.objects.create(name="Ann")
    order, change = Message.objects.order_by("position")
    (publishing,) = [span for span in spans() if span.name == "publish orders"]

    assert span_id(change) == around.get_span_context().span_id
    assert span_id(order) == publishing.get_span_context().span_id
    assert change.headers["user"] == "ann"


def test_headers_of_the_caller_win(spans):
    """A traceparent that the caller gives is stored as it is."""
    given = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1), headers={"traceparent": given})

    assert Message.objects.get().headers["traceparent"] == given


def test_concurrent_tasks_keep_their_traces_apart(spans):
    """Each of several async tasks publishes and writes captured rows with its own trace."""

    def write(number):
        with transaction.atomic():
            outbox.publish(OrderPlaced(order_id=number))
            Author.objects.create(name=str(number))
        connection.close()

    async def request(number):
        with tracer().start_as_current_span(f"request {number}") as span:
            async with outbox.context(number=number):
                await asyncio.sleep(0)
                await sync_to_async(write)(number)
        return number, span.get_span_context()

    async def requests():
        return dict(await asyncio.gather(*[request(number) for number in range(8)]))

    contexts = asyncio.run(requests())
    found = list(Message.objects.all())
    parents = {s.context.span_id: s.parent.span_id for s in spans() if s.name == "publish orders"}

    assert len(found) == 16
    for message in found:
        own = contexts[message.headers["number"]].span_id
        named = span_id(message)
        assert parents.get(named, named) == own
        assert int(message.headers["traceparent"].split("-")[1], 16) == (
            contexts[message.headers["number"]].trace_id
        )


def test_links_are_bounded(spans):
    """A batch of many traces links to the newest 32."""
    for number in range(40):
        with transaction.atomic():
            outbox.publish(OrderPlaced(order_id=number))
    published = [span.context.span_id for span in spans()]
    drain("billing")
    (handled,) = [span for span in spans() if span.name == "process orders"]

    assert [link.context.span_id for link in handled.links] == published[-32:]


def test_baggage_and_tracestate_travel_as_the_propagators_write_them(spans):
    """What is not the usual trace goes through the configured propagators, in both directions."""
    state = trace.TraceState([("vendor", "1")])
    far = trace.SpanContext(7, 8, True, trace.TraceFlags(1), state)
    around = trace.set_span_in_context(trace.NonRecordingSpan(far))
    token = context.attach(baggage.set_baggage("user", "ann", around))
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
    context.detach(token)
    drain("billing")
    headers = Message.objects.get().headers
    (handled,) = [span for span in spans() if span.name == "process orders"]

    assert (headers["tracestate"], headers["baggage"]) == ("vendor=1", "user=ann")
    assert handled.links[0].context.trace_state == state
    assert handled.links[0].context.span_id == span_id(Message.objects.get())


def test_another_propagator_writes_and_reads_its_own_headers(spans, monkeypatch):
    """The headers are those of the project's propagator where it is not the default one."""

    class Upper(TraceContextTextMapPropagator):
        _TRACEPARENT_HEADER_NAME = "TRACEPARENT"

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Upper())
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))

    assert list(Message.objects.get().headers) == ["TRACEPARENT"]


@pytest.mark.parametrize("sampled", [True, False])
def test_the_headers_written_here_are_those_of_the_propagators(sampled):
    """The short way writes and reads what the default propagators do."""
    flags = trace.TraceFlags(sampled)
    span = trace.NonRecordingSpan(trace.SpanContext(3 << 90, 5, False, flags))
    written = tracing._headers_of(span)
    message = messages.Message(
        1, "c", None, "T", 1, False, "g", "{}", json.dumps(dict(written)), ""
    )
    read = tracing._context_of(message)

    assert written == tracing.headers(trace.set_span_in_context(span))
    assert (read.trace_id, read.span_id, read.trace_flags) == (3 << 90, 5, flags)
    assert read.is_remote


def test_a_setting_without_its_extra_is_an_error_with_the_way_out():
    """The process does not start; the error names the extra."""
    code = "import sys; sys.modules['opentelemetry'] = None\nimport django; django.setup()"
    done = run_process("-c", code, OUTBOX_TEST_SETTINGS='{"TRACING": "links"}')

    assert "pip install 'django-pgoutbox[otel]'" in done.stderr
    assert done.returncode == 1
