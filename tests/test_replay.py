"""Moving groups to another position, on what happened to the flights of January 2013."""

import json
import random
import threading
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

import outbox
from outbox.consuming.cursors import register
from outbox.exceptions import InvalidReset, InvalidSkip, InvalidTime, UnknownChannel, UnknownGroup
from outbox.models import Cursor, Message, OperatorAction, ParkedMessage
from outbox.operations import replay
from outbox.operations.audit import audit
from outbox.operations.status import describe
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.shop import consumers
from tests.shop.events import OrderPlaced, PaymentTaken
from tests.shop.models import Effect, Fault, Order
from tests.support import flight_log
from tests.support.amounts import amount
from tests.support.harness import Background, drain, execute, handled, insert, last_position
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

FLIGHTS = 500
RESETS = amount(20, 200)


def flight_group(name, parallelism):
    """A group that notes every run of a message, and whose effect is the same however often."""
    group = outbox.ConsumerGroup(name, channels=["flights"], parallelism=parallelism)
    note = consumers.record_batch(name)

    def handle(events, messages):
        note(events, messages)
        Order.objects.bulk_create(
            [Order(reference=message.position) for message in messages], ignore_conflicts=True
        )

    for type_name in ("Departed", "Arrived", "Cancelled"):
        group.batch_handler(type_name)(handle)
    return group


replayed: dict[int | str, outbox.ConsumerGroup] = {}


@pytest.fixture(scope="module", autouse=True)
def _flight_groups():
    """The groups of this file, for its tests only."""
    with isolated_groups():
        replayed[1] = flight_group("replayed", 1)
        replayed[4] = flight_group("replayed-4", 4)
        replayed["other"] = flight_group("replayed-other", 1)
        yield


@pytest.fixture(scope="module")
def happened():
    return flight_log.steps(FLIGHTS)


@pytest.fixture(params=[1, 4], ids=["one range", "four ranges"])
def group(request):
    return replayed[request.param]


def reset(group, *arguments):
    """Run the command; return its moves."""
    output = StringIO()
    call_command("outbox", "reset", group.name, *map(str, arguments), "--json", stdout=output)
    return json.loads(output.getvalue())


def repeated(group, *arguments):
    """Reset a group that has handled everything, let it run, and return how many messages the plan
    announced and how many were handled again."""
    before = Effect.objects.filter(group=group.name).count()
    moves = reset(group, *arguments, "--execute")
    drain(group)
    again = Effect.objects.filter(group=group.name).count() - before
    return sum(move["messages"] for move in moves if move["delta"] < 0), again


def test_to_earliest_repeats_everything(happened, group):
    """Every message of the log is handled once more."""
    flight_log.publish(happened)
    drain(group)

    assert repeated(group, "--to-earliest") == (len(happened), len(happened))


def test_to_latest_repeats_nothing(happened, group):
    """A group that has handled everything stays there."""
    flight_log.publish(happened)
    drain(group)

    assert repeated(group, "--to-latest") == (0, 0)


def test_to_position_repeats_what_lies_above(happened, group):
    """The message at the position is not repeated, the next one is."""
    positions = flight_log.publish(happened)
    drain(group)

    assert repeated(group, "--to-position", positions[299]) == (len(happened) - 300,) * 2


def test_shift_by_moves_by_positions(happened, group):
    """From where each cursor stands, back by so many positions."""
    flight_log.publish(happened)
    drain(group)

    assert repeated(group, "--shift-by", -250) == (250, 250)


def test_to_datetime_repeats_what_happened_since(happened, group):
    """Everything that was published at that time or later, whatever the zone it is given in."""
    flight_log.publish(happened)
    drain(group)
    nine = datetime(2013, 1, 1, 9, 0, tzinfo=flight_log.timeline.NEW_YORK)
    since = sum(step.at >= nine for step in happened)

    assert 0 < since < len(happened)
    assert repeated(group, "--to-datetime", "2013-01-01T09:00:00-05:00") == (since, since)
    assert repeated(group, "--to-datetime", "2013-01-01T14:00:00Z") == (since, since)


