"""Consumer groups: their options, their handlers, and what is refused at the declaration."""

from __future__ import annotations

import datetime
import functools
import types

import pytest
from asgiref.sync import async_to_sync

import outbox
from outbox import groups
from outbox.exceptions import (
    DuplicateHandler,
    InvalidChannel,
    InvalidGroup,
    InvalidTypeName,
    UnknownGroup,
)
from outbox.models import Cursor
from outbox.testing import isolated_groups
from tests.library.models import Author
from tests.shop.events import OrderPlaced, OrderShipped, PaymentTaken
from tests.support.processes import manage


@pytest.fixture
def declare():
    """Declare groups that are forgotten afterwards, as if there were no others."""
    with isolated_groups(empty=True):
        yield lambda name="g", channels=("orders",), **options: outbox.ConsumerGroup(
            name, channels, **options
        )


def test_the_defaults_are_safe(declare):
    """A group takes the whole channel in order, exactly once, and parks what fails five times."""
    group = declare(channels=["orders", "payments", "orders"])

    assert group.channels == ("orders", "payments")
    assert (group.start, group.parallelism, group.delivery) == ("earliest", 1, "exactly_once")
    assert (group.on_failure, group.retry) == ("park", outbox.Retry())
    assert (group.timeout, group.lease, group.savepoint_per_message) == (None, 30.0, False)
    assert repr(group) == "<ConsumerGroup 'g' of orders, payments>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "'' is not a group name: use 1 to 63 characters without NUL."),
        (
            {"name": "x" * 64},
            f"'{'x' * 64}' is not a group name: use 1 to 63 characters without NUL.",
        ),
        ({"name": None}, "None is not a group name: use 1 to 63 characters without NUL."),
        ({"name": "a\0"}, "'a\\x00' is not a group name: use 1 to 63 characters without NUL."),
        ({"channels": []}, "Group 'g': channels=[]: use a list of channel names, at least one."),
        (
            {"channels": "orders"},
            "Group 'g': channels='orders' is one text: use a list, channels=['orders'].",
        ),
        ({"channels": None}, "channels=None: use a list of channel names, at least one."),
        ({"start": "latets"}, "Group 'g': start='latets'; use \"earliest\" or \"latest\"."),
        ({"start": ["latest"]}, "Group 'g': start=['latest']; use \"earliest\" or \"latest\"."),
        (
            {"retry": 5},
            "Group 'g': retry=5; use an outbox.Retry, such as outbox.Retry(max_attempts=3).",
        ),
        ({"on_failure": "explode"}, 'on_failure=\'explode\'; use "park", "halt" or "skip".'),
        ({"delivery": "once"}, 'delivery=\'once\'; use "exactly_once" or "at_least_once".'),
        ({"parallelism": 0}, "Group 'g': parallelism=0; use a whole number from 1 to 1024."),
        ({"parallelism": 1025}, "Group 'g': parallelism=1025; use a whole number from 1 to 1024."),
        ({"parallelism": "4"}, "Group 'g': parallelism='4'; use a whole number from 1 to 1024."),
        ({"parallelism": True}, "Group 'g': parallelism=True; use a whole number from 1 to 1024."),
        ({"lease": 0}, "Group 'g': lease=0; use seconds above 0, at most a year."),
        ({"lease": "30"}, "Group 'g': lease='30'; use seconds above 0, at most a year."),
        ({"lease": float("nan")}, "Group 'g': lease=nan; use seconds above 0, at most a year."),
        ({"timeout": 0}, "Group 'g': timeout=0; use seconds above 0, or None."),
        ({"timeout": -1}, "Group 'g': timeout=-1; use seconds above 0, or None."),
    ],
)
def test_a_wrong_option_is_refused_at_once(declare, options, message):
    """The message names the group, the value and what is allowed; the group is not registered."""
    with pytest.raises(InvalidGroup) as caught:
        declare(**options)

    assert message in str(caught.value)
    assert groups.all_groups() == []


@pytest.mark.parametrize("channel", ["", "x" * 64, 5, "a\0"])
def test_a_wrong_channel_is_refused_at_once(declare, channel):
    """A group's channels are checked like those of events; the error names the group."""
    with pytest.raises(InvalidChannel, match=r"^Group 'g': .* use text of 1 to 63 characters"):
        declare(channels=["orders", channel])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_attempts", value) for value in (-1, 1.5, "5", True)),
        *(("base", value) for value in (-0.1, "1", float("nan"))),
        *(("factor", value) for value in (0, 0.5, 1001, float("inf"))),
        *(("max_delay", value) for value in (-1, float("inf"))),
        *(("max_seconds", value) for value in (-1, "60")),
    ],
)
def test_a_wrong_retry_is_refused_at_once(option, value):
    """Numbers that would make no delay, or none that can be waited for."""
    with pytest.raises(InvalidGroup, match=rf"^Retry: {option}=.*; use .*\.$"):
        outbox.Retry(**{option: value})


