"""The flights, relayed by processes that are killed at random, to servers that crash meanwhile.

The long form relays all 27,004 flights, or 500 where the server is slow, and kills 20 times; with `-s` the numbers of each destination
are printed.
"""

from __future__ import annotations

import collections
import random
import subprocess
import sys
import time

import pytest
from django.db import connection

from outbox.models import Cursor, ParkedMessage
from tests.support import flight_log
from tests.support.amounts import amount
from tests.support.harness import execute
from tests.support.processes import ROOT, environment

SECONDS = amount(800, 3_000)
"""For a destination, after which the test gives up."""

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(SECONDS + 200)]

FLIGHTS = amount(200, 27_004)
FLIGHTS_OF_SLOW = amount(30, 500)
KILLS = amount(2, 20)


def start(destination):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.relays.relay_worker", destination.sink(destination.port)],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
    )


def relayed():
    cursor = Cursor.objects.filter(group="flown").first()
    return 0 if cursor is None else cursor.position


def end_lease_and_pause():
    execute(connection, "UPDATE outbox_cursor SET retry_at = NULL, leased_until = NULL")


def kill_at(process, position):
    """Kill the relay when its cursor has reached a position, or it has ended before."""
    while process.poll() is None and relayed() < position:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    process.kill()
    process.wait()
    end_lease_and_pause()


def account(found, wanted):
    """Return how many were lost, came out of the order of their key, and came more than once."""
    first, last = {}, {}
    out_of_order = 0
    for place, each in enumerate(found):
        if each.sequence not in first:
            out_of_order += each.key is not None and last.get(each.key, 0) > each.sequence
            last[each.key] = max(last.get(each.key, 0), each.sequence)
        first.setdefault(each.sequence, place)
    counts = collections.Counter(each.sequence for each in found)
    return len(set(wanted) - set(first)), out_of_order, sum(n - 1 for n in counts.values())


def test_nothing_is_lost_or_out_of_order_when_relays_are_killed(destination):
    """Killed again and again, the server restarted where it persists; doubled only where the table says so."""
    wanted = flight_log.publish(
        flight_log.steps(FLIGHTS_OF_SLOW if destination.is_slow else FLIGHTS)
    )
    stops = sorted(random.sample(wanted, KILLS))
    began = time.monotonic()
    for number, position in enumerate(stops):
        kill_at(start(destination), position)
        if destination.persists and number % 5 == 1:
            destination.restart()
    while relayed() < wanted[-1]:
        end_lease_and_pause()
        assert start(destination).wait(600) == 0
        assert time.monotonic() - began < SECONDS
    found = destination.received("flights")
    lost, out_of_order, doubled = account(found, wanted)
    print(
        f"\n{type(destination).__name__}: {len(wanted)} messages, {KILLS} kills of the relay, "
        f"{time.monotonic() - began:.0f} s: lost {lost}, out of order {out_of_order}, "
        f"doubled {doubled}"
    )

    assert (lost, out_of_order) == (0, 0)
    assert not ParkedMessage.objects.exists()
    assert doubled <= KILLS * destination.most_doubled
