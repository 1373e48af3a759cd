"""Streams: one history per key, guards over several, and event-sourced models."""

from __future__ import annotations

import contextlib
import threading
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, connections, transaction
from django.utils import timezone

import outbox
from outbox.exceptions import InvalidStream
from outbox.models import Message, Stream, StreamMessage
from outbox.testing import drain, isolated_groups
from tests.bank.models import Account, Deposited, LimitSet, Opened, Withdrawn

pytestmark = pytest.mark.django_db(transaction=True)


def publish(event, **options):
    with transaction.atomic():
        return outbox.publish(event, **options)


def deposit(amount=1, account="17", **options):
    return publish(Deposited(account=account, amount=Decimal(amount)), **options)


def race(*functions):
    """Run functions at once, each with a connection of its own; return results and errors."""
    outcomes = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index, function):
        try:
            barrier.wait(120)
            outcomes[index] = function()
        except Exception as error:
            outcomes[index] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return outcomes


def test_versions_count_from_one_without_gap():
    """Each message of a key has the next version, in the log and in the stream."""
    for amount in range(1, 4):
        deposit(amount)
    deposit(account="18")

    history = outbox.stream("accounts", "17")

    assert history.version == 3
    assert [(event.amount, message.stream_version) for event, message in history.read()] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    assert [message.stream_version for _, message in history.read(after=1, until=2)] == [2]
    assert outbox.stream("accounts", "nobody").version == 0


def test_an_expected_version_that_does_not_hold_stores_nothing():
    """The conflict names channel, key and both versions; the transaction can go on."""
    deposit()
    with transaction.atomic():
        with pytest.raises(outbox.StreamConflict) as caught:
            outbox.publish(Deposited(account="17", amount=Decimal(1)), expected=0)
        outbox.publish(Deposited(account="17", amount=Decimal(2)), expected=1)

    conflict = caught.value
    assert (conflict.channel, conflict.key) == ("accounts", "17")
    assert (conflict.expected, conflict.actual) == (0, 1)
    assert Message.objects.count() == 2


def test_a_stream_that_never_began_leaves_no_row():
    """A refused first message does not make a stream."""
    with transaction.atomic(), pytest.raises(outbox.StreamConflict):
        outbox.publish(Deposited(account="9", amount=Decimal(1)), expected=5)

    assert not Stream.objects.exists()


def test_a_rolled_back_append_leaves_no_gap():
    """Versions are given again after a roll-back, to a savepoint as well."""
    with transaction.atomic():
        outbox.publish(Deposited(account="17", amount=Decimal(1)))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            outbox.publish(Deposited(account="17", amount=Decimal(2)))
            raise ZeroDivisionError
        outbox.publish(Deposited(account="17", amount=Decimal(3)))

    assert [m.stream_version for _, m in outbox.stream("accounts", "17").read()] == [1, 2]


def test_of_racers_that_expect_the_same_version_one_wins():
    """Eight writers, twenty rounds: exactly one commit a round, and versions without gap."""
    rounds, racers = 20, 8
    for number in range(rounds):
        outcomes = race(*[lambda n=number: deposit(expected=n) for _ in range(racers)])
        won = [each for each in outcomes if isinstance(each, int)]
        lost = [each for each in outcomes if isinstance(each, outbox.StreamConflict)]
        assert (len(won), len(lost)) == (1, racers - 1), outcomes

    versions = StreamMessage.objects.filter(key="17").order_by("position")
    assert [each.version for each in versions] == list(range(1, rounds + 1))


def test_writers_of_one_stream_wait_before_they_hold_the_horizon(connect):
    """A writer that waits for another one of its stream has taken no floor yet."""
    other = connect().cursor()
    other.execute("BEGIN")
    other.execute("SELECT outbox_lock_stream_v1('accounts', '17', true)")
    waiting = threading.Thread(target=lambda: (deposit(), connections.close_all()))
    waiting.start()
    try:
        with connection.cursor() as cursor:
            while True:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                if cursor.fetchone()[0]:
                    break
            cursor.execute("SELECT outbox_horizon() = outbox_last_position()")

            assert cursor.fetchone()[0]
    finally:
        other.execute("ROLLBACK")
        waiting.join(120)


