"""Sentry: publish and handler calls as spans of one trace."""

from __future__ import annotations

import pytest
import sentry_sdk
from django.db import transaction

import outbox
from outbox import observers
from outbox.monitoring import sentry
from tests.shop.events import OrderPlaced
from tests.support.harness import drain, stored

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sent():
    """What Sentry would send."""
    events = []
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            traces_sample_rate=1.0,
            default_integrations=False,
            before_send_transaction=lambda event, hint: events.append(event),
        )
        sentry.attach()
        yield events
        observers.around_publish.pop()
        observers.around_call.pop()
        sentry_sdk.init()


def test_a_trace_goes_from_publish_to_handler(sent):
    """A span of queue.publish, and a transaction of queue.process in the same trace."""
    with sentry_sdk.start_transaction(op="http.server", name="order"), transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
    drain("billing")
    request, handled = sent
    (published,) = request["spans"]
    (processed,) = handled["spans"]

    assert (published["op"], processed["op"]) == ("queue.publish", "queue.process")
    assert handled["contexts"]["trace"]["trace_id"] == request["contexts"]["trace"]["trace_id"]
    assert published["data"]["messaging.message.id"] == str(stored()[0])
    assert processed["data"]["messaging.message.id"] == str(stored()[0])
    assert processed["data"]["messaging.destination.name"] == "orders"
    assert processed["data"]["messaging.message.retry.count"] == 0
    assert processed["data"]["messaging.message.receive.latency"] >= 0
