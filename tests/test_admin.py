"""The admin shows the tables and changes none of them."""

import json

import pytest
from django.db import transaction

import outbox
from outbox.operations import pauses
from tests.support.processes import run_code
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)

VISIT = """
import json
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("ann"))
print(json.dumps({path: (found.status_code, found.content.decode()) for path in PATHS
                  for found in [client.get("/admin/outbox/" + path)]}))
"""


def visit(*paths):
    """Get pages as a superuser; return code and text of each."""
    done = run_code(f"PATHS = {paths!r}\n{VISIT}", DJANGO_SETTINGS_MODULE="tests.admin_settings")
    assert done.returncode == 0, done.stderr
    return [tuple(found) for found in json.loads(done.stdout).values()]


def test_each_table_has_a_list_and_a_page_per_row(script):
    """Messages, cursors, parked messages and operators' actions, found by key and position."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"bad": ValueError("not now")}
    good, bad = publish("good", "bad")
    made.drain()
    pauses.pause("scripted", reason="deploy of the week")
    pages = visit(
        "message/",
        f"message/?q={good}",
        f"message/{good}/change/",
        "cursor/",
        "parkedmessage/?q=bad",
        "operatoraction/",
    )

    assert {code for code, _ in pages} == {200}
    assert f"/message/{bad}/change/" in pages[0][1]
    assert f"/message/{bad}/change/" not in pages[1][1]
    assert "scripted" in pages[3][1]
    assert "not now" in pages[4][1]
    assert "deploy of the week" in pages[5][1]


def test_nothing_can_be_added_changed_or_deleted():
    """Not even by a superuser: changes go through the command, which records them."""
    with transaction.atomic():
        position = outbox.publish_raw("orders", "OrderPlaced", {"order_id": 1})
    pages = visit("message/add/", f"message/{position}/delete/", f"message/{position}/change/")

    assert [code for code, _ in pages] == [403, 403, 200]
    assert 'name="_save"' not in pages[2][1]
