"""The status of groups: what is late, by how much, why, and who holds it."""

import json
import time
from datetime import datetime, timedelta
from datetime import timezone as zone

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import OuterRef
from django.utils import timezone

import outbox
from outbox.consuming import cursors, outcomes
from outbox.consuming.cursors import register
from outbox.exceptions import UnknownGroup
from outbox.models import Cursor, Message
from outbox.operations import pauses, replay, scaling, status
from outbox.operations.sessions import worker_sessions
from tests.shop import consumers
from tests.shop.events import OrderPlaced
from tests.shop.models import Fault
from tests.support.amounts import amount
from tests.support.harness import Background, Gate, backend, drain, execute, insert, value, worker
from tests.support.processes import run_code, wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def publish_aged(seconds):
    """Publish a message that says it was published so long ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO outbox_message (channel, key, type, payload, created_at) VALUES"
            " ('orders', '1', 'OrderPlaced', '{\"order_id\": 1}', clock_timestamp() - %s) RETURNING position",
            [timedelta(seconds=seconds)],
        )
        return cursor.fetchone()[0]


def age(seconds, **more):
    """Let the last commit of all cursors, and the begin of its batch, be so long ago."""
    at = timezone.now() - timedelta(seconds=seconds)
    Cursor.objects.update(last_commit_at=at, last_served_at=at, **more)


def state(group="billing"):
    (found,) = (each for each in status.list_groups() if each.group == group)
    return found


@pytest.fixture
def present(connect):
    """Connect a session that calls itself a worker of the groups."""

    def connect_worker(*groups, name=None):
        session = connect()
        execute(
            session, f"SET application_name = '{name or 'outbox:' + ','.join(groups) + ' host:1'}'"
        )
        return session

    return connect_worker


def test_a_group_with_nothing_pending_is_ok():
    """When everything was handled there is no lag, whether a worker is there or not."""
    publish_orders(3)
    drain("billing")

    assert (state().status, state().lag, state().lag_seconds) == ("ok", 0, 0.0)
    assert state().position <= state().last_position


def test_a_group_without_worker_is_stopped(present):
    """Messages wait and nobody is connected to handle them."""
    register([consumers.billing], "default")
    publish_orders(2)
    present("shipping")

    assert (state().status, state().lag, state().workers) == ("stopped", 2, 0)
    assert state().why == "messages wait and no worker is connected"


def test_a_group_that_takes_all_there_is_is_ok(present):
    """What came after the last batch began is on its way."""
    register([consumers.billing], "default")
    present("billing")
    age(3)
    publish_orders(1)

    assert (state().status, state().workers) == ("ok", 1)


def test_a_group_that_moves_and_leaves_messages_is_behind(present):
    """The last batch was committed just now, and did not take what lay there when it began."""
    present("billing")
    publish_orders(3)
    worker("billing", batch_size=1).run_once()

    assert (state().status, state().lag) == ("behind", 2)


def test_a_group_that_does_not_move_is_stalled(settings, present):
    """A worker is there, messages wait, and nothing was committed for longer than a worker that is
    well may take."""
    settings.OUTBOX = {**settings.OUTBOX, "BATCH_SECONDS": 1.0}
    register([consumers.billing], "default")
    present("billing")
    publish_aged(60)
    age(30)

    assert state().status == "stalled"
    assert state().why.startswith("messages wait and nothing was committed for 30 s; no worker")


def test_a_stalled_group_says_who_holds_the_horizon(settings, present, connect):
    """When the horizon is held back, the reason names the session that does so."""
    settings.OUTBOX = {**settings.OUTBOX, "BATCH_SECONDS": 1.0}
    register([consumers.billing], "default")
    present("billing")
    publisher = connect()
    execute(publisher, "SET application_name = 'nightly import'")
    execute(publisher, "BEGIN")
    insert(publisher)
    publish_aged(60)
    age(30)

    assert f"the horizon is held back by pid {backend(publisher)} 'nightly import'" in state().why


def test_a_slow_handler_may_take_its_time(present, monkeypatch):
    """The time limit of a group's handlers counts into how long it may take to commit."""
    register([consumers.billing], "default")
    present("billing")
    publish_aged(60)
    age(30)
    slow = {"OrderPlaced": outbox.groups.Route("OrderPlaced", OrderPlaced, print, False, 40.0)}
    monkeypatch.setattr(consumers.billing, "routes", lambda channel: slow)

    assert state().status == "behind"


def test_a_paused_group_is_paused_until_its_time(present):
    """A pause explains everything else, and ends by itself."""
    register([consumers.billing], "default")
    present("billing")
    publish_orders()
    Cursor.objects.update(paused_until=timezone.now() + timedelta(hours=1))
    paused = state().status
    Cursor.objects.update(paused_until=timezone.now() - timedelta(seconds=1))

    assert paused == "paused"
    assert state().status != "paused"


