"""A project with USE_TZ off, in which Django gives and takes times without a zone."""

from __future__ import annotations

import json

import pytest

from tests.support.project import Project

EVENTS = """
import outbox


class Counted(outbox.Event, channel="counted", key="number"):
    number: int
"""
CONSUMERS = """
import outbox
from shop.events import Counted

parking = outbox.ConsumerGroup("parking", ["counted"], retry=outbox.Retry(max_attempts=1))
waiting = outbox.ConsumerGroup("waiting", ["counted"], retry=outbox.Retry(base=100, jitter=False))


@waiting.handler(Counted)
@parking.handler(Counted)
def fail_at_three(event, message):
    assert message.created_at.tzinfo
    if event.number == 3:
        raise ValueError("three")
"""
PUBLISH = """
import outbox
from django.db import transaction
from shop.events import Counted

with transaction.atomic():
    outbox.publish_many([Counted(number) for number in range(10)])
"""
VERBS = [
    "groups",
    "describe parking",
    "describe waiting --ranges",
    "check parking --lag 5",
    "tail counted --lines 3",
    "tail counted --from 2026-01-01T00:00:00+00:00",
    "audit parking",
    "parked parking",
    "pause parking --until 2099-01-01T00:00:00+00:00",
    "describe parking",
    "resume parking",
    "pause parking",
    "describe parking",
    "resume parking",
    "reset parking --to-datetime 2026-01-01T00:00:00+00:00",
    "reset parking --by-duration PT1H",
    "redrive parking --all --dry-run",
    "segments",
    "doctor",
]


RUN = """
from django.core.management import call_command

for verb in {verbs!r}:
    print("$", verb)
    call_command("outbox", *verb.split())
"""


@pytest.fixture
def project(tmp_path, empty_database):
    """A project in New York whose groups have handled what they could."""
    a_project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=["pgtrigger", "outbox", "shop"],
        USE_TZ=False,
        TIME_ZONE="America/New_York",
    )
    a_project.write("shop/events.py", EVENTS)
    a_project.write("shop/consumers.py", CONSUMERS)
    a_project.manage("migrate")
    a_project.run(PUBLISH)
    a_project.manage("consume", "parking", "waiting", "--drain", code=3)
    return a_project


def test_every_verb_works(project):
    """Times are compared and shown with their zone, whatever Django's setting."""
    project.run(RUN.format(verbs=VERBS))
    printed = project.python("-m", "django", "outbox", "groups", "--json").stdout

    assert [group["last_commit"][-6:] for group in json.loads(printed)] in [
        ["-05:00"] * 2,
        ["-04:00"] * 2,
    ]


def test_a_pause_without_end_is_one_in_any_zone(project):
    """The end of time is the same moment there and here."""
    written = project.run(RUN.format(verbs=["pause parking", "describe parking"]))

    assert "until resumed" in written
