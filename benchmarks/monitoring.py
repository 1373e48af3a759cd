"""Publishing and consuming with numbers and traces on, against off, in one run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from django.db import transaction
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

import outbox
from benchmarks import consumers, harness
from benchmarks.consume import consumer, load
from benchmarks.events import orders
from benchmarks.models import Order
from outbox import observers
from outbox.monitoring import tracing
from outbox.monitoring.tallies import Tallies

LISTS = (
    observers.around_publish,
    observers.around_handling,
    observers.after_calls,
    observers.after_batch,
    observers.trace_headers,
)


class Nowhere(SpanExporter):
    """Takes spans and drops them, as an exporter without a collector."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def tracer(sampled: float) -> trace.Tracer:
    """Return a tracer that records a part of the traces."""
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sampled))
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider.get_tracer("outbox")


TRACERS = {sampled: tracer(sampled) for sampled in (1.0, 0.05)}


@contextlib.contextmanager
def monitored(sampled: float) -> Iterator[None]:
    """Count and trace within the block."""
    tracing._tracer = TRACERS[sampled]
    Tallies().attach()
    tracing.attach("links")
    try:
        yield
    finally:
        for each in LISTS:
            each.clear()


def run(*, quick: bool) -> None:
    """Print what publishing and consuming keep of their rates."""
    harness.empty_log()
    turns, count = (10, 200) if quick else (40, 500)
    events = itertools.cycle(orders(count))

    def publish(count: int) -> None:
        for event in itertools.islice(events, count):
            with transaction.atomic():
                Order.objects.create(customer=event.customer, total=event.total)
                outbox.publish(event)

    published = _both(publish, count, turns)
    recorded = _both(publish, count, turns, sampled=1.0)
    load(2 * turns * 500 * 4)
    write = _both(consumer(consumers.bill), 500, turns)
    look = _both(consumer(consumers.look), 1000, turns)
    rows = [
        ("publish beside a business row, 5 of 100 traces recorded", published, 0.98),
        ("the same, every trace recorded", recorded, None),
        ("consume, the handler inserts a row by the ORM", write, 0.98),
        ("consume, the handler does nothing", look, None),
    ]
    harness.show(
        "Numbers and traces",
        ["", "on", "off", "ratio", "goal"],
        [
            [
                what,
                harness.per_second(found["on"]),
                harness.per_second(found["off"]),
                *harness.against(goal, harness.ratio(found["on"], found["off"])),
            ]
            for what, found, goal in rows
        ],
        " Spans go to an exporter that drops them; tallies count.",
    )


def _both(
    work: Callable[[int], None], count: int, turns: int, sampled: float = 0.05
) -> dict[str, list[float]]:
    def on() -> float:
        with monitored(sampled):
            return harness.rate(count, work)

    return harness.alternate({"on": on, "off": lambda: harness.rate(count, work)}, turns)