def test_a_group_that_retries_is_failing(present):
    """While the message at hand backs off, its group is failing and says why."""
    Fault.objects.create(group="billing")
    publish_orders(1, "fragile")
    worker("billing").run_once()
    present("billing")

    assert (state().status, state().attempts) == ("failing", 1)
    assert "attempt 1 failed: " in state().why
    assert "Broken" in state().why


def test_a_group_below_where_it_was_is_replaying(present):
    """After a reset the group is replaying until it is where it was before."""
    publish_orders(3)
    drain("billing")
    present("billing")
    replay.reset("billing", to_earliest=True)
    replaying = state().status
    drain("billing")

    assert replaying == "replaying"
    assert state().status == "ok"


def test_the_worst_range_speaks_for_its_group(present):
    """One failing range of four makes the group failing; the others are shown as they are."""
    Fault.objects.create(group="crew")
    publish_orders(20, "")
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1, note="fragile"))
    drain("crew")
    present("crew")
    ranges = status.describe("crew").ranges

    assert state("crew").status == "failing"
    assert sorted(each.status for each in ranges) == ["failing", "ok", "ok", "ok"]


def test_lag_is_the_exact_number_of_messages():
    """Messages of other channels and what was handled already do not count."""
    publish_orders(7)
    drain("billing")
    publish_orders(5)
    with transaction.atomic():
        outbox.publish_raw("elsewhere", "Other", {})

    assert (state().lag, state().lag_is_lower_bound) == (5, False)


def test_lag_of_several_ranges_adds_up():
    """Each range counts its own slots; together they are the channel."""
    register([consumers.crew], "default")
    publish_orders(50)

    assert (state("crew").lag, state("crew").lag_is_lower_bound) == (50, False)


def test_lag_says_when_it_is_only_a_bound():
    """Beyond the budget of a look messages are not counted, and the number says so."""
    register([consumers.billing], "default")
    publish_orders(5)
    described = status.describe("billing", lag_budget=3).summary

    assert (described.lag, described.lag_is_lower_bound) == (3, True)


def test_lag_seconds_is_the_age_of_the_oldest_pending_message():
    """The first message after the cursor counts, not a younger or an older one."""
    publish_aged(1000)
    drain("billing")
    publish_aged(70)
    publish_aged(20)

    assert 70 <= state().lag_seconds < 80


def test_the_rate_fades_without_commits():
    """A rate of long ago is not shown as one of today."""
    publish_orders(3)
    drain("billing")
    before = state().rate
    age(300)

    assert before > 0
    assert state().rate < before / 100


def test_workers_are_counted_by_the_groups_they_name(present):
    """A worker of several groups counts for each of them, and for no other."""
    register([consumers.billing, consumers.shipping, consumers.crew], "default")
    present("billing", "shipping")
    present("billing")
    counts = {each.group: each.workers for each in status.list_groups()}

    assert counts == {"billing": 2, "shipping": 1, "crew": 0}


@pytest.mark.parametrize("name", ["größe", "a, b", "two words"])
def test_a_worker_of_a_group_with_an_odd_name_is_counted(present, name):
    """The server keeps only the ASCII of a session's name."""
    register([consumers.billing], "default")
    Cursor.objects.update(group=name)
    present("billing", name)

    assert state(name).workers == 1


def test_a_worker_whose_list_is_cut_may_work_for_any_group(present):
    """Its group is not called stopped, since the list of groups has no more room in the name."""
    register([consumers.billing], "default")
    present(name="outbox:crew,ship... host:1")
    publish_orders()

    assert state().status != "stopped"


def test_a_running_worker_is_seen_with_what_it_has_in_hand(connect, background_worker):
    """The range that a worker handles at this moment names the worker's session."""
    gate = Gate(connect(), "billing")
    publish_orders(1, "gate")
    background_worker("billing")
    (pid,) = wait_until(gate.waiting)
    (held,) = status.describe("billing").ranges
    sessions = worker_sessions()
    gate.open()

    assert held.owner == f"{cursors.holder()}, backend {pid}"
    assert [session.pid for session in sessions] == [pid]


@pytest.fixture
def background_worker():
    """Run a worker in a thread until the test ends."""
    running = []

    def start(*names):
        a_worker = worker(*names)
        running.append((a_worker, Background(a_worker.run)))

    yield start
    for a_worker, thread in running:
        a_worker.stop()
        thread.join(120)


