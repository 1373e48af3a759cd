"""The wheel holds all that is needed, and a project that has only the wheel gets its messages."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from outbox.embedded import database_from_url
from tests.support.processes import ROOT, open_session
from tests.support.wheel import run

DATABASE = "outbox_wheel"
Run: TypeAlias = Callable[..., str]

PROJECT = {
    "manage.py": """
        import sys
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
    """,
    "project.py": """
        import os
        from outbox.embedded import database_from_url
        DATABASES = {"default": database_from_url(os.environ["DATABASE_URL"])}
        DATABASES["default"]["NAME"] = os.environ["PROJECT_DATABASE"]
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        INSTALLED_APPS = ["pgtrigger", "outbox", "billing"]
        SECRET_KEY = "none"
        USE_TZ = True
    """,
    "billing/__init__.py": "",
    "billing/models.py": """
        from django.db import models
        class Invoice(models.Model):
            order_id = models.IntegerField()
            total = models.DecimalField(max_digits=9, decimal_places=2)
    """,
    "billing/events.py": """
        from decimal import Decimal
        import outbox
        class OrderPlaced(outbox.Event, channel="orders", key="order_id"):
            order_id: int
            total: Decimal
    """,
    "billing/consumers.py": """
        import outbox
        from billing.events import OrderPlaced
        from billing.models import Invoice
        billing = outbox.ConsumerGroup("billing", channels=["orders"])
        @billing.handler(OrderPlaced)
        def create_invoice(event, message):
            Invoice.objects.create(order_id=event.order_id, total=event.total)
    """,
    "publish.py": """
        import django
        django.setup()
        from decimal import Decimal
        import outbox
        from billing.events import OrderPlaced
        from django.db import transaction
        with transaction.atomic():
            outbox.publish(OrderPlaced(order_id=1, total=Decimal("9.50")))
            outbox.publish_many([OrderPlaced(order_id=n, total=Decimal(n)) for n in (2, 3)])
        print(outbox.__file__)
    """,
    "show.py": """
        import django
        django.setup()
        from billing.models import Invoice
        print(*(f"{i.order_id}:{i.total}" for i in Invoice.objects.order_by("id")))
    """,
}


@pytest.fixture
def in_project(installed: Path, tmp_path: Path) -> Iterator[Run]:
    """Run Python in a new project with an empty database, where `outbox` is the installed wheel."""
    server = database_from_url(os.environ["DATABASE_URL"])
    session = open_session(server)
    session.cursor().execute(f"DROP DATABASE IF EXISTS {DATABASE}")
    session.cursor().execute(f"CREATE DATABASE {DATABASE}")
    for name, source in PROJECT.items():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line[8:] for line in source.splitlines()))
    variables = {
        "PYTHONPATH": str(installed),
        "DJANGO_SETTINGS_MODULE": "project",
        "PROJECT_DATABASE": DATABASE,
    }
    yield lambda *arguments: run(
        sys.executable, *arguments, cwd=tmp_path / "project", env={**os.environ, **variables}
    )
    session.cursor().execute(f"DROP DATABASE {DATABASE}")
    session.close()


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """SQL, migrations, templates and the typing marker are in the wheel; tests, benchmarks and examples are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "outbox").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }

    assert {name for name in names if not name.startswith("django_pgoutbox-")} == sources
    assert {
        "outbox/sql/log.sql",
        "outbox/changes/trigger.sql",
        "outbox/migrations/0001_initial.py",
        "outbox/py.typed",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_message_is_consumed_by_a_project_that_has_the_wheel(
    in_project: Run, installed: Path
) -> None:
    """Migrate, publish, drain: the effects are there once, in order, with no checkout in sight."""
    in_project("manage.py", "migrate", "--run-syncdb", "--verbosity=0")
    module = in_project("publish.py").strip()
    for _ in range(2):
        in_project("manage.py", "consume", "billing", "--drain")

    assert Path(module).is_relative_to(installed)
    assert in_project("show.py").strip() == "1:9.50 2:2.00 3:3.00"


def test_migrations_of_the_wheel_are_complete(in_project: Run) -> None:
    """A user's `makemigrations --check` finds nothing to do for the outbox."""
    assert "No changes" in in_project(
        "manage.py", "makemigrations", "outbox", "--check", "--dry-run"
    )


def test_links_on_a_package_index_lead_to_the_repository(wheel):
    """There is no folder beside the text there, so none of its links is relative."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", text)

    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