def test_two_guards_in_opposite_order_end_in_one_commit_and_one_conflict():
    """Each writes one stream and depends on the other: write skew is refused, no deadlock shows."""
    publish(LimitSet(region="eu", amount=Decimal(5)))
    deposit()
    both = threading.Barrier(2)

    def first():
        with transaction.atomic(), outbox.guard(("accounts", "17"), ("limits", "eu")):
            outbox.publish(Deposited(account="17", amount=Decimal(1)))
            both.wait(120)
        return "committed"

    def second():
        with transaction.atomic(), outbox.guard(("limits", "eu"), ("accounts", "17")):
            outbox.publish(LimitSet(region="eu", amount=Decimal(1)))
            both.wait(120)
        return "committed"

    outcomes = race(first, second)

    assert sorted(type(each).__name__ for each in outcomes) == ["StreamConflict", "str"]


def test_a_guard_sees_a_stream_that_another_transaction_wrote():
    """The guarded stream moved on meanwhile, so the block conflicts at its end."""
    deposit()

    with pytest.raises(outbox.StreamConflict), transaction.atomic():  # noqa: SIM117
        with outbox.guard(("accounts", "17"), ("limits", "eu")) as seen:
            assert seen == {("accounts", "17"): 1, ("limits", "eu"): 0}
            outbox.publish(Deposited(account="17", amount=Decimal(1)))
            race(lambda: publish(LimitSet(region="eu", amount=Decimal(1))))

    assert outbox.stream("accounts", "17").version == 1


def test_a_guard_does_not_count_its_own_messages():
    """What the block appends itself is no conflict, also after a roll-back to a savepoint."""
    deposit()
    with transaction.atomic(), outbox.guard(("accounts", "17")):
        outbox.publish(Deposited(account="17", amount=Decimal(1)))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            outbox.publish(Deposited(account="17", amount=Decimal(1)))
            raise ZeroDivisionError
        outbox.publish(Deposited(account="17", amount=Decimal(1)))

    assert outbox.stream("accounts", "17").version == 3


@pytest.mark.parametrize("expected", [-1, True, 1.5, "1", 2**63])
def test_an_impossible_version_is_refused(expected):
    """It names what was given."""
    with pytest.raises(InvalidStream, match="expected="):
        deposit(expected=expected)


def open_account(number="17", amount=10):
    with transaction.atomic():
        account = Account()
        account.record(Opened(account=number, owner="Ann"))
        account.record(Deposited(account=number, amount=Decimal(amount)))
    return account


def test_recording_applies_appends_and_saves():
    """The row is the fold of the stream, at the same version."""
    open_account()

    row = Account.objects.get(pk="17")

    assert (row.owner, row.balance, row.version) == ("Ann", 10, 2)
    assert outbox.stream("accounts", "17").version == 2
    assert list(Account.verify()) == []


def test_a_constraint_refuses_row_and_event_together():
    """What the model's constraints refuse is in neither, and the instance is as before."""
    account = open_account()

    with pytest.raises(IntegrityError, match="covered"), transaction.atomic():
        account.record(Withdrawn(account="17", amount=Decimal(11)))

    assert (account.balance, account.version) == (10, 2)
    assert outbox.stream("accounts", "17").version == 2


def test_a_row_loaded_before_another_writer_conflicts():
    """The append expects the version of the row."""
    open_account()
    old = Account.objects.get(pk="17")
    with transaction.atomic():
        Account.objects.get(pk="17").record(Deposited(account="17", amount=Decimal(1)))

    with pytest.raises(outbox.StreamConflict), transaction.atomic():
        old.record(Deposited(account="17", amount=Decimal(1)))

    assert (old.balance, old.version) == (10, 2)


def test_an_aggregate_as_of_a_version_or_a_time():
    """It is folded from the stream, and not saved."""
    open_account()
    between = timezone.now()
    deposit(5)

    assert Account.as_of("17", version=1).balance == 0
    assert Account.as_of("17", version=3).balance == 15
    assert Account.as_of("17", time=between).balance == 10
    for options in ({"version": 0}, {"version": 4}, {}, {"version": 1, "time": between}):
        with pytest.raises(InvalidStream):
            Account.as_of("17", **options)


