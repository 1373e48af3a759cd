"""A destination that is down for a while: nothing is parked, and the relay that waits costs little.

The long form leaves each destination down for a minute; with `-s` its numbers are printed. The short
form takes one of them, since `test_sinks` looks at the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from outbox.models import Cursor, ParkedMessage
from tests.relays.destinations import ALL
from tests.support import flight_log
from tests.support.amounts import IS_LONG, amount
from tests.support.processes import ROOT, environment, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]

SECONDS = amount(2, 60)
FLIGHTS = amount(10, 300)
MOST_CPU = 0.02
"""Of one core."""


def processor_time(process):
    """Return the seconds of processor time that a process has used."""
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_relayed(position):
    return Cursor.objects.filter(group="flown", position__gte=position).exists()


@pytest.fixture
def relay(destination):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.relays.relay_worker",
            destination.sink(destination.port),
            "stay",
        ],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.mark.parametrize("destination", sorted(ALL) if IS_LONG else ["nats"], indirect=True)
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc")
def test_a_destination_that_is_down_parks_nothing_and_costs_little(destination, relay):
    """The backlog drains when it is back; the waiting relay uses less than 2 % of a core."""
    first = flight_log.publish(flight_log.steps(2))
    wait_until(lambda: has_relayed(first[-1]), 300)
    destination.kill()
    wanted = flight_log.publish(flight_log.steps(FLIGHTS))
    wait_until(lambda: Cursor.objects.filter(group="flown", retry_at__isnull=False).exists(), 300)
    used, began = processor_time(relay), time.monotonic()
    time.sleep(SECONDS)  # how long it is down: no outcome depends on it
    share = (processor_time(relay) - used) / (time.monotonic() - began)
    parked = ParkedMessage.objects.count()
    attempts = Cursor.objects.get(group="flown").attempts
    destination.start()
    back = time.monotonic()
    wait_until(lambda: has_relayed(wanted[-1]), 300)
    drained = time.monotonic() - back
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(120) == 0
    found = {each.sequence for each in destination.received("flights")}
    print(
        f"\n{type(destination).__name__}: down for {SECONDS} s, CPU of the relay {share:.2%}, parked "
        f"{parked}, {len(wanted)} messages drained {drained:.1f} s after the server came back, "
        f"lost {len(set(wanted) - found)}"
    )

    assert (parked, attempts, ParkedMessage.objects.count()) == (0, 0, 0)
    assert set(wanted) <= found
    assert share < MOST_CPU or not IS_LONG
