"""`consume --health-port`: liveness, readiness, and what the workers count."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request

import pytest
from django.db import connection

from outbox.models import Cursor
from outbox.monitoring.tallies import BOUNDS, Tallies
from tests.monitoring.test_exporter import samples
from tests.shop.models import Effect, Fault
from tests.support.harness import execute
from tests.support.processes import manage, open_session, wait_until
from tests.support.publishing import publish_order, publish_orders
from tests.test_supervisor import children, working

pytestmark = pytest.mark.django_db(transaction=True)


END_WORKERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = %s AND starts_with(application_name, 'outbox:')"
)


def get(url):
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def start_serving(start_command):
    """Start a worker with a health port; return the process and the address of its pages."""

    def start(*arguments):
        port = free_port()
        process = start_command("consume", *arguments, "--health-port", str(port))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_served(url))
        return process, url

    return start


def is_served(url):
    try:
        return get(f"{url}/livez")
    except (urllib.error.URLError, ConnectionError):
        return None


def numbers(url):
    return samples(get(f"{url}/metrics")[1])


def handled(url, group):
    found = numbers(url)
    return found.get(("outbox_messages_handled_total", ("channel", "orders"), ("group", group)), 0)


def test_a_worker_counts_what_it_does(start_serving):
    """Messages, batches and seconds of handlers, by group and type, with the usual buckets."""
    publish_orders(20)
    _, url = start_serving("doomed", "--poll-interval", "0.1")
    wait_until(lambda: handled(url, "doomed") == 20)
    found = numbers(url)
    calls = ("group", "doomed"), ("type", "OrderPlaced")

    assert found[("outbox_handler_seconds_count", *calls)] == 20
    assert (
        found[("outbox_handler_seconds_bucket", ("group", "doomed"), ("le", "+Inf"), calls[1])]
        == 20
    )
    assert found[("outbox_batch_seconds_count", ("group", "doomed"))] >= 1
    assert found[("outbox_handler_seconds_sum", *calls)] > 0


def test_failures_are_counted(start_serving):
    """Failed attempts and parked messages count for their group."""
    Fault.objects.create(group="billing")
    publish_order(note="fragile")
    _, url = start_serving("billing")
    wait_until(lambda: numbers(url).get(("outbox_failed_attempts_total", ("group", "billing"))))

    assert get(f"{url}/livez")[0] == 200


def test_ready_means_that_it_can_claim(start_serving):
    """Not while the database is away, and again when it is back; it is alive all the time."""
    _, url = start_serving("doomed", "--poll-interval", "0.1")
    wait_until(lambda: get(f"{url}/readyz") == (200, "ready\n"))
    name = connection.settings_dict["NAME"]
    session = open_session({**connection.settings_dict, "NAME": "postgres"})
    execute(session, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        execute(session, END_WORKERS, name)
        wait_until(lambda: get(f"{url}/readyz")[0] == 503)
        alive = get(f"{url}/livez")[0]
    finally:
        execute(session, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        session.close()
    wait_until(lambda: get(f"{url}/readyz")[0] == 200)

    assert alive == 200


def test_a_handler_that_hangs_is_not_alive(start_serving, close_gate):
    """Liveness is a turn of the loop within the seconds that the probe names; readiness stays."""
    gate = close_gate("billing")
    publish_order(note="gate")
    _, url = start_serving("billing")
    wait_until(gate.waiting)
    wait_until(lambda: get(f"{url}/livez?seconds=0.3")[0] == 503)
    status, text = get(f"{url}/livez?seconds=60")
    gate.open()
    wait_until(lambda: get(f"{url}/livez?seconds=5")[0] == 200)

    assert status == 200
    assert text.startswith("the last turn")
    assert get(f"{url}/livez?seconds=x")[0] == 400
    assert get(f"{url}/other") == (404, "There are: /livez /readyz /metrics\n")


def test_a_supervisor_answers_for_its_workers(start_serving):
    """Its pages are about all workers: counters add up and do not fall when a worker is killed."""
    publish_orders(50)
    supervisor, url = start_serving("doomed", "--processes", "2", "--poll-interval", "0.1")
    first = working(supervisor, 2)
    wait_until(lambda: handled(url, "doomed") == 50)
    wait_until(lambda: get(f"{url}/readyz")[0] == 200)
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: numbers(url)[("outbox_worker_deaths_total",)] == 1)
    wait_until(lambda: len(children(supervisor)) == 2 and first[0] not in children(supervisor))
    after_death = handled(url, "doomed")
    publish_orders(50)
    wait_until(lambda: handled(url, "doomed") == 100)

    assert after_death == 50
    assert Effect.objects.count() == 100
    assert get(f"{url}/livez")[0] == 200


def test_a_port_that_is_taken_is_a_usage_error():
    """The error names the address and the option; no worker has run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = manage("consume", "doomed", "--drain", "--health-port", str(port))

    assert done.returncode == 2
    assert re.search(rf"127\.0\.0\.1:{port} cannot be served .*--health-port", done.stderr)
    assert not Cursor.objects.filter(group="doomed").exists()


def test_tallies_of_several_files_add_up(tmp_path):
    """A sum of files; a process that takes over a file goes on from its numbers."""
    for number, seconds in ((1, 0.0004), (2, 0.2), (2, 400.0)):
        own = Tallies(tmp_path / f"worker-{number}")
        own.count_batch("billing", "orders", 3, seconds)
        own.write()
    total = Tallies().plus_files(tmp_path)
    histogram = total.histograms[("batch_seconds", "billing")]

    assert total.counters == {("messages_handled", "billing", "orders"): 9}
    assert histogram[0] == pytest.approx(400.2004)
    assert [histogram[1], histogram[1 + BOUNDS.index(0.25)], histogram[-1]] == [1, 1, 1]
    assert json.loads((tmp_path / "worker-2").read_text())