def test_a_row_that_drifted_is_found_and_rebuilt():
    """verify() names the fields; rebuild() makes the row from the stream."""
    open_account()
    open_account("18")
    Account.objects.filter(pk="17").update(balance=99)

    (drift,) = Account.verify()

    assert (drift.key, drift.differences) == ("17", {"balance": (99, 10)})
    call_command("outbox", "rebuild", "bank.Account")
    assert list(Account.verify()) == []
    with pytest.raises(CommandError, match=r"bank\.Account"):
        call_command("outbox", "rebuild", "bank.Accounts")


def test_a_row_changes_by_events_only():
    """save() and delete() are refused, and say what to do instead."""
    account = open_account()

    with pytest.raises(InvalidStream, match="record"):
        account.save()
    with pytest.raises(InvalidStream, match="record"):
        account.delete()
    with pytest.raises(InvalidStream, match="no event of channel"), transaction.atomic():
        account.record(LimitSet(region="eu", amount=Decimal(1)))
    with pytest.raises(InvalidStream, match="has the key"), transaction.atomic():
        account.record(Deposited(account="18", amount=Decimal(1)))


def test_decisions_begin_again_after_a_conflict():
    """Of eight withdrawals of 3 from 10, three succeed, whatever the order."""
    open_account()

    def withdraw(account):
        if account.balance >= 3:
            return [Withdrawn(account="17", amount=Decimal(3))]
        return []

    outcomes = race(*[lambda: outbox.decide(Account, "17", withdraw, retries=20)] * 8)

    assert [each for each in outcomes if isinstance(each, Exception)] == []
    assert Account.objects.get(pk="17").balance == 1
    assert outbox.stream("accounts", "17").version == 5


def test_a_decision_inside_a_transaction_is_refused():
    """It could not begin again there."""
    with transaction.atomic(), pytest.raises(InvalidStream, match="outside atomic"):
        outbox.decide(Account, "17", lambda account: [])


def test_a_handler_sees_the_version():
    """A group reads a stream channel as any other."""
    deposit()
    deposit()
    seen = []
    with isolated_groups():
        ledger = outbox.ConsumerGroup("ledger", channels=["accounts"])
        ledger.handler(Deposited)(lambda event, message: seen.append(message.stream_version))

        drain(ledger)

    assert seen == [1, 2]


def test_a_plain_channel_has_no_expected_version():
    """expected= is for streams, and says so."""
    from tests.shop.events import OrderPlaced

    with pytest.raises(InvalidStream, match="stream=True"), transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1), expected=0)


def test_a_class_reads_messages_of_the_names_it_had():
    """`was=` keeps the stored messages of a renamed class readable."""
    from outbox import events

    class Renamed(outbox.Event, channel="renamed", key="n", stream=True, was=["OldName"]):
        n: int

    try:
        with transaction.atomic():
            outbox.publish_raw("renamed", "OldName", {"n": 7}, key="7")

        ((event, message),) = outbox.stream("renamed", "7").read()

        assert (event, message.type) == (Renamed(n=7), "OldName")
    finally:
        for name in ("Renamed", "OldName"):
            events._registry.pop(("renamed", name))
        events._stream_channels.discard("renamed")


def test_a_raw_insert_into_a_stream_channel_is_refused():
    """A message without a version would be in no stream; plain channels are as before."""
    deposit()
    insert = (
        "INSERT INTO outbox_message (channel, key, type, payload) VALUES (%s, '17', 'Raw', '{}')"
    )
    with connection.cursor() as cursor:
        for statement in (insert, insert.replace("VALUES", "VALUES ('plain', '1', 'Raw', '{}'), ")):
            with pytest.raises(IntegrityError, match="channel of streams"):
                cursor.execute(statement, ["accounts"])
        cursor.execute(insert, ["plain"])

    assert Message.objects.filter(type="Raw").count() == 1
    with transaction.atomic():
        outbox.publish_raw("accounts", "Raw", {}, key="17")
    assert outbox.stream("accounts", "17").version == 2