def test_describe_names_the_session_that_holds_the_horizon(connect):
    """Process, application, state, age and last statement of the transaction with the lowest
    floor."""
    register([consumers.billing], "default")
    publish_orders()
    publisher = connect()
    execute(publisher, "SET application_name = 'nightly import'")
    execute(publisher, "BEGIN")
    insert(publisher)
    publish_orders()
    horizon = status.describe("billing").horizon
    holder = horizon.held_by

    assert horizon.horizon == holder.floor == horizon.last_position - 2
    assert (holder.pid, holder.application) == (backend(publisher), "nightly import")
    assert holder.state == "idle in transaction"
    assert "INSERT INTO outbox_message" in holder.query
    assert 0 <= holder.seconds < 30


def test_describe_says_which_channels_are_held_back(connect, capsys):
    """A transaction that published in one channel holds back the groups of that channel: only there it
    is named, with the channels."""
    register([consumers.billing, consumers.packers], "default")
    publisher = connect()
    execute(publisher, "BEGIN")
    value(publisher, "SELECT outbox_publish_v1('packing', NULL, 'PackingRequested', '{}', '{}')")
    publish_orders()
    other, own = (status.describe(name).horizon for name in ("billing", "packers"))
    call_command("outbox", "describe", "packers")

    assert (other.horizon, other.held_by) == (other.last_position, None)
    assert own.horizon == own.last_position - 2
    assert own.held_by.channels == ["packing"]
    assert "only channels packing are held back" in capsys.readouterr().out


def test_describe_names_the_prepared_transaction_that_holds_the_horizon(connect):
    """A prepared transaction has no session; its name and the time of its preparation are shown."""
    register([consumers.billing], "default")
    publisher = connect()
    execute(publisher, "BEGIN")
    insert(publisher)
    execute(publisher, "PREPARE TRANSACTION 'it''s forgotten'")
    try:
        holder = status.describe("billing").horizon.held_by
    finally:
        execute(publisher, "ROLLBACK PREPARED 'it''s forgotten'")

    assert (holder.prepared, holder.pid, holder.state) == ("it's forgotten", None, "prepared")
    assert holder.since is not None


def test_a_group_that_only_the_database_knows_is_listed():
    """The cursor of a group whose code is gone is shown like any other."""
    register([consumers.billing], "default")
    Cursor.objects.update(group="retired")
    publish_orders(2)

    assert state("retired").lag == 2
    assert status.describe("retired").summary.group == "retired"


def test_a_group_that_never_ran_is_described_as_stopped():
    """A declared group without cursor has all messages before it."""
    publish_orders(2)
    summary = status.describe("billing").summary

    assert (summary.status, summary.lag, summary.last_commit) == ("stopped", 2, None)


def test_an_unknown_group_is_refused_with_a_suggestion():
    """Neither declared nor in the database: the error names the nearest one."""
    with pytest.raises(UnknownGroup, match="Did you mean 'billing'"):
        status.describe("biling")


def test_describe_tells_what_operators_did_last():
    """The newest action comes first."""
    register([consumers.billing], "default")
    pauses.pause("billing", reason="deploy")
    pauses.resume("billing")
    done = status.describe("billing").actions

    assert [each.action for each in done] == ["resume", "pause"]
    assert done[1].details["reason"] == "deploy"


@pytest.mark.parametrize(
    ("limits", "past"),
    [
        ({"lag": 3}, []),
        ({"lag": 2}, ["lag 3 is above 2"]),
        ({"lag_seconds": 3600}, []),
        ({"lag_seconds": 0}, ["lag-seconds"]),
        ({"parked": 0, "lag": 100}, []),
    ],
)
def test_a_threshold_is_past_when_the_value_is_above_it(limits, past):
    """A value equal to its threshold is still fine."""
    register([consumers.billing], "default")
    publish_orders(3)
    _, found = status.check("billing", **limits)

    assert [text.startswith(start) for text, start in zip(found, past, strict=True)] == [
        True
    ] * len(past)


def test_fifty_groups_are_listed_in_less_than_a_second():
    """With exact ages, whatever the length of the log: measured in the long form, with a million
    messages."""
    count = amount(10_000, 1_000_000)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO outbox_message (channel, key, type, payload)"
            " SELECT 'channel-' || n %% 5, n::text, 'Thing', '{}' FROM generate_series(1, %s) AS n",
            [count],
        )
        cursor.execute(
            'INSERT INTO outbox_cursor ("group", channel, slot_from, slot_to, position,'
            " counted_from, max_position)"
            " SELECT 'group-' || g, 'channel-' || g %% 5, 0, 32767, p, p, p"
            " FROM generate_series(0, 49) AS g,"
            " LATERAL (SELECT outbox_last_position() - %s + %s / 50 * g) AS at (p)",
            [count, count],
        )
    began = time.monotonic()
    states = status.list_groups()
    seconds = time.monotonic() - began
    print(f"50 groups, {count} messages: {seconds:.2f} s")
    oldest = dict(
        Cursor.objects.annotate(
            since=Message.objects.filter(
                channel=OuterRef("channel"), position__gt=OuterRef("position")
            )
            .order_by("position")
            .values("created_at")[:1]
        ).values_list("group", "since")
    )
    now = timezone.now()

    assert len(states) == 50
    assert seconds < amount(60, 1)
    assert all(
        abs((now - oldest[each.group]).total_seconds() - each.lag_seconds) < 5 for each in states
    )