def test_to_datetime_finds_messages_that_are_out_of_order(happened, group):
    """Times of publication that differ by a few seconds from the order of positions hide nothing."""
    generator = random.Random(1)
    moved = [step.at + timedelta(seconds=generator.uniform(-4, 4)) for step in happened]
    positions = flight_log.publish(happened, at=moved)
    drain(group)
    wrong = []
    for at in sorted(moved)[:: len(moved) // 50]:
        first = min(p for p, t in zip(positions, moved, strict=True) if t >= at)
        moves = reset(group, "--to-datetime", at.isoformat())
        wrong += [move for move in moves if move["new"] != first - 1]

    assert wrong == []


def test_by_duration_repeats_what_is_younger(happened, group):
    """So long before now, by the database's clock."""
    now = datetime.now(UTC)
    late = happened[-1].at - happened[400].at
    flight_log.publish(happened, at=[now - (happened[-1].at - step.at) for step in happened])
    drain(group)
    since = sum(step.at > happened[400].at for step in happened)
    seconds = int(late.total_seconds()) - 1

    assert repeated(group, "--by-duration", f"PT{seconds}S") == (since, since)


def test_to_group_repeats_what_the_other_has_before_it(happened, group):
    """The group stands where another one stands, and both then handle the same."""
    flight_log.publish(happened)
    drain(group)
    other = replayed["other"]
    moved = Worker([other], batch_size=100).drain(max_messages=300)

    assert repeated(group, "--to-group", other.name) == (len(happened) - moved,) * 2


def test_from_file_repeats_as_the_exported_plan_said(happened, group, tmp_path):
    """`--shift-by 0 --export` keeps the positions of now, `--from-file` brings them back."""
    flight_log.publish(happened[:400])
    drain(group)
    reset(group, "--shift-by", 0, "--export", tmp_path / "kept.csv")
    flight_log.publish(happened[400:])
    drain(group)
    rest = len(happened) - 400

    assert repeated(group, "--from-file", tmp_path / "kept.csv") == (rest, rest)


def test_a_plan_changes_nothing(happened, group):
    """Without `--execute` the moves are shown, the cursors stay and nothing is recorded."""
    flight_log.publish(happened)
    drain(group)
    before = list(Cursor.objects.order_by("id").values())
    moves = reset(group, "--to-earliest")

    assert sum(move["messages"] for move in moves) == len(happened)
    assert list(Cursor.objects.order_by("id").values()) == before
    assert not OperatorAction.objects.exists()


def test_a_plan_for_a_group_that_never_ran_leaves_no_cursor(happened):
    """The cursors that the group will have are shown and not kept."""
    flight_log.publish(happened)
    (move,) = reset(replayed[1], "--to-latest")

    assert move["messages"] == len(happened)
    assert not Cursor.objects.exists()


def test_a_group_that_never_ran_can_be_reset(happened, group):
    """Its cursors are created, so that its first worker begins where it was told to."""
    flight_log.publish(happened)
    reset(group, "--to-latest", "--execute")
    drain(group)

    assert not Effect.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["--to-position", "-5"], "earliest"),
        (["--to-position", "999999999"], "latest"),
        (["--shift-by", "-999999999"], "earliest"),
        (["--shift-by", "999999999"], "latest"),
        (["--to-datetime", "1990-01-01T00:00:00Z"], "earliest"),
        (["--to-datetime", "2990-01-01T00:00:00Z"], "latest"),
    ],
)
def test_values_beyond_the_log_are_brought_back_to_it(happened, arguments, end):
    """Before the first message is before the first message, after the last one is the horizon."""
    positions = flight_log.publish(happened)
    drain(replayed[1])
    moves, said = StringIO(), StringIO()
    call_command("outbox", "reset", "replayed", *arguments, "--json", stdout=moves, stderr=said)
    (move,) = json.loads(moves.getvalue())
    is_time = arguments[0] == "--to-datetime"

    assert move["new"] == {"earliest": positions[0] - 1, "latest": positions[-1]}[end]
    assert move["clamped"] is not is_time
    assert ("as far as the log goes" in said.getvalue()) is not is_time