def test_a_row_that_was_rebuilt_after_it_was_loaded_cannot_be_saved_over():
    """record() raises StreamConflict and stores nothing, row or event; a new load can go on."""
    open_account()
    Account.objects.filter(pk="17").update(balance=99)
    drifted = Account.objects.get(pk="17")
    Account.rebuild("17")

    with pytest.raises(outbox.StreamConflict, match="rebuilt"), transaction.atomic():
        drifted.record(Deposited(account="17", amount=Decimal(1)))

    assert (drifted.balance, drifted.version) == (99, 2)
    assert outbox.stream("accounts", "17").version == 2
    with transaction.atomic():
        Account.objects.get(pk="17").record(Deposited(account="17", amount=Decimal(1)))
    assert Account.objects.get(pk="17").balance == 11
    assert list(Account.verify()) == []


def test_an_error_of_record_that_is_swallowed_stores_nothing():
    """The event was appended before the row was refused, so the transaction cannot commit."""
    open_account()
    Account.objects.filter(pk="17").update(balance=99)
    drifted = Account.objects.get(pk="17")
    Account.rebuild("17")

    with contextlib.suppress(outbox.StreamConflict), transaction.atomic():
        with contextlib.suppress(outbox.StreamConflict):
            drifted.record(Deposited(account="17", amount=Decimal(1)))
        assert transaction.get_rollback()

    assert outbox.stream("accounts", "17").version == 2
    assert list(Account.verify()) == []


def test_a_decision_reads_the_rebuilt_row_after_the_conflict():
    """decide() begins again by itself when the row was rebuilt between its load and its save."""
    open_account()
    Account.objects.filter(pk="17").update(balance=99)
    seen = []

    def decision(account):
        seen.append(account.balance)
        if len(seen) == 1:
            race(lambda: Account.rebuild("17"))
        return [Deposited(account="17", amount=Decimal(1))]

    assert outbox.decide(Account, "17", decision).balance == 11
    assert seen == [99, 10]
    assert list(Account.verify()) == []


def test_one_instance_records_several_events_also_after_a_rebuild():
    """Its own saves are no change by another; rebuild() returns an instance that can go on."""
    open_account()
    account = Account.rebuild("17")

    with transaction.atomic():
        for _ in range(3):
            account.record(Deposited(account="17", amount=Decimal(1)))

    assert Account.objects.get(pk="17").balance == 13
    assert list(Account.verify()) == []


def test_a_row_that_was_deleted_without_an_event_is_a_conflict():
    """Raw SQL took it away: nothing is stored, and rebuild() makes it again."""
    account = open_account()
    Account.objects.filter(pk="17")._raw_delete("default")

    with pytest.raises(outbox.StreamConflict, match="deleted"), transaction.atomic():
        account.record(Deposited(account="17", amount=Decimal(1)))

    assert Account.rebuild("17").balance == 10
    assert outbox.stream("accounts", "17").version == 2


def test_a_row_that_was_loaded_in_part_records_nothing():
    """Fields that are loaded later may be newer than the others."""
    open_account()
    part = Account.objects.only("balance").get(pk="17")

    with pytest.raises(InvalidStream, match="without owner"), transaction.atomic():
        part.record(Deposited(account="17", amount=Decimal(1)))


def test_an_event_without_a_key_in_a_stream_channel_is_refused():
    """A class without key=, an event whose key is None, a raw message without one: nothing stored."""
    from outbox import events

    class Keyless(outbox.Event, channel="keyless", stream=True):
        n: int

    class MaybeKey(outbox.Event, channel="keyless", key="k"):
        k: str | None

    attempts = [
        lambda: outbox.publish(Keyless(n=1)),
        lambda: outbox.publish_many([Keyless(n=1)]),
        lambda: outbox.publish(MaybeKey(k=None)),
        lambda: outbox.publish_raw("keyless", "Raw", {}),
    ]
    try:
        for attempt in attempts:
            with pytest.raises(InvalidStream, match="no key"), transaction.atomic():
                attempt()
    finally:
        for name in ("Keyless", "MaybeKey"):
            events._registry.pop(("keyless", name))
        events._stream_channels.discard("keyless")

    assert not Message.objects.exists()


