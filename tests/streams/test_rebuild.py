"""`outbox rebuild` of many rows while writers go on, killed and resumed."""

from __future__ import annotations

import re
import threading
import time
from decimal import Decimal

import pytest
from django.db import connections, transaction

import outbox
from tests.bank.models import Account, Deposited
from tests.support.amounts import amount
from tests.support.processes import start_manage

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(7200)]
ROWS = amount(2_500, 100_000)
"""Aggregates; more than two thousand, since progress is told every thousand rows."""


def written():
    """The rows that writers append to meanwhile; they have drifted, as all others."""
    return ["0000003", f"{ROWS // 2:07}", f"{ROWS - 1:07}"]


def make_drifted(count):
    """Streams of one event whose rows say something else."""
    for first in range(0, count, 500):
        numbers = [f"{number:07}" for number in range(first, min(first + 500, count))]
        with transaction.atomic():
            outbox.publish_many(Deposited(account=number, amount=Decimal(5)) for number in numbers)
            Account.objects.bulk_create(
                Account(number=number, balance=99, version=1) for number in numbers
            )


def appended():
    """How many events the streams of the writers have."""
    return sum(outbox.stream("accounts", number).version for number in written())


def test_a_rebuild_that_is_killed_twice_ends_with_every_row_its_fold(record_property, capsys):
    """It goes on behind the key that it told last; writers append all the while."""
    make_drifted(ROWS)
    stop = threading.Event()
    before = appended()

    def write():
        try:
            while not stop.is_set():
                for number in written():
                    outbox.decide(
                        Account,
                        number,
                        lambda account: [Deposited(account=account.number, amount=Decimal(1))],
                        retries=100,
                    )
        finally:
            connections.close_all()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        after = ""
        for _ in range(2):
            process = start_manage("outbox", "rebuild", "bank.Account", "--after", after)
            after = re.search(r"--after (\S+)", process.stderr.readline())[1]
            process.kill()
            process.communicate()
        began = time.monotonic()
        last = start_manage("outbox", "rebuild", "bank.Account", "--after", after)
        out, errors = last.communicate(timeout=4000)
        seconds = time.monotonic() - began
    finally:
        stop.set()
        writer.join(120)
    rebuilt = int((re.search(r"(\d+) rows rebuilt", out) or [0, 0])[1])
    numbers = {"rows": rebuilt, "seconds": round(seconds), "appended": appended() - before}
    record_property("numbers", numbers)
    with capsys.disabled():
        print(f"\nrebuilt after two kills, while writers went on: {numbers}")

    assert last.returncode == 0, errors
    assert rebuilt == ROWS - 1 - int(after)
    assert numbers["appended"] > 0
    assert Account.objects.count() == ROWS
    assert list(Account.verify()) == []