def test_the_earliest_position_passes_no_open_publisher(connect):
    """A message that is still being published may become the first one of the log."""
    publisher, session = connect(), connect()
    execute(publisher, "BEGIN")
    held = insert(publisher)
    insert(session)
    (move,) = replay.reset("billing", to_earliest=True)
    execute(publisher, "COMMIT")
    drain("billing")

    assert move.new < held
    assert handled("billing")[0] == held


def test_a_time_without_zone_is_refused(happened):
    """On the command line it is wrong usage, in Python an error that says what to do."""
    with pytest.raises(CommandError, match="no time zone"):
        reset(replayed[1], "--to-datetime", "2013-01-01T09:00:00")
    with pytest.raises(InvalidTime, match="no time zone"):
        replay.reset("replayed", to_time=datetime(2013, 1, 1))


@pytest.mark.parametrize("ways", [{}, {"position": 1, "to_latest": True}])
def test_exactly_one_way_is_needed(ways):
    """No way, or two of them, is an error that lists them."""
    with pytest.raises(InvalidReset, match="exactly one way"):
        replay.reset("billing", **ways)


def test_to_group_needs_the_channels_of_the_group():
    """A group that does not read a channel cannot say where to stand in it."""
    register([consumers.billing, consumers.audit], "default")
    with pytest.raises(InvalidReset, match="channel 'payments'"):
        replay.reset("audit", to_group="billing")
    moves = replay.reset("audit", to_group="billing", channels=["orders"])

    assert [move.channel for move in moves] == ["orders"]


def test_a_reset_of_one_channel_leaves_the_others(connect):
    """`--channel` moves the cursor of that channel only; an unknown channel is refused."""
    session = connect()
    insert(session)
    with transaction.atomic():
        paid = outbox.publish(PaymentTaken(order_id=1))
    drain("audit")
    reset(consumers.audit, "--to-earliest", "--channel", "orders", "--execute")
    at = dict(Cursor.objects.filter(group="audit").values_list("channel", "position"))
    wanted = r"no cursor in channel 'flights'\. Its channels: orders"
    with pytest.raises(CommandError, match=wanted):
        reset(consumers.audit, "--to-earliest", "--channel", "flights", "--execute")

    assert at["payments"] >= paid
    assert at["orders"] < paid - 1


def test_a_group_that_only_the_database_knows_can_be_reset(happened):
    """The code of the group may be gone."""
    flight_log.publish(happened)
    drain(replayed[1])
    Cursor.objects.update(group="retired")
    moves = replay.reset("retired", to_earliest=True)

    assert [move.messages for move in moves] == [len(happened)]


def test_an_unknown_group_cannot_be_reset():
    """The error lists the groups that are known; the exit code is that of wrong usage."""
    with pytest.raises(UnknownGroup, match="Did you mean 'billing'"):
        replay.reset("bilings", to_earliest=True)
    with pytest.raises(CommandError) as error:
        call_command("outbox", "reset", "bilings", "--to-earliest")

    assert error.value.returncode == 2


def test_a_reset_is_recorded(happened, group, settings):
    """Who, what, from where, to where and why, in the transaction of the change."""
    settings.OUTBOX = {"OPERATOR": "ann"}
    flight_log.publish(happened)
    drain(group)
    moves = reset(group, "--to-earliest", "--reason", "wrong sums", "--execute")
    record = OperatorAction.objects.get()
    ranges = [[m["channel"], m["slot_from"], m["slot_to"]] for m in moves]

    assert (record.actor, record.action, record.group) == ("ann", "reset", group.name)
    assert record.details["reason"] == "wrong sums"
    assert record.details["old"] == [[*r, m["old"]] for r, m in zip(ranges, moves, strict=True)]
    assert record.details["new"] == [[*r, m["new"]] for r, m in zip(ranges, moves, strict=True)]