def test_an_apply_that_raises_stores_nothing(monkeypatch):
    """The instance is as it was before, whatever the method had changed; so is the stream."""
    account = open_account()

    def withdrawn(self, event):
        self.balance = -1
        raise ArithmeticError("no")

    monkeypatch.setattr(Account, "withdrawn", withdrawn)
    with transaction.atomic(), pytest.raises(ArithmeticError):
        account.record(Withdrawn(account="17", amount=Decimal(1)))

    assert (account.balance, account.version) == (10, 2)
    assert outbox.stream("accounts", "17").version == 2
    assert list(Account.verify()) == []


def test_an_event_that_the_aggregate_does_not_apply_is_refused(monkeypatch):
    """It names the decorator; nothing is stored."""
    account = open_account()
    monkeypatch.setattr(Account, "_appliers", {})

    with pytest.raises(InvalidStream, match=r"@outbox\.applies"), transaction.atomic():
        account.record(Deposited(account="17", amount=Decimal(1)))

    assert outbox.stream("accounts", "17").version == 2


@pytest.mark.parametrize(
    ("streams", "text"),
    [
        ([("orders", "17")], "none of streams"),
        ([("accounts", None)], "has a key"),
        ([], "names no stream"),
    ],
)
def test_a_guard_of_what_is_no_stream_is_refused(streams, text):
    """A plain channel, no key, nothing at all."""
    with transaction.atomic(), pytest.raises(InvalidStream, match=text), outbox.guard(*streams):
        pass


def test_a_guard_on_a_stream_that_nothing_was_read_of_holds_too():
    """It stands at the version that the guard itself saw, 0 for one that does not exist yet."""
    with pytest.raises(outbox.StreamConflict), transaction.atomic():  # noqa: SIM117
        with outbox.guard(("accounts", "new")) as seen:
            assert seen == {("accounts", "new"): 0}
            race(lambda: deposit(account="new"))

    assert outbox.stream("accounts", "new").version == 1


def test_a_decision_inside_a_decision_is_refused():
    """The inner one could not begin again; nothing of the outer one is stored."""
    open_account()

    def outer(account):
        outbox.decide(Account, "17", lambda inner: [])
        return [Deposited(account="17", amount=Decimal(1))]

    with pytest.raises(InvalidStream, match="outside atomic"):
        outbox.decide(Account, "17", outer)
    assert outbox.stream("accounts", "17").version == 2


def test_a_version_above_the_stream_and_a_time_before_it_conflict_or_are_refused():
    """Nothing is stored; a time needs its zone."""
    before = timezone.now()
    open_account()

    with pytest.raises(outbox.StreamConflict):
        deposit(expected=2**63 - 1)
    with pytest.raises(InvalidStream, match="versions 1 to 2"):
        Account.as_of("17", time=before)
    with pytest.raises(InvalidStream, match="time zone"):
        Account.as_of("17", time=before.replace(tzinfo=None))
    with pytest.raises(InvalidStream, match="versions 1 to 0"):
        Account.as_of("nobody", version=1)


class ReadsFromOther:
    """A router with a replica."""

    def db_for_read(self, model, **hints):
        return "other"

    def db_for_write(self, model, **hints):
        return "default"


def test_an_aggregate_read_from_a_replica_is_recorded_where_the_router_writes(
    other_alias, settings
):
    """The instance remembers the alias that it was loaded from; `save()` does not follow it either."""
    with transaction.atomic():
        Account(number="41").record(Opened(account="41", owner="Ann"))
    settings.DATABASE_ROUTERS = [ReadsFromOther()]
    loaded = Account.objects.get(pk="41")
    with transaction.atomic():
        loaded.record(Deposited(account="41", amount=Decimal(5)))

    assert Account.objects.using("default").get(pk="41").version == 2