def test_delays_grow_up_to_a_limit():
    """Attempt by attempt by the factor, never above the limit, however often it failed."""
    retry = outbox.Retry(max_attempts=0, base=0.5, factor=1000, max_delay=300, jitter=False)

    assert [retry.delay(attempts) for attempts in (1, 2, 3, 10**9)] == [0.5, 300, 300, 300]
    assert not retry.is_exhausted(10**9, datetime.timedelta(days=9999))


def test_full_jitter_stays_below_the_delay():
    """With jitter a delay lies between 0 and its value, and is not always the same."""
    retry = outbox.Retry(base=8)
    delays = {retry.delay(1) for _ in range(50)}

    assert len(delays) > 10
    assert all(0 <= delay <= 8 for delay in delays)


def test_a_group_gives_up_by_count_or_by_time():
    """After `max_attempts` tries, or `max_seconds` after the first failure."""
    by_count, by_time = outbox.Retry(max_attempts=3), outbox.Retry(max_attempts=0, max_seconds=60)
    second = datetime.timedelta(seconds=1)

    assert [by_count.is_exhausted(attempts, second) for attempts in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    assert [by_time.is_exhausted(99, second * seconds) for seconds in (59, 60)] == [False, True]


def test_a_handler_stays_a_plain_function(declare):
    """The decorators return the function, so that a test can call it."""
    group = declare()

    @group.handler(OrderPlaced)
    def handle(event, message):
        return event

    assert handle(1, None) == 1
    assert group.routes("orders")["OrderPlaced"].handler is handle
    assert not group.routes("payments")


def test_a_decorator_without_parentheses_is_refused(declare):
    """`@group.handler` over a function would register nothing."""
    group = declare()
    with pytest.raises(
        InvalidGroup,
        match=r"Group 'g': the decorator of .*handle\(event, message\) names no event: write @",
    ):

        @group.handler
        def handle(event, message):
            pass

    assert not group.routes("orders")


async def coroutine(event, message):
    pass


def generator(event, message):
    yield


async def async_generator(event, message):
    yield


class AsyncCallable:
    async def __call__(self, event, message):
        pass


@pytest.mark.parametrize(
    "handler",
    [
        coroutine,
        generator,
        async_generator,
        AsyncCallable(),
        functools.partial(coroutine),
        "text",
        None,
    ],
)
@pytest.mark.parametrize("decorator", ["handler", "batch_handler"])
def test_a_handler_that_would_not_run_is_refused(declare, handler, decorator):
    """Calling a coroutine function only makes a coroutine: each message would be lost in silence."""
    group = declare()
    with pytest.raises(
        InvalidGroup, match="a handler is a plain function; make one of a coroutine"
    ):
        getattr(group, decorator)(OrderPlaced)(handler)

    assert not group.routes("orders")


@pytest.mark.parametrize("target", [int, object(), None, outbox.Event, 5, outbox.Change[Author]])
def test_only_events_changes_and_type_names_can_be_handled(declare, target):
    """Refused at the declaration, with what can be named instead, or with the channel to add."""
    with pytest.raises(InvalidGroup, match=r"name an outbox\.Event subclass|add the channel"):
        declare().handler(target)


def test_an_event_of_another_channel_is_refused(declare):
    """The group would never see it: the message names the channel to add."""
    with pytest.raises(InvalidGroup) as caught:
        declare().handler(PaymentTaken)

    assert str(caught.value) == (
        "Group 'g' handles PaymentTaken of channel 'payments' but reads only orders: add the channel."
    )


def test_an_empty_type_name_is_refused(declare):
    """No message has it."""
    with pytest.raises(InvalidTypeName):
        declare().handler("")


@pytest.mark.parametrize("timeout", [0, -1, "5", float("nan")])
def test_a_wrong_timeout_of_a_handler_is_refused(declare, timeout):
    """Seconds above 0."""
    with pytest.raises(InvalidGroup, match=r"^Group 'g': timeout=.*; use seconds above 0\.$"):
        declare().handler(OrderPlaced, timeout=timeout)


def test_a_type_has_one_handler(declare):
    """A second one is refused with the name of the first, whether by class or by name."""
    group = declare()
    group.handler(OrderPlaced)(first_handler)
    group.handler("OrderPlaced")(first_handler)
    with pytest.raises(DuplicateHandler) as caught:
        group.batch_handler(OrderPlaced)(second_handler)

    assert "Group 'g' already handles 'OrderPlaced' with tests.test_groups.first_handler" in str(
        caught.value
    )
    assert "declare a second group" in str(caught.value)


def test_a_second_handler_of_the_same_name_is_refused(declare):
    """A function that was copied with its name would take the place of the first without a word."""
    group = declare()
    group.handler(OrderPlaced)(first_handler)
    copied = types.FunctionType(
        first_handler.__code__.replace(co_firstlineno=1), globals(), "first_handler"
    )
    with pytest.raises(DuplicateHandler) as caught:
        group.handler(OrderPlaced)(copied)

    line = first_handler.__code__.co_firstlineno
    assert f"with tests.test_groups.first_handler (line {line}): one handler" in str(caught.value)


def first_handler(event, message):
    pass


def second_handler(event, message):
    pass


def test_a_name_stands_for_the_type_in_every_channel(declare):
    """A handler by name gets the type of all channels of the group; an event class has one."""
    group = declare(channels=["orders", "payments"])
    group.handler("Imported")(first_handler)
    group.handler(OrderShipped)(second_handler)

    assert set(group.routes("orders")) == {"Imported", "OrderShipped"}
    assert set(group.routes("payments")) == {"Imported"}


def test_an_unknown_group_is_named_with_the_nearest(declare):
    """All known groups are listed and the nearest is suggested."""
    declare("billing")
    declare("shipping")
    with pytest.raises(UnknownGroup) as caught:
        groups.get("biling")

    assert str(caught.value) == (
        "There is no consumer group 'biling'. Did you mean 'billing'? Known groups: billing, shipping."
    )
    assert caught.value.known == ["billing", "shipping"]


def test_without_any_group_the_way_to_one_is_told(declare):
    """The list of known groups says where groups are declared."""
    with pytest.raises(
        UnknownGroup, match=r"Known groups: none: declare one in an app's consumers\.py"
    ):
        groups.get("billing")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "command",
    [
        ["consume"],
        ["outbox", "describe"],
        ["outbox", "reset", "--to-earliest"],
        ["outbox", "pause"],
    ],
)
def test_an_unknown_group_on_the_command_line_is_a_usage_error(command):
    """Exit code 2, the nearest name, all names, and no traceback."""
    refused = manage(*command, "biling")

    assert refused.returncode == 2
    assert "There is no consumer group 'biling'. Did you mean 'billing'?" in refused.stderr
    assert "Known groups: audit, billing" in refused.stderr
    assert "Traceback" not in refused.stderr


