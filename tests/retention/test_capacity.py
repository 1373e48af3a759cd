"""What channels take and how fast they grow, and when a disk allowance is used up."""

from __future__ import annotations

import json

import pytest
from django.core.management import CommandError, call_command

from outbox.retention.capacity import Capacity, ChannelCapacity, capacity
from tests.retention.conftest import empty_log, run
from tests.retention.test_maintenance import publish

pytestmark = pytest.mark.django_db(transaction=True)


def channel(per_day, *, size=0, limit=None):
    return ChannelCapacity("c", "rule", 1, size, per_day, None, limit)


@pytest.mark.parametrize(
    ("channels", "days"),
    [
        ([channel(10, size=100)], 90),
        ([channel(10, size=60), channel(20, size=40)], 30),
        ([channel(10, size=60), channel(20, size=40, limit=240)], 70),
        ([channel(10, size=100, limit=500)], None),
        ([channel(10, size=100, limit=50)], None),
        ([channel(0, size=100)], None),
        ([], None),
    ],
)
def test_the_forecast_adds_what_grows_until_its_rule_holds_it(channels, days):
    """From 100 bytes to a budget of 1,000: straight on, and no further than a duration allows."""
    assert Capacity(100, False, channels).days_until(1000) == days


def test_a_budget_that_is_used_up_has_no_days_left():
    """Also when nothing grows any more."""
    assert Capacity(100, False, [channel(10, size=100)]).days_until(50) == 0
    assert Capacity(100, False, [channel(10, size=100, limit=50)]).days_until(50) == 0


@pytest.fixture
def ten_days(small_log, settings):
    """A message of each channel every hour or so for ten days, of equal size."""
    settings.OUTBOX = {
        "CHANNELS": {"orders": {"keep": "5 days"}, "prices": {"keep": "latest"}},
    }
    empty_log(size=100_000)
    run(
        "INSERT INTO outbox_message (channel, key, type, payload, created_at) "
        "SELECT (ARRAY['orders', 'prices', 'ledgers'])[1 + n %% 3], 'k', 'Made', '{}', "
        "clock_timestamp() - make_interval(secs => 864000.0 * (1 - n / 30000.0)) "
        "FROM generate_series(1, %s) AS n",
        30_000,
    )


def test_channels_have_their_size_their_growth_and_what_goes(ten_days):
    """A third each; seven days of ten count as growth; half of the orders are past their rule."""
    found = capacity("default")
    by_name = {each.channel: each for each in found.channels}
    orders = by_name["orders"]

    assert {each.messages for each in found.channels} == {10_000}
    assert orders.bytes == pytest.approx(found.bytes / 3, rel=0.01)
    assert orders.bytes_per_day == pytest.approx(orders.bytes / 10, rel=0.01)
    assert orders.removable == pytest.approx(orders.bytes / 2, rel=0.01)
    assert orders.limit == pytest.approx(orders.bytes / 2, rel=0.01)
    assert by_name["ledgers"].removable == 0
    assert by_name["prices"].removable is None


def test_segments_forecasts_with_the_rules(ten_days, capsys):
    """For people and as JSON; a budget that is exceeded is said to be."""
    call_command("outbox", "segments", "--budget", "50GB")
    shown = capsys.readouterr()
    call_command("outbox", "segments", "--budget", "1MB")
    over = capsys.readouterr().err
    call_command("outbox", "segments", "--budget", "1GB", "--json")
    document = json.loads(capsys.readouterr().out)

    assert "orders   5 days      10000" in shown.out
    assert "MB are published in a day" in shown.err
    assert "the budget lasts for more than 3,650 days" in shown.err
    assert "MB over the budget" in over
    assert document["days"] > 100
    assert {each["channel"] for each in document["capacity"]["channels"]} == {
        "orders",
        "prices",
        "ledgers",
    }


def test_a_log_of_less_than_an_hour_has_no_forecast(small_log, capsys):
    """A burst at the beginning would be taken for a rate."""
    publish(300)

    call_command("outbox", "segments", "--budget", "50GB")

    shown = capsys.readouterr()
    assert "too young for a forecast" in shown.err
    assert "MB are published" not in shown.err


@pytest.mark.parametrize("text", ["lots", "-5GB", "50 potatoes", ""])
def test_a_budget_that_is_no_size_is_refused(text):
    """The error shows what one looks like."""
    with pytest.raises(CommandError, match="is not a size like 50GB"):
        call_command("outbox", "segments", f"--budget={text}")
