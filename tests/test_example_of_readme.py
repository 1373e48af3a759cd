"""The README's steps for one's own project, taken from its text and run."""

from __future__ import annotations

import re

import pytest

from tests.support.processes import ROOT, open_session
from tests.support.project import Project

SECTION = re.compile(r"^## In your project$(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# (\S+\.py)\n", re.MULTILINE)

IMPORTS = {
    "orders/events.py": "",
    "orders/views.py": "import outbox\nfrom django.db import transaction\n"
    "from orders.events import OrderPlaced\nfrom orders.models import Order\n\norder = Order(total='9.50')\n",
    "billing/consumers.py": "import outbox\nfrom billing.models import Invoice\n"
    "from orders.events import OrderPlaced\n\n",
}
"""What a reader has at the top of the files already."""

MODELS = {
    "orders/models.py": "class Order(models.Model):\n    total = models.DecimalField(max_digits=9, decimal_places=2)\n",
    "billing/models.py": "class Invoice(models.Model):\n    order_id = models.IntegerField(unique=True)\n"
    "    total = models.DecimalField(max_digits=9, decimal_places=2)\n",
}


@pytest.fixture(scope="module")
def blocks():
    """The blocks of the section: their language and their text."""
    (section,) = SECTION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return BLOCK.findall(section)


@pytest.fixture(scope="module")
def files(blocks):
    """The Python files of the section by their names."""
    (python,) = [text for language, text in blocks if language == "python"]
    parts = FILE.split(python)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_way_into_ones_own_project_is_short(blocks):
    """Under 30 lines, commands included."""
    assert sum(len(text.splitlines()) for _, text in blocks) < 30


def test_the_steps_of_the_readme_work(tmp_path, empty_database, blocks, files):
    """The settings, an event, a view and a consumer, as they stand there, make an invoice of an
    order."""
    installed = {"django.contrib.contenttypes", "orders", "billing"}
    given = {}
    exec(files["settings.py"], given)
    apps = [
        app for each in given["INSTALLED_APPS"] for app in (installed if each is ... else [each])
    ]
    project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=apps,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    for path, text in MODELS.items():
        project.write(path, f"from django.db import models\n\n\n{text}")
    for path, imports in IMPORTS.items():
        project.write(path, imports + files[path])
    project.manage("makemigrations", "orders", "billing")

    commands = [
        line.split()[2:] for _, text in blocks for line in text.splitlines() if "manage.py" in line
    ]
    assert sorted(files) == sorted(["settings.py", *IMPORTS])
    assert commands == [["migrate"], ["consume", "billing"]]
    project.manage(*commands[0])
    project.run("import orders.views")
    written = project.manage(*commands[1], "--drain")

    assert "1 messages handled" in written
    session = open_session(empty_database)
    with session.cursor() as cursor:
        cursor.execute("SELECT order_id, total::text FROM billing_invoice")
        assert cursor.fetchall() == [(1, "9.50")]
    session.close()
