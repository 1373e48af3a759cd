"""Groups and channels that left the code: shown, waited for by nobody, and forgotten."""

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

import outbox
from outbox.consuming.cursors import register
from outbox.exceptions import InvalidGroup, UnknownGroup
from outbox.models import Cursor, OperatorAction, ParkedMessage
from outbox.operations import status
from outbox.operations.forgetting import forget
from outbox.testing import isolated_groups
from tests.support.harness import drain

pytestmark = pytest.mark.django_db(transaction=True)


def publish(channel):
    with transaction.atomic():
        return outbox.publish_raw(channel, "Told", {})


@pytest.fixture
def former():
    """A group that read two channels in the last release, and reads one now; it has parked in both."""
    with isolated_groups(empty=True):
        old = outbox.ConsumerGroup(
            "former",
            channels=["kept", "taken"],
            start="earliest",
            retry=outbox.Retry(max_attempts=1),
        )

        @old.handler("Told")
        def fail(payload, message):
            raise ValueError("no")

        publish("kept"), publish("taken")
        drain(old)
    with isolated_groups(empty=True):
        new = outbox.ConsumerGroup("former", channels=["kept"], start="earliest")
        new.handler("Told")(lambda payload, message: None)
        yield new


def test_a_channel_taken_from_a_group_is_undeclared_and_holds_up_nothing(former):
    """Its range has the status `undeclared`; the group is ok, no threshold is passed, nothing waits for it."""
    publish("taken")
    position = publish("kept")
    drain(former)
    described = status.describe("former")
    shown = {each.channel: each.status for each in described.ranges}

    assert shown == {"kept": "ok", "taken": "undeclared"}
    assert (described.summary.status, described.summary.lag) == ("ok", 0)
    assert "outbox forget former --channel taken" in described.ranges[1].why
    assert status.check("former", lag=0)[1] == []
    assert outbox.wait_for("former", position, timeout=0)


def test_a_group_that_left_the_code_raises_no_alarm(former):
    """All its ranges are `undeclared`; `check` is past no threshold, though messages wait and are parked."""
    publish("kept")
    with isolated_groups(empty=True):
        (shown,) = status.list_groups()
        _, past = status.check("former", lag=0, parked=0, lag_seconds=0)

    assert (shown.group, shown.status, shown.lag) == ("former", "undeclared", 1)
    assert past == []


def test_a_dry_run_tells_and_deletes_nothing(former):
    """It returns what the group has in each channel."""
    found = forget("former", execute=False)

    assert [(each.channel, each.ranges, each.parked) for each in found] == [
        ("kept", 1, 1),
        ("taken", 1, 1),
    ]
    assert Cursor.objects.count() == ParkedMessage.objects.count() == 2
    assert not OperatorAction.objects.filter(action="forget").exists()


def test_one_channel_is_forgotten_with_its_parked_messages(former):
    """The other channel stays as it is; the action log has the positions and the reason."""
    (position,) = Cursor.objects.filter(channel="taken").values_list("position", flat=True)
    forget("former", channel="taken", reason="moved")
    action = OperatorAction.objects.get(action="forget")

    assert [cursor.channel for cursor in Cursor.objects.all()] == ["kept"]
    assert [parked.channel for parked in ParkedMessage.objects.all()] == ["kept"]
    assert action.details == {
        "old": [["taken", 0, 32767, position]],
        "new": None,
        "reason": "moved",
    }


def test_a_forgotten_group_is_unknown(former):
    """Nothing is left of it, once the code does not declare it."""
    with isolated_groups(empty=True):
        forget("former")
        with pytest.raises(UnknownGroup):
            forget("former")

    assert not Cursor.objects.exists()
    assert not ParkedMessage.objects.exists()


def test_a_declared_group_is_forgotten_by_force_only(former, capsys):
    """The refusal names the channel; the dry run says the same."""
    with pytest.raises(CommandError, match=r"is declared in kept.*--force"):
        call_command("outbox", "forget", "former", "--execute")
    assert Cursor.objects.count() == 2
    call_command("outbox", "forget", "former")
    assert "Else --execute needs --force." in capsys.readouterr().err

    call_command("outbox", "forget", "former", "--execute", "--force")

    assert not Cursor.objects.exists()


def test_a_group_that_a_worker_serves_is_forgotten_by_force_only(former, connect):
    """A worker of another release: the refusal names its host and process."""
    session = connect()
    session.cursor().execute("SET application_name = 'outbox:billing,former box-4711'")
    with isolated_groups(empty=True):
        with pytest.raises(InvalidGroup, match=r"has a worker \(box-4711\).*--force"):
            forget("former")
        assert Cursor.objects.count() == 2
        forget("former", force=True)

    assert not Cursor.objects.exists()


def test_a_channel_without_a_cursor_cannot_be_forgotten(former):
    """A misspelt channel is an error that names it."""
    register([former], "default")
    with pytest.raises(InvalidGroup, match="no cursor in channel 'takn'"):
        forget("former", channel="takn")

    assert Cursor.objects.count() == 2
