"""The exporter: the state of the database in Prometheus's text format."""

from __future__ import annotations

import re
import subprocess
import urllib.request

import pytest
from django.db import OperationalError, connection
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from outbox.monitoring import exporter
from outbox.operations import scaling
from tests.support.harness import drain, insert
from tests.support.processes import manage, run_process, wait_until
from tests.support.prometheus import tool
from tests.support.publishing import publish_order, publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def samples(text):
    """The values of a scrape by name and labels."""
    return {
        (each.name, *sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def scrape():
    return samples(exporter.text().decode())


def group(name, metric, **labels):
    return (f"outbox_group_{metric}", *sorted({"group": name, **labels}.items()))


def test_a_scrape_shows_what_the_status_shows(declare_group):
    """Lag, status, parked messages and workers of a group are those of `outbox groups`."""
    publish_orders(3)
    declare_group("fresh", "orders", start="earliest")
    drain("billing")
    publish_orders(2)
    found = scrape()

    assert found[("outbox_up",)] == 1
    assert found[group("billing", "lag_messages")] == 2
    assert found[group("billing", "status", status="stopped")] == 1
    assert found[group("billing", "status", status="ok")] == 0
    assert found[group("billing", "processed_messages_total")] == 3
    assert found[group("billing", "workers")] == 0
    assert found[group("fresh", "status", status="stopped")] == 1
    assert found[("outbox_segments_ahead",)] >= 1


def test_a_publisher_that_stays_open_shows_with_its_age(connect):
    """The horizon is held for as long as the transaction of the publisher is open."""
    session = connect()
    session.autocommit = False
    insert(session)
    publish_order()
    wait_until(lambda: scrape()[("outbox_horizon_held_seconds",)] > 0.2)
    held = scrape()
    session.rollback()
    free = scrape()

    assert held[("outbox_horizon_held_positions",)] == 2
    assert free[("outbox_horizon_held_positions",)] == 0
    assert free[("outbox_horizon_held_seconds",)] == 0


def test_statements_and_series_do_not_grow(declare_group):
    """Keys, positions and ranges add neither a series nor a statement to a scrape."""
    publish_orders(10)
    drain("billing")
    with CaptureQueriesContext(connection) as few:
        before = scrape()
    for number in range(300):
        publish_order(number)
    scaling.scale("billing", 32)
    with CaptureQueriesContext(connection) as many:
        after = scrape()

    assert set(after) == set(before)
    assert len(many) == len(few) <= 12


def test_a_database_without_a_log_is_down_and_not_an_error(monkeypatch):
    """A scrape while the database does not answer says `outbox_up 0` and nothing else of it."""
    monkeypatch.setattr(exporter.status, "list_groups", _refuse)
    found = scrape()

    assert found[("outbox_up",)] == 0
    assert {name for name, *_ in found} == {"outbox_up", "outbox_exporter_seconds"}


def _refuse(using):
    raise OperationalError("the server is away")


@pytest.mark.usefixtures("groups_of_the_apps")
def test_the_view_answers_like_the_command():
    """A project may mount a view instead of running the command."""
    publish_orders(1)
    answer = exporter.metrics(RequestFactory().get("/metrics"))
    written = manage("outbox", "exporter", "--once").stdout

    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    assert set(samples(answer.content.decode())) == set(samples(written))


def test_the_command_serves_until_told_to_stop(start_command):
    """`outbox exporter` serves /metrics at a port of the loopback interface, and ends with code 0."""
    publish_orders(1)
    process = start_command("outbox", "exporter", "--port", "0")
    url = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stderr.readline())[0]
    with urllib.request.urlopen(url, timeout=60) as answer:
        found = samples(answer.read().decode())
    process.terminate()
    process.wait(120)

    assert found[("outbox_positions_total",)] >= 1
    assert process.returncode == 0


@pytest.mark.parametrize("port", ["http", "localhost:1", "127.0.0.1:70000"])
def test_a_port_that_cannot_be_is_refused(port):
    """The error names the value and how one is written."""
    done = manage("outbox", "exporter", "--port", port)

    assert done.returncode == 2
    assert f"'{port}' is not PORT or ADDRESS:PORT" in done.stderr


def test_promtool_finds_nothing_to_say():
    """Names, types and help texts are as Prometheus wants them."""
    promtool = tool("promtool")
    publish_orders(3)
    drain("billing")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exporter.text(), capture_output=True, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_nothing_of_it_is_imported_when_off():
    """Publishing and consuming import neither prometheus_client nor a tracer."""
    code = (
        "import sys, django; django.setup(); import outbox.worker, outbox.management.commands.consume;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'prometheus_client', 'opentelemetry', 'sentry_sdk'}))"
    )
    assert run_process("-c", code).stdout == "[]\n"