def test_replayed_messages_say_so():
    """`message.replayed` is true up to where the group was before, and false beyond."""
    seen = []
    group = outbox.ConsumerGroup("replay-witness", channels=["witnessed"])
    group.handler("Seen")(lambda payload, message: seen.append(message.replayed))
    publish_raw("witnessed", 3)
    drain(group)
    replay.reset(group, to_earliest=True)
    publish_raw("witnessed", 1)
    drain(group)

    assert seen == [False] * 3 + [True] * 3 + [False]


def publish_raw(channel, count):
    with transaction.atomic():
        return [outbox.publish_raw(channel, "Seen", {}, key=str(n)) for n in range(count)]


def test_parked_messages_above_the_new_position_are_handled_from_the_log():
    """What is parked below it stays parked; nothing is handled twice or lost."""
    group = outbox.ConsumerGroup(
        "replay-parking", channels=["witnessed"], retry=outbox.Retry(max_attempts=1)
    )
    fail, seen = [True], []

    @group.handler("Seen")
    def see(payload, message):
        if fail[0]:
            raise outbox.PermanentError("not now")
        seen.append(message.position)

    positions = publish_raw("witnessed", 4)
    drain(group)
    parked = ParkedMessage.objects.count()
    fail[0] = False
    replay.reset(group, position=positions[1])
    drain(group)

    assert parked == 4
    assert seen == positions[2:]
    assert list(ParkedMessage.objects.values_list("position", flat=True)) == positions[:2]
    assert audit(group).passed


def test_a_sleeping_worker_wakes_up_for_a_reset(happened, connect, settings):
    """A worker without work begins the replay at once, not at its next look at the log."""
    settings.OUTBOX = {"POLL_INTERVAL": 600.0}
    flight_log.publish(happened[:10])
    running = Worker([replayed[1]])
    thread = Background(running.run)
    try:
        wait_until(lambda: Effect.objects.count() == 10)
        session = connect()
        wait_until(lambda: idle_locks(session))
        replay.reset("replayed", to_earliest=True)
        wait_until(lambda: Effect.objects.count() == 20)
    finally:
        running.stop()
        thread.join(120)

    assert running.wakeups.poll_interval == 600


def idle_locks(session):
    return execute(
        session,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint >> 16 = 20297",
    )


