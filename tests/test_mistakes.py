"""Mistakes of the first hour: each, in a fresh project, gets an answer that names its cause and its cure.

`pytest tests/test_mistakes.py -rP` prints the answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests.support.forks import Forks
from tests.support.processes import open_session
from tests.support.project import Project

APPS = ["pgtrigger", "outbox", "shop"]
EVENTS = """
import outbox

class OrderPlaced(outbox.Event, channel="orders", key="order_id"):
    order_id: int
    note: str = ""
"""
CONSUMERS = """
import outbox
from shop.events import OrderPlaced

billing = outbox.ConsumerGroup("billing", channels=["orders"])

@billing.handler(OrderPlaced)
def create_invoice(event, message):
    pass
"""
CAPTURED = """
import outbox
from django.db import models

class Author(models.Model):
    name = models.TextField()

    class Meta:
        triggers = [*outbox.capture(channel="authors")]
"""
SCRIPT = """
import django; django.setup()
import outbox
from django.db import transaction
from shop.events import OrderPlaced

@transaction.atomic
def publish(event):
    outbox.publish(event)

"""
PUBLISH = "publish(OrderPlaced(order_id=1))"
CHECK = ("check",)
GROUP = 'outbox.ConsumerGroup("shipping", channels=["orders"]{})'
VERBS = (
    "groups",
    "describe billing",
    "check billing --lag 1",
    "tail",
    "audit billing",
    "reset billing --to-earliest",
    "pause billing",
    "resume billing",
    "skip billing --position 1 --reason x",
    "scale billing --to 2",
    "parked billing",
    "redrive billing --all",
    "discard billing --position 1 --reason x",
    "segments",
    "segments --maintain",
    "tail --follow",
    "forget billing",
    "erase --channel orders --key 1 --reason x",
    "grants --publisher web",
)
"""Those that read or write the log, with arguments that are right."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What a beginner wrote, what was then run, and words of the answer."""

    name: str
    answer: tuple[str, ...]
    """Regular expressions; each is found in the output."""
    run: tuple[str, ...] | str = CHECK
    """A management command, or code."""
    code: int = 1
    """The exit code."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    database: str = "migrated"
    """Or "empty", "sqlite", "damaged"."""


def consumers(text: str) -> dict[str, str]:
    return {"shop/consumers.py": CONSUMERS + text}


MISTAKES = [
    Mistake(
        "pgtrigger is not installed",
        ("'pgtrigger'", "INSTALLED_APPS"),
        settings={"INSTALLED_APPS": ["outbox", "shop"]},
    ),
    Mistake(
        "pgtrigger is not installed and a model is captured",
        ("'pgtrigger'", "INSTALLED_APPS"),
        settings={"INSTALLED_APPS": ["shop", "outbox"]},
        files={"shop/models.py": CAPTURED},
    ),
    Mistake(
        "outbox is not installed, and an event is published",
        ("'outbox'", "INSTALLED_APPS"),
        PUBLISH,
        settings={"INSTALLED_APPS": ["pgtrigger", "shop"]},
    ),
    Mistake(
        "outbox is not installed, and a model is captured",
        ("'outbox'", "INSTALLED_APPS"),
        settings={"INSTALLED_APPS": ["pgtrigger", "shop"]},
        files={"shop/models.py": CAPTURED},
    ),
    Mistake(
        "migrate was forgotten, and an event is published",
        ("'default'", "manage.py migrate outbox"),
        PUBLISH,
        database="empty",
    ),
    Mistake(
        "migrate was forgotten, and a worker is started",
        ("'default'", "manage.py migrate outbox"),
        ("consume", "billing", "--drain"),
        database="empty",
    ),
    Mistake(
        "migrate was forgotten, and groups are listed",
        ("'default'", "manage.py migrate outbox"),
        ("outbox", "groups"),
        database="empty",
    ),
    Mistake(
        "a handler takes the event only",
        ("create_label", r"\(event\)", r"create_label\(event, message\)"),
        files=consumers('\n@billing.handler("OrderShipped")\ndef create_label(event):\n    pass\n'),
    ),
    Mistake(
        "a channel that nothing publishes",
        ("'ordrs'", "Did you mean 'orders'"),
        code=0,
        files=consumers('\noutbox.ConsumerGroup("shipping", channels=["ordrs"])\n'),
    ),
    Mistake(
        "a type that nothing publishes",
        ("'OrderPlacd'", "Did you mean 'OrderPlaced'"),
        code=0,
        files=consumers('\n@billing.handler("OrderPlacd")\ndef f(event, message):\n    pass\n'),
    ),
    Mistake(
        "a wildcard",
        (r"'\*'", "orders"),
        code=0,
        files=consumers(
            '\nall_ = outbox.ConsumerGroup("all", channels=["*"])\n\n'
            '@all_.handler("*")\ndef f(event, message):\n    pass\n'
        ),
    ),
    Mistake(
        "a misspelt group whose parked messages are listed",
        ("'billng'", "Did you mean 'billing'"),
        ("outbox", "parked", "billng"),
        2,
    ),
    Mistake(
        "a misspelt verb",
        ("no verb 'grups'", "Did you mean 'groups'"),
        ("outbox", "grups"),
        2,
    ),
    Mistake(
        "a misspelt channel to tail",
        ("'ordrs'", "Did you mean 'orders'"),
        ("outbox", "tail", "ordrs"),
        2,
    ),
    Mistake(
        "a disabled trigger, and an event is published",
        ("take_floor", "manage.py pgtrigger install"),
        PUBLISH,
        database="damaged",
    ),
    Mistake(
        "a disabled trigger, and groups are listed",
        ("take_floor", "manage.py pgtrigger install"),
        ("outbox", "groups"),
        code=0,
        database="damaged",
    ),
    Mistake(
        "a disabled trigger, and the project is checked",
        ("take_floor", "manage.py pgtrigger install"),
        database="damaged",
    ),
    Mistake(
        "sqlite",
        ("'default' is sqlite", "PostgreSQL"),
        database="sqlite",
    ),
    Mistake(
        "sqlite, and an event is published",
        ("'default' is sqlite", "PostgreSQL"),
        PUBLISH,
        database="sqlite",
    ),
    Mistake(
        "a misspelt setting",
        ("'BATCHSIZE'", "Did you mean 'BATCH_SIZE'"),
        settings={"OUTBOX": {"BATCHSIZE": 10}},
    ),
    Mistake(
        "publish outside atomic()",
        ("TransactionRequired", r"atomic\(using='default'\)"),
        "outbox.publish(OrderPlaced(order_id=1))",
    ),
    Mistake(
        "a dict instead of an event",
        ("InvalidEvent", r"\{'order_id': 1\}", "outbox.Event", r"publish_raw\(\)"),
        'publish({"order_id": 1})',
    ),
    Mistake(
        "a class instead of an event",
        ("InvalidEvent", "OrderPlaced", r"OrderPlaced\(…\)"),
        "publish(OrderPlaced)",
    ),
    Mistake(
        "two handlers of one event",
        ("DuplicateHandler", "billing", "OrderPlaced", "create_invoice", "second group"),
        files=consumers("\n@billing.handler(OrderPlaced)\ndef other(event, message):\n    pass\n"),
    ),
    Mistake(
        "two handlers of one event and of one name",
        ("DuplicateHandler", "billing", r"create_invoice \(line 7\)", "second group"),
        files=consumers(
            "\n@billing.handler(OrderPlaced)\ndef create_invoice(event, message):\n    pass\n"
        ),
    ),
    Mistake(
        "one group name in two apps",
        ("'billing'", "shop.consumers", "stock.consumers", "Rename one"),
        settings={"INSTALLED_APPS": [*APPS, "stock"]},
        files={
            "stock/consumers.py": 'import outbox\n\nb = outbox.ConsumerGroup("billing", ["orders"])\n'
        },
    ),
    Mistake(
        "an async handler",
        ("InvalidGroup", "create_label", "async_to_sync"),
        files=consumers(
            '\n@billing.handler("OrderShipped")\nasync def create_label(event, message):\n    pass\n'
        ),
    ),
    Mistake(
        "a decorator without parentheses",
        ("InvalidGroup", "create_label", r"@….handler\(EventClass\)"),
        files=consumers("\n@billing.handler\ndef create_label(event, message):\n    pass\n"),
    ),
    Mistake(
        "a text for the list of channels",
        ("InvalidGroup", "Group 'shipping'", "channels='orders'", r"channels=\['orders'\]"),
        files=consumers('\noutbox.ConsumerGroup("shipping", channels="orders")\n'),
    ),
    Mistake(
        "a number for the retry",
        ("InvalidGroup", "retry=3", r"outbox.Retry\(max_attempts=3\)"),
        files=consumers("\n" + GROUP.format(", retry=3") + "\n"),
    ),
    Mistake(
        "a duplicate type",
        ("DuplicateEventType", "'orders'", "'OrderPlaced'", "shop.events.OrderPlaced", "type="),
        files=consumers(
            '\nclass Other(outbox.Event, channel="orders", type="OrderPlaced"):\n    order_id: int\n'
        ),
    ),
    Mistake(
        "a key that is no field",
        ("InvalidKey", "key='order'", "Did you mean 'order_id'"),
        files=consumers(
            '\nclass Other(outbox.Event, channel="orders", key="order"):\n    order_id: int\n'
        ),
    ),
    Mistake(
        "an empty channel",
        ("InvalidChannel", "Other: ''", "1 to 63 characters"),
        files=consumers('\nclass Other(outbox.Event, channel=""):\n    order_id: int\n'),
    ),
    Mistake(
        "a NUL in a text",
        ("NulCharacter", "OrderPlaced.note", "remove it"),
        r'publish(OrderPlaced(order_id=1, note="a\0b"))',
    ),
    Mistake(
        "a payload of 300 MB",
        ("OrderPlaced", "300 MB", "268 MB"),
        'publish(OrderPlaced(order_id=1, note="x" * 300_000_000))',
    ),
    Mistake(
        "an unknown group",
        ("'billng'", "Did you mean 'billing'"),
        ("consume", "billng"),
        2,
    ),
    Mistake(
        "an unknown database to publish to",
        ("'defualt'", "Did you mean 'default'", "DATABASES"),
        'with transaction.atomic():\n    outbox.publish(OrderPlaced(order_id=1), using="defualt")',
    ),
    Mistake(
        "an unknown database to consume from",
        ("'defualt'", "default"),
        ("consume", "billing", "--database", "defualt"),
        2,
    ),
    Mistake(
        "a group without channels",
        ("InvalidGroup", "Group 'shipping'", r"channels=\[\]", "at least one"),
        files=consumers('\noutbox.ConsumerGroup("shipping", channels=[])\n'),
    ),
    Mistake(
        "a reset with two targets",
        ("--to-latest", "not allowed with", "--to-earliest"),
        ("outbox", "reset", "billing", "--to-earliest", "--to-latest"),
        2,
    ),
    Mistake(
        "a time without a zone",
        ("2026-01-31T12:00", "no time zone", r"2026-01-31T12:00\+00:00"),
        ("outbox", "reset", "billing", "--to-datetime", "2026-01-31T12:00"),
        2,
    ),
    Mistake(
        "an event that is imported before the apps are ready",
        ("no issues",),
        code=0,
        files={"shop/__init__.py": "from shop.events import OrderPlaced\n"},
    ),
    Mistake(
        "a consumer that is imported before the apps are ready",
        ("no issues",),
        code=0,
        files={"shop/__init__.py": "from shop.consumers import billing\n"},
    ),
]


class Databases:
    """New databases for the projects of this module, by state, made when first asked for."""

    def __init__(self, server: dict[str, Any], folder: Path) -> None:
        self.server = server
        self.folder = folder

    @functools.cache  # noqa: B019
    def entry(self, state: str) -> dict[str, Any]:
        """Return the entry of DATABASES."""
        if state == "sqlite":
            return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.folder / "db.sqlite3")}
        entry = {**self.server, "NAME": f"outbox_mistakes_{state}"}
        self.admin(f'DROP DATABASE IF EXISTS "{entry["NAME"]}" WITH (FORCE)')
        self.admin(f'CREATE DATABASE "{entry["NAME"]}"')
        if state != "empty":
            project = Project(
                self.folder / state,
                {"default": entry},
                INSTALLED_APPS=["pgtrigger", "outbox"],
            )
            project.manage("migrate", "--verbosity", "0")
        if state == "damaged":
            project.manage("pgtrigger", "disable", "outbox.Message:take_floor")
        return entry

    def admin(self, statement: str) -> None:
        with contextlib.closing(open_session(self.server)) as session:
            session.cursor().execute(statement)


@pytest.fixture(scope="module")
def databases(django_db_setup, tmp_path_factory) -> Iterator[Databases]:
    names = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    server = {name: connection.settings_dict[name] for name in names}
    databases = Databases(server, tmp_path_factory.mktemp("states"))
    yield databases
    for state in ("empty", "migrated", "damaged"):
        databases.admin(f'DROP DATABASE IF EXISTS "outbox_mistakes_{state}" WITH (FORCE)')


def project_with(mistake: Mistake, folder: Path, databases: Databases) -> Project:
    settings = {"INSTALLED_APPS": APPS, **mistake.settings}
    project = Project(folder, {"default": databases.entry(mistake.database)}, **settings)
    files = {"shop/events.py": EVENTS, "shop/consumers.py": CONSUMERS, **mistake.files}
    for path, text in files.items():
        project.write(path, text)
    return project


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_answered_with_its_cause_and_its_cure(mistake, tmp_path, databases, forks):
    """Who makes the mistake reads what is wrong, where, and what to do about it."""
    project = project_with(mistake, tmp_path, databases)
    run = SCRIPT + mistake.run if isinstance(mistake.run, str) else list(mistake.run)
    code, answer = forks.run(project.folder, run)
    print(re.sub(r'(?m)^  (File "|  ).*\n', "", answer.rpartition("Traceback (most")[2]))

    assert code == mistake.code
    for words in mistake.answer:
        assert re.search(words, " ".join(answer.split())), f"{words}\n{answer}"


def test_the_answer_to_a_disabled_trigger_mends_it(tmp_path, databases, forks):
    """After `manage.py pgtrigger install` publishing works, and doctor finds nothing about triggers."""
    project = project_with(Mistake("", (), database="damaged"), tmp_path, databases)
    refused, _ = forks.run(project.folder, SCRIPT + PUBLISH)
    forks.run(project.folder, ["pgtrigger", "install"])
    published = forks.run(project.folder, SCRIPT + PUBLISH)
    _, findings = forks.run(project.folder, ["outbox", "doctor"])
    forks.run(project.folder, ["pgtrigger", "disable", "outbox.Message:take_floor"])

    assert refused == 1
    assert published == (0, "")
    assert re.search(r"^ok +triggers ", findings, re.MULTILINE), findings


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_that_migrate_was_forgotten(verb, tmp_path, databases, forks):
    """It names the command to run, without a traceback."""
    mistake = Mistake("", (), database="empty")
    project = project_with(mistake, tmp_path, databases)
    code, answer = forks.run(project.folder, ["outbox", *verb.split()])

    assert code == 1
    assert answer.startswith("CommandError: Database 'default' lacks")
    assert "manage.py migrate outbox" in answer


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "billing" in verb])
def test_every_verb_knows_a_misspelt_group(verb, tmp_path, databases, forks):
    """It is a usage error, with the nearest name, and not an empty answer."""
    project = project_with(Mistake("", ()), tmp_path, databases)
    code, answer = forks.run(project.folder, ["outbox", *verb.replace("billing", "billng").split()])

    assert code == 2
    assert "There is no consumer group 'billng'. Did you mean 'billing'?" in answer


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("ordrs", "Did you mean 'orders'?"),
        ("ordrs --follow", "Did you mean 'orders'?"),
        ("--type OrderPlacd", "Did you mean 'OrderPlaced'?"),
        ("orders --type order_placed", "Did you mean 'OrderPlaced'?"),
        ("nowhere", "Neither this project nor the log has channel 'nowhere'."),
    ],
)
def test_tail_knows_a_misspelt_name(arguments, suggestion, tmp_path, databases, forks):
    """A filter that can match nothing is a usage error."""
    project = project_with(Mistake("", ()), tmp_path, databases)
    code, answer = forks.run(project.folder, ["outbox", "tail", *arguments.split()])

    assert code == 2
    assert suggestion in answer


@pytest.mark.parametrize("verb", ["tail --from earliest", "tail --from earliest --json"])
def test_a_reader_that_goes_away_is_no_error(verb, tmp_path, databases, forks):
    """`… | head` ends with the code that a broken pipe has everywhere, and writes no traceback."""
    project = project_with(Mistake("", ()), tmp_path, databases)
    many = "with transaction.atomic(): outbox.publish_many([OrderPlaced(order_id=n, note='x' * 100) for n in range(2000)])"
    assert forks.run(project.folder, SCRIPT + many) == (0, "")
    shell = (
        f"set -o pipefail; {sys.executable} -m django outbox {verb} | "
        f"{sys.executable} -c 'print(len(input()) > 100)'"
    )
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=project.folder,
        env={**os.environ, **project.environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stdout, done.stderr) == (141, "True\n", "")
