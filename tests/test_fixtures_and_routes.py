"""The log beside fixtures, data migrations and database routers."""

from __future__ import annotations

import json

import pytest
from django.core import serializers
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import connections, transaction

import outbox
from outbox.checks import databases as checks
from outbox.conf import log_alias
from outbox.models import Cursor, Message, OperatorAction, ParkedMessage, Snapshot
from outbox.testing import drain, published
from outbox.worker import Worker
from tests.shop.events import OrderPlaced
from tests.support.publishing import publish_order

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("model", [Message, Cursor, ParkedMessage, OperatorAction, Snapshot])
def test_no_row_of_the_log_comes_from_a_fixture(model):
    """loaddata and serialized_rollback leave out what belongs to one database's log, even when it is
    there already."""
    with transaction.atomic():
        outbox.publish(OrderPlaced(order_id=1))
    before = list(Message.objects.values())
    fields = {"group": "g", "channel": "c", "position": 5} if model is not Message else {}
    text = json.dumps(
        [
            {
                "model": model._meta.label_lower,
                "pk": 5,
                "fields": fields if model in (Cursor, ParkedMessage) else {},
            }
        ]
    )
    for loaded in serializers.deserialize("json", text, ignorenonexistent=True):
        loaded.save()

    assert list(Message.objects.values()) == before
    assert not model.objects.filter(pk=5).exists()


def test_published_begins_after_the_data_migrations():
    """What was in the log when the database was made is nothing that the test published."""
    publish_order(1)
    try:
        emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
        position = publish_order(2)

        assert [message.position for message in published()] == [position]
    finally:
        from outbox import testing

        testing._prepared.clear()


class ToOther:
    """Routes the log to another alias."""

    def db_for_write(self, model, **hints):
        return "other" if model._meta.app_label == "outbox" else None

    db_for_read = db_for_write


@pytest.fixture
def routed(settings, other_alias):
    settings.DATABASE_ROUTERS = [ToOther()]
    yield other_alias


@pytest.mark.django_db(transaction=True)
def test_all_follow_the_router_to_the_log(routed):
    """publish, drain, published, wait_for, a worker and the commands ask one function for the alias."""
    default = connections["default"]
    with transaction.atomic(using="other"):
        position = outbox.publish(OrderPlaced(order_id=1))
    asked = []
    with default.execute_wrapper(
        lambda execute, sql, *rest: asked.append(sql) or execute(sql, *rest)
    ):
        assert [message.position for message in published()] == [position]
        drain("billing")
        assert outbox.wait_for("billing", position, timeout=0)
        call_command("outbox", "describe", "billing", "--json")

    assert (log_alias(), log_alias("default"), Worker(["billing"]).using) == (
        "other",
        "default",
        "other",
    )
    assert not [sql for sql in asked if "outbox" in sql]


@pytest.mark.django_db(transaction=True)
def test_a_route_to_a_database_without_a_log_is_warned_of(routed, monkeypatch):
    """W014 names both databases and the two ways out."""
    monkeypatch.setattr(checks, "_has_log", lambda alias: alias == "default")
    (found,) = checks._check_route("other", ["default", "other"])

    assert found.id == "outbox.W014"
    assert "written to database 'other', which has no log; the log is in 'default'" in found.msg
    assert "--database other" in found.hint