def test_resets_at_random_during_a_drain_leave_exact_effects(happened):
    """Each range handles exactly what lies between its resets, in order, and nothing else."""
    generator = random.Random(6)
    positions = flight_log.publish(happened)
    group = replayed[4]
    register([group], "default")
    workers = [Worker([group], batch_size=23) for _ in range(2)]
    threads = [Background(each.run) for each in workers]
    moves = []
    try:
        for _ in range(RESETS):
            enough = Effect.objects.count() + generator.randrange(1, 300)
            wait_until(lambda enough=enough: Effect.objects.count() >= enough or is_done(group))
            target = generator.randrange(positions[0] - 1, positions[-1] + 1)
            moves.append(replay.reset(group, position=target))
        wait_until(lambda: is_done(group))
    finally:
        for each in workers:
            each.stop()
        for thread in threads:
            thread.result()

    slot_of = dict(Message.objects.values_list("position", "slot"))
    by_range = {}
    for position in handled(group.name):
        by_range.setdefault(slot_of[position] // 8192, []).append(position)
    for number in range(4):
        ours = [position for position in positions if slot_of[position] // 8192 == number]
        assert by_range[number] == expected_runs(ours, [move[number] for move in moves])
    assert Order.objects.count() == len(positions)
    assert audit(group).passed


def is_done(group):
    return describe(group).summary.lag == 0


def expected_runs(positions, moves):
    """What a range handles that moves from one place to the next."""
    runs, start = [], 0
    for move in moves:
        runs += [position for position in positions if start < position <= move.old]
        start = move.new
    return runs + [position for position in positions if start < position]


def test_a_reset_overrules_a_leased_batch():
    """A leased group holds no row while its handler works: the reset does not wait for it, and what
    the batch then wants to write is refused."""
    group = outbox.ConsumerGroup("reset-leased", channels=["witnessed"], delivery="at_least_once")
    entered, go_on, seen = threading.Event(), threading.Event(), []

    @group.handler("Seen")
    def see(payload, message):
        seen.append(message.position)
        entered.set()
        assert go_on.wait(120)

    positions = publish_raw("witnessed", 3)
    working = Background(Worker([group]).drain)
    assert entered.wait(120)
    (move,) = replay.reset(group, to_latest=True)
    go_on.set()
    working.result()
    drain(group)

    assert move.old < positions[0]
    assert seen == positions[:1]
    assert Cursor.objects.get(group="reset-leased").position == positions[-1]


def test_skip_moves_past_the_next_message():
    """The failing message is counted as skipped, the ones behind it are handled, and it is
    recorded."""
    Fault.objects.create(group="billing")
    with transaction.atomic():
        bad = outbox.publish(OrderPlaced(order_id=1, note="fragile"))
        good = outbox.publish(OrderPlaced(order_id=1))
    Worker(["billing"]).run_once()
    row = replay.skip("billing", bad, reason="broken by the import")
    drain("billing")
    record = OperatorAction.objects.get()

    assert row.channel == "orders"
    assert handled("billing") == [good]
    assert Cursor.objects.get(group="billing").skipped == 1
    assert audit("billing").passed
    assert (record.action, record.details["reason"]) == ("skip", "broken by the import")
    assert record.details["new"]["position"] == bad


def test_only_the_next_message_can_be_skipped(connect):
    """A message that is done, not next, above the horizon, missing or of another channel stays."""
    session, publisher = connect(), connect()
    first, second = insert(session), insert(session)
    paid = insert(session, channel="payments")
    with pytest.raises(InvalidSkip, match=f"not next: the range has to handle {first}"):
        replay.skip("billing", second, reason="")
    with pytest.raises(InvalidSkip, match="does not read channel 'payments'"):
        replay.skip("billing", paid, reason="")
    with pytest.raises(InvalidSkip, match="no message"):
        replay.skip("billing", last_position(session) + 100, reason="")
    drain("billing")
    with pytest.raises(InvalidSkip, match="is behind the range"):
        replay.skip("billing", first, reason="")
    execute(publisher, "BEGIN")
    insert(publisher)
    above = insert(session)
    with pytest.raises(InvalidSkip, match="above the horizon"):
        replay.skip("billing", above, reason="")

    assert not OperatorAction.objects.exists()


def test_a_file_with_other_content_is_refused(tmp_path):
    """The error names the file and what is wrong with it."""
    path = tmp_path / "positions.csv"
    for text in ("", "a,b\n1,2\n", "channel,slot_from,slot_to,position\norders,0,x,1\n"):
        path.write_text(text)
        with pytest.raises(InvalidReset, match=r"positions\.csv holds no positions"):
            replay.read_file(path)


def test_an_unknown_channel_of_a_group_is_named_with_the_nearest_one():
    """`channels=` of reset, pause and resume takes channels in which the group has a cursor."""
    register([consumers.billing], "default")
    with pytest.raises(
        UnknownChannel, match=r"no cursor in channel 'ordrs'\. Did you mean 'orders'"
    ):
        replay.reset("billing", to_earliest=True, channels=["ordrs"])
