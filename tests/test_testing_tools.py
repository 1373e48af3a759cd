"""The tools for tests of projects: inside plain `TestCase`, and as a pytest fixture."""

import subprocess
import sys
from decimal import Decimal

import pytest
from django.db import transaction
from django.test import TestCase

import outbox
from outbox.exceptions import UndecodableMessage
from outbox.models import Cursor, Message
from outbox.testing import drain, isolated_groups, published
from tests.shop.events import OrderPlaced, PaymentTaken
from tests.shop.models import Effect
from tests.support.harness import handled
from tests.support.processes import ROOT, environment


def place_order(order_id=1, note=""):
    """The business code under test."""
    with transaction.atomic():
        return outbox.publish(OrderPlaced(order_id=order_id, note=note), headers={"actor": "web"})


def fail(event, message):
    raise ZeroDivisionError("division by zero")


class InsideATestCase(TestCase):
    """Everything here happens in one transaction that is rolled back."""

    def test_published_lists_what_the_test_published(self):
        """In order, with position, channel, type, key, payload, headers and time."""
        positions = [place_order(1), place_order(2)]
        (first, second) = published()

        assert [first.position, second.position] == positions
        assert (first.channel, first.type, first.key) == ("orders", "OrderPlaced", "1")
        assert first.payload == {"order_id": 1, "note": ""}
        assert first.headers == {"actor": "web"}
        assert first.created_at <= second.created_at

    def test_a_block_lists_what_it_published(self):
        """What was published before it or after it does not count."""
        place_order(1)
        with published() as messages:
            place_order(2)
        place_order(3)

        assert [message.key for message in messages] == ["2"]
        assert [message.key for message in published()] == ["1", "2", "3"]

    def test_nothing_of_the_test_before_is_left(self):
        """The log is empty when a test begins."""
        assert not published()
        assert repr(published()) == "<published: nothing>"

    def test_rolled_back_messages_are_not_listed(self):
        """A message exists if and only if its savepoint is kept."""
        with published() as messages:
            place_order(1)
            try:
                with transaction.atomic():
                    outbox.publish(OrderPlaced(order_id=2))
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

        assert [message.key for message in messages] == ["1"]

    def test_messages_are_found_by_what_they_are(self):
        """By event class or type name, channel, key and payload; of a mapping, the given keys."""
        place_order(1, note="a")
        place_order(2, note="b")
        with transaction.atomic():
            outbox.publish(PaymentTaken(order_id=1))
        found = published()

        assert len(found.matching(OrderPlaced)) == len(found.matching("OrderPlaced")) == 2
        assert len(found.matching(channel="payments")) == 1
        assert len(found.matching(key=1)) == len(found.matching(key="1")) == 2
        assert found.one(OrderPlaced, payload={"note": "b"}).key == "2"
        assert found.one(payload={"order_id": 1, "note": "a"}).type == "OrderPlaced"
        assert found.matching(payload={"missing": None}) == []

    def test_values_are_compared_as_in_json(self):
        """A Decimal is text there, a tuple a list."""
        with transaction.atomic():
            outbox.publish_raw("prices", "Changed", {"price": Decimal("9.90"), "sizes": (1, 2)})

        assert published().one(payload={"price": Decimal("9.90"), "sizes": (1, 2)})

    def test_events_come_back_decoded(self):
        """They are equal to those that were published."""
        place_order(1)
        with transaction.atomic():
            outbox.publish(PaymentTaken(order_id=1))

        assert published().events_of(PaymentTaken) == [PaymentTaken(order_id=1)]

    def test_a_wrong_number_of_messages_is_explained(self):
        """The error lists what was published instead."""
        place_order(1)
        with self.assertRaises(AssertionError) as caught:
            published().one("OrderShipped")

        assert "0 messages fit OrderShipped , not 1" in str(caught.exception)
        assert "orders OrderPlaced '1'" in str(caught.exception)

    def test_drain_handles_what_the_test_published(self):
        """Although the transaction is never committed."""
        positions = [place_order(1), place_order(2)]

        assert drain("billing") == 2
        assert handled("billing") == positions
        assert drain("billing") == 0

    def test_a_forgotten_atomic_is_found(self):
        """The block of the test case is not the code's own, as with Django's durable=True."""
        for publish in (
            lambda: outbox.publish(OrderPlaced(order_id=1)),
            lambda: outbox.publish_many([OrderPlaced(order_id=1)]),
            lambda: outbox.publish_raw("orders", "OrderPlaced", {}),
        ):
            with self.assertRaises(outbox.TransactionRequired):
                publish()
        with transaction.atomic():
            publish()

        assert len(published()) == 1

    def test_drain_raises_what_a_handler_raises(self):
        """The exception itself, so that the test fails where the handler did."""
        with isolated_groups():
            group = outbox.ConsumerGroup("failing", channels=["orders"])
            group.handler(OrderPlaced)(fail)
            place_order(1)
            with self.assertRaisesRegex(ZeroDivisionError, "division"):
                drain(group)

        assert Cursor.objects.get(group="failing").attempts == 1

    def test_drain_can_go_on_after_an_error(self):
        """With raise_errors=False the other ranges are drained, and the failed one backs off."""
        with isolated_groups():
            group = outbox.ConsumerGroup("failing", channels=["orders", "payments"])
            group.handler(OrderPlaced)(fail)
            group.handler(PaymentTaken)(lambda event, message: None)
            place_order(1)
            with transaction.atomic():
                outbox.publish(PaymentTaken(order_id=1))

            assert drain(group, raise_errors=False) == 1

    def test_drain_raises_what_makes_a_message_undecodable(self):
        """A payload that no longer fits its class is an error like a handler's."""
        with transaction.atomic():
            outbox.publish_raw("orders", "OrderPlaced", {"order_id": "seventeen"})
        with self.assertRaises(UndecodableMessage):
            drain("billing")

    def test_drain_follows_messages_that_handlers_publish(self):
        """Without a group all declared ones are drained, until nothing is left."""
        place_order(1)
        drain()

        assert Effect.objects.filter(group="packers").count() == 1
        assert [message.type for message in published()] == ["OrderPlaced", "PackingRequested"]