def module(code):
    """Run code as the body of a module."""
    exec(compile(code, "declared.py", "exec"), vars(types.ModuleType("declared")))


@pytest.mark.parametrize(
    "second",
    [
        "import outbox; outbox.ConsumerGroup('g', ['payments'])",
        "import outbox\noutbox.ConsumerGroup('g', ['orders'])",
    ],
)
def test_two_groups_of_one_name_are_noticed(declare, second):
    """They would share one cursor: different channels, or the same ones at another place."""
    module("import outbox; outbox.ConsumerGroup('g', ['orders'])")
    module(second)

    ((first, last),) = groups.duplicates()
    assert first.name == last.name == "g"
    assert groups.get("g") is last


def test_the_same_declaration_twice_is_one_group(declare):
    """A module that is imported again declares the same group; so does a function."""
    for _ in range(2):
        module("import outbox; outbox.ConsumerGroup('g', ['orders'])")
        declare("in-a-function")

    assert groups.duplicates() == []


@pytest.mark.django_db
@pytest.mark.usefixtures("in_atomic")
def test_a_type_without_handler_is_skipped_and_counted(witness):
    """Types that nobody handles are moved past and counted; they hold nothing up."""
    seen = witness("groups-partial", "orders").of(OrderShipped)
    outbox.publish_many([OrderPlaced(1), OrderShipped(2), OrderPlaced(3), OrderPlaced(4)])

    assert seen.drain() == [OrderShipped(2)]
    cursor = Cursor.objects.get(group="groups-partial")
    assert (cursor.processed, cursor.skipped, cursor.parked) == (1, 3, 0)


def test_a_coroutine_function_behind_a_decorator_is_refused():
    """Its decorator hides that calling it runs nothing; async_to_sync makes a plain function of it."""

    def decorated(function):
        @functools.wraps(function)
        def call(*arguments):
            return function(*arguments)

        return call

    async def work(event, message):
        pass

    with isolated_groups():
        group = outbox.ConsumerGroup("decorated", ["orders"])
        with pytest.raises(InvalidGroup, match="async_to_sync"):
            group.handler("A")(decorated(work))
        with pytest.raises(InvalidGroup, match="async_to_sync"):
            group.handler("A")(decorated(functools.partial(work)))
        group.handler("A")(async_to_sync(work))
        group.handler("B")(decorated(async_to_sync(work)))


def test_a_group_tries_for_minutes_by_default():
    """Nine tries in two to four minutes; twelve, in nine to 19, where handlers call other systems."""
    with isolated_groups():
        exact = outbox.ConsumerGroup("exact", ["orders"]).retry
        calls = outbox.ConsumerGroup("calls", ["orders"], delivery="at_least_once").retry
    spans = [
        (sum(each.delay(n) for n in range(1, each.max_attempts)), each.max_attempts)
        for each in (exact, calls)
    ]

    assert 127 <= spans[0][0] <= 256
    assert 555 <= spans[1][0] <= 1112
    assert [attempts for _, attempts in spans] == [9, 12]
