"""Promise 10: a failing message never disappears, never blocks other keys, and never lets a later
message of its key overtake it."""

import pytest

import outbox
from outbox.models import Cursor
from outbox.operations import redrives
from tests.support.failing import account
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_message_that_goes_on_failing_is_parked(script):
    """After the last try the message is kept aside with its error, and the cursor is past it."""
    billing = script()
    (position,) = publish("a")
    billing.faults[position] = ValueError("no such order")
    billing.drain()
    parked = redrives.list_parked(billing.group).get()
    again = billing.drain()

    assert billing.effects() == []
    assert billing.times() == {position: 3}
    assert (parked.position, parked.reason, parked.attempts) == (position, "failed", 3)
    assert parked.error_class == "builtins.ValueError"
    assert parked.error == "no such order"
    assert "tests/support/failing.py" in parked.traceback
    assert parked.first_failed_at <= parked.last_failed_at <= parked.parked_at
    assert billing.cursor().position >= position
    assert again == 0
    assert account("scripted") == (1, 1)


def test_later_messages_of_its_key_are_parked_behind_it(script):
    """While a message is parked, the later ones of its key are not handled but parked in order;
    other keys and messages without a key go on."""
    billing = script()
    first = publish("a", "b", "a", None, "c")
    billing.faults[first[0]] = ValueError()
    billing.drain()
    second = publish("a", "b")
    billing.drain()

    assert billing.parked() == [(first[0], "failed"), (first[2], "blocked"), (second[0], "blocked")]
    assert billing.effects() == [first[1], first[3], first[4], second[1]]
    assert account("scripted") == (7, 7)


def test_a_redrive_returns_the_key_to_the_live_flow(script):
    """The parked messages are handled in order, and then the workers handle the key again."""
    billing = script()
    first = publish("a", "b", "a")
    billing.faults[first[0]] = ValueError()
    billing.drain()
    billing.faults.clear()
    redriven = redrives.redrive(billing.group, key="a")
    (later,) = publish("a")
    billing.drain()

    assert (redriven.handled, redriven.failed, redriven.remaining) == (2, (), 0)
    assert billing.parked() == []
    assert billing.effects() == [first[1], first[0], first[2], later]
    assert billing.cursor().parked == 0
    assert account("scripted") == (4, 4)


def test_a_message_without_key_stands_alone(script):
    """A parked message without a key holds up no other one."""
    billing = script()
    positions = publish(None, None, "a", None)
    billing.faults[positions[0]] = ValueError()
    billing.drain()

    assert billing.parked() == [(positions[0], "failed")]
    assert billing.effects() == positions[1:]


def test_while_it_backs_off_only_its_range_waits(script):
    """Before the last try a failing message holds its slot range, and no other one."""
    crew = script(parallelism=2, retry=outbox.Retry(base=3600, jitter=False))
    positions = publish(*[str(number) for number in range(20)])
    crew.faults["7"] = ValueError()
    crew.drain()
    waiting = Cursor.objects.get(group="scripted", attempts=1)
    other = Cursor.objects.exclude(pk=waiting.pk).get(group="scripted")

    assert waiting.failed_position == positions[7]
    assert waiting.position < positions[7]
    assert other.position >= positions[-1]
    assert crew.parked() == []


def test_a_group_that_halts_never_gives_up(script):
    """With on_failure="halt" the message is tried for ever, and nothing behind it is handled."""
    strict = script(on_failure="halt", retry=outbox.Retry(max_attempts=3, base=3600))
    positions = publish("a", "b")
    strict.faults[positions[0]] = outbox.PermanentError()
    for _ in range(7):
        strict.drain()
        Cursor.objects.update(retry_at=None)
    meanwhile = strict.effects()
    strict.faults.clear()
    strict.drain()

    assert meanwhile == []
    assert [message.attempt for message in strict.runs[:7]] == [1, 2, 3, 4, 5, 6, 7]
    assert strict.effects() == positions
    assert strict.parked() == []


def test_a_group_that_skips_counts_what_it_skipped(script, caplog):
    """With on_failure="skip" the message is passed over; it is counted and logged."""
    careless = script(on_failure="skip")
    positions = publish("a", "a")
    careless.faults[positions[0]] = ValueError("no such order")
    careless.drain()
    cursor = careless.cursor()

    assert careless.effects() == positions[1:]
    assert careless.parked() == []
    assert (cursor.processed, cursor.skipped, cursor.parked) == (1, 1, 0)
    assert "skipped): ValueError: no such order" in caplog.text
    assert account("scripted") == (2, 2)