@pytest.mark.django_db
def test_the_fixture_begins_with_the_test(outbox_published):
    """It lists what is published after it was asked for."""
    place_order(1)

    assert outbox_published.one(OrderPlaced).key == "1"
    assert len(outbox_published) == 1


@pytest.fixture
def prepared(db):
    """Data of the test, published before it asks for the fixture."""
    place_order(99)


def test_the_fixture_leaves_out_what_was_prepared(prepared, outbox_published):
    """Only what the test itself publishes counts; `restart` begins anew."""
    place_order(1)
    first = [message.key for message in outbox_published]
    outbox_published.restart()
    place_order(2)

    assert first == ["1"]
    assert [message.key for message in outbox_published] == ["2"]
    assert Message.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_the_fixture_works_with_real_commits(outbox_published):
    """Also in a test whose transactions are committed."""
    place_order(1)

    assert len(outbox_published) == 1


@pytest.mark.django_db(transaction=True)
def test_many_drains_leave_no_open_files():
    """A test run may drain thousands of times."""
    resource = pytest.importorskip("resource")
    drain("billing")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[0], 256), limit[1]))
    try:
        for _ in range(300):
            drain("billing")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_pytest_finds_the_plugin_by_itself(tmp_path):
    """The installed package offers the fixture, and its name hides neither Django's nor
    pytest-django's mail outbox."""
    (tmp_path / "test_it.py").write_text(
        "def test_it(outbox_published, mailoutbox, django_db_blocker):\n"
        "    assert list(outbox_published) == [] and mailoutbox == []\n"
    )
    plugin = [] if is_installed() else ["-p", "outbox.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--reuse-db", *plugin, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def is_installed():
    from importlib.metadata import entry_points

    return any(each.value == "outbox.pytest_plugin" for each in entry_points(group="pytest11"))


def test_the_plugin_needs_no_settings(tmp_path):
    """pytest loads plugins before Django is configured; a project without Django runs, too."""
    code = "import outbox.pytest_plugin, outbox; print(outbox.publish.__name__)"
    variables = {
        name: text for name, text in environment().items() if not name.startswith("DJANGO")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables,
        check=False,
    )

    assert done.stdout == "publish\n", done.stderr
