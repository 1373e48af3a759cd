"""Racers on streams: one history, whatever the interleaving; each check fails without its part.

The long form has 10,000 rounds, a few minutes on an idle machine.
"""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest
from django.db import connection, connections, transaction

import outbox
from outbox.models import StreamMessage
from outbox.streams import guards
from tests.bank.models import Deposited, LimitSet
from tests.support.amounts import amount
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(3600)]
ROUNDS = amount(15, 10_000)
RACERS = 16


def deposit(account, **options):
    with transaction.atomic():
        outbox.publish(Deposited(account=account, amount=Decimal(1)), **options)


class Racers:
    """Threads with a connection each, which do something at the same moment, round by round."""

    def __init__(self, rounds, *functions):
        self.rounds, self.functions = rounds, functions
        self.barrier = threading.Barrier(len(functions))
        self.outcomes = [[] for _ in functions]

    def run(self):
        threads = [
            threading.Thread(target=self._race, args=(n,)) for n in range(len(self.functions))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return list(zip(*self.outcomes, strict=True))

    def _race(self, index):
        try:
            for number in range(self.rounds):
                self.barrier.wait(120)
                try:
                    self.functions[index](number)
                    self.outcomes[index].append("won")
                except Exception as error:
                    self.outcomes[index].append(type(error).__name__)
        finally:
            connections.close_all()


def violations_of_one_history(rounds):
    """Let racers append at the same version; count the rounds that not exactly one of them won."""
    racers = [lambda number: deposit("17", expected=number) for _ in range(RACERS)]
    outcomes = Racers(rounds, *racers).run()
    wanted = {"won": 1, "StreamConflict": RACERS - 1}
    return sum({each: row.count(each) for each in set(row)} != wanted for row in outcomes)


def versions(key="17"):
    rows = StreamMessage.objects.filter(channel="accounts", key=key).order_by("version")
    return list(rows.values_list("version", flat=True))


def test_of_sixteen_racers_exactly_one_wins_each_round():
    """Versions without gap, and no deadlock reaches the caller."""
    assert violations_of_one_history(ROUNDS) == 0
    assert versions() == list(range(1, ROUNDS + 1))


@pytest.fixture
def broken(transactional_db):
    """Replace a part of a database function for one test."""
    kept = []

    def break_it(name, part, with_what):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_get_functiondef(%s::regproc)", [name])
            text = cursor.fetchone()[0]
            assert part in text
            kept.append(text)
            cursor.execute(text.replace(part, with_what), None)

    yield break_it
    with connection.cursor() as cursor:
        for text in kept:
            cursor.execute(text, None)


def test_the_race_finds_an_append_that_does_not_look_at_the_version(broken):
    """The check of the race fails when the expected version is not compared under the lock."""
    broken("outbox_append_to_stream_v1", "s.version = expected", "true")

    assert violations_of_one_history(5) > 0


def test_the_race_finds_an_append_without_the_lock(broken):
    """The check of the race fails when the version is compared as it was before the lock."""
    broken(
        "outbox_append_to_stream_v1",
        "s.version = expected",
        "(SELECT t.version FROM outbox_stream AS t WHERE t.channel = of_channel AND t.key = of_key)"
        " = expected",
    )

    assert violations_of_one_history(20) > 0


def guarded(first, second, publish):
    with transaction.atomic(), outbox.guard(first, second):
        publish()


def write_skew(rounds):
    """Two writers: each depends on both streams and writes one; count the rounds that both won.

    Both have appended before either comes to the end of its block.
    """
    account, limit = ("accounts", "17"), ("limits", "eu")
    both = threading.Barrier(2)

    def first(number):
        def publish():
            outbox.publish(Deposited(account="17", amount=Decimal(1)))
            both.wait(120)

        guarded(account, limit, publish)

    def second(number):
        def publish():
            outbox.publish(LimitSet(region="eu", amount=Decimal(1)))
            both.wait(120)

        guarded(limit, account, publish)

    return Racers(rounds, first, second).run()


def test_guards_in_opposite_order_end_in_one_commit_and_one_conflict():
    """Write skew is refused, and a deadlock of two guards is a StreamConflict."""
    outcomes = write_skew(max(3, ROUNDS // 10))

    assert {tuple(sorted(each)) for each in outcomes} == {("StreamConflict", "won")}


def test_write_skew_gets_through_without_the_look_at_the_end(monkeypatch):
    """The check of the guards fails when they do not look again at the end of the block."""
    monkeypatch.setattr(guards, "_check", lambda *arguments: None)

    assert ("won", "won") in write_skew(3)


def late_writer(rounds):
    """A decision reads a stream whose writer commits later; count the decisions that got through."""
    through = 0
    for _ in range(rounds):
        written, decided = threading.Event(), threading.Event()

        def write(written=written, decided=decided):
            try:
                with transaction.atomic():
                    outbox.publish(LimitSet(region="eu", amount=Decimal(1)))
                    written.set()
                    decided.wait(120)
            finally:
                connections.close_all()

        writer = threading.Thread(target=write)
        writer.start()
        assert written.wait(120)
        try:
            with transaction.atomic(), outbox.guard(("accounts", "17"), ("limits", "eu")):
                outbox.publish(Deposited(account="17", amount=Decimal(1)))
                decided.set()
                wait_until(lambda writer=writer: not writer.is_alive())
            through += 1
        except outbox.StreamConflict:
            pass
        writer.join()
    return through


def test_a_decision_whose_other_stream_is_written_by_a_later_commit_conflicts():
    """The other transaction appended before the decision read, and commits after it."""
    assert late_writer(max(3, ROUNDS // 10)) == 0


def test_a_late_writer_gets_through_without_the_look_at_the_end(monkeypatch):
    """The check of the decision fails when the guard does not look again."""
    monkeypatch.setattr(guards, "_check", lambda *arguments: None)

    assert late_writer(2) == 2