ODD_CLOCKS = [
    timedelta(hours=-7),
    timedelta(days=-3653),
    timedelta(0),
    timedelta(days=1),
    timedelta(days=3653),
]


@pytest.mark.parametrize("moved", ODD_CLOCKS, ids=str)
@pytest.mark.parametrize("rate", [0.0, 5e-324, 1e-6, 3.0, 1e308])
def test_any_time_of_the_last_commit_has_a_status(moved, rate):
    """A group that was idle for years, or a clock that was set back, breaks no status and no claim."""
    publish_orders(3)
    drain("billing")
    at = timezone.now() + moved
    Cursor.objects.update(last_commit_at=at, last_served_at=at, rate=rate)
    publish_orders(2)
    described, (checked, _) = status.describe("billing").summary, status.check("billing", lag=1)
    if outcomes.LEAST_RATE <= rate <= 1000:  # as a worker stores it
        scaling.scale("billing", 2)
    drain("billing")

    assert described.lag == checked.lag == 2
    assert 0 <= described.rate <= rate
    assert described.lag_seconds >= 0
    assert all(
        cursor.rate == 0 or cursor.rate >= outcomes.LEAST_RATE for cursor in handled_cursors()
    )


def handled_cursors():
    """The cursors of the group whose last commit is new."""
    return [each for each in Cursor.objects.filter(group="billing") if each.processed]


@pytest.mark.parametrize("until", [datetime.max, datetime(9999, 12, 31, 23, 59)])
@pytest.mark.parametrize("hours", [-12, 0, 14])
def test_a_pause_to_the_end_of_time_can_be_read_back(until, hours):
    """An end that lies beyond the last year of Python's calendar is the end of all pauses."""
    register([consumers.billing], "default")
    pauses.pause("billing", until=until.replace(tzinfo=zone(timedelta(hours=hours))))

    assert state().status == "paused"
    assert all(
        cursor.paused_until <= pauses.FOREVER
        for cursor in Cursor.objects.all()
        if cursor.paused_until
    )


STYLES = [
    ("German, DMY", "postgres_verbose", "Pacific/Kiritimati"),
    ("SQL, MDY", "sql_standard", "America/St_Johns"),
    ("Postgres, DMY", "iso_8601", "Asia/Kathmandu"),
    ("ISO, YMD", "postgres", "UTC"),
]


WORDS = [
    "consume billing --drain",
    "outbox groups",
    "outbox describe billing",
    "outbox check billing --lag 9",
    "outbox tail --json",
    "outbox pause billing --until 2999-01-31T12:00:00+00:00",
    "outbox resume billing",
    "outbox audit billing",
    "outbox parked billing --json",
    "outbox reset billing --by-duration P1D",
    "outbox reset billing --to-datetime 2000-01-31T12:00:00+00:00",
]
IN_ONE_PROCESS = f"""
import io, json
from django.core.management import call_command
results = {{}}
for words in {WORDS!r}:
    output = io.StringIO()
    call_command(*words.split(), stdout=output)
    results[words] = output.getvalue()
print(json.dumps(results))
"""


@pytest.mark.parametrize(("dates", "intervals", "time_zone"), STYLES, ids=[s[0] for s in STYLES])
def test_no_style_of_dates_and_intervals_disturbs_a_command(dates, intervals, time_zone):
    """Whatever the database sets for its sessions, messages are handled and every verb can tell of them."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    settings = {"DateStyle": dates, "IntervalStyle": intervals, "TimeZone": time_zone}
    with connection.cursor() as cursor:
        for setting, value in settings.items():
            cursor.execute(f"ALTER DATABASE {name} SET {setting} TO %s", [value])
    try:
        publish_orders(2)
        done = run_code(IN_ONE_PROCESS)
    finally:
        with connection.cursor() as cursor:
            for setting in settings:
                cursor.execute(f"ALTER DATABASE {name} RESET {setting}")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])
    ages = [json.loads(line)["created_at"] for line in written["outbox tail --json"].splitlines()]

    assert ages
    assert all(
        abs(timezone.now() - datetime.fromisoformat(each)) < timedelta(minutes=10)
        for each in ages[-2:]
    )
    assert " 2 messages" not in written["outbox describe billing"]
