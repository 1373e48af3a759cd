"""README and tutorial, followed literally by a reader who has the wheel and an empty database."""

from __future__ import annotations

import pytest

from outbox.embedded import database_from_url
from tests.support import pages, server
from tests.support.processes import ROOT, open_session


@pytest.fixture
def reader(tmp_path, installed):
    """A reader with the database `shop`, in an empty folder."""
    database = database_from_url(server.database_url())
    session = open_session(database)
    session.cursor().execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")
    session.cursor().execute("CREATE DATABASE shop")
    folder = tmp_path / "reader"
    folder.mkdir()
    yield pages.Reader(folder, database, installed)
    session.cursor().execute("DROP DATABASE shop WITH (FORCE)")
    session.close()


def test_the_steps_of_the_readme_make_an_invoice(reader):
    """From `startproject` to a handled message, with the files as they stand there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## In your project")[2].partition("\n## ")[0]

    done = reader.follow(section)

    assert done[-1][1].endswith("9.50\n")


def test_every_step_of_the_tutorial_writes_what_the_page_shows(reader):
    """Two groups, a failing handler, a test, a replay, a captured model, the doctor."""
    done = reader.follow((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))

    assert len(done) == 23
    assert not [written for _, written in done if "Error" in written and "printer" not in written]


USE = """
from orders.models import Customer
from orders.services import place_order, send_invoice
import orders.celery_consumers as celery
place_order("ann", 5)
send_invoice("ann", "ann@example.org")
send_invoice("bob", "")
Customer.objects.bulk_create([Customer(name="cy")])
print(celery.sender)
"""
RESULTS = [
    "<ConsumerGroup 'celery' of orders>",
    "POST /orders 1 with Idempotency-Key partner:1",
    "booked order 1 at attempt 2",
    "mail to ann@example.org",
    "SEND /queue/customers cy, receipt broker:4",
    "PermanentError: the customer has no address",
    "one invoice",
]


def test_what_others_move_to_works_as_the_page_shows_it(reader):
    """The shared result, and one for each package: a try that is asked for, a type without a class and
    a permanent error, a model that is captured, a task that a handler sends."""
    reader.follow(
        (ROOT / "README.md").read_text("utf-8").partition("```python\n# orders/models.py")[0]
    )
    reader.write("orders/models.py", MODELS, is_appended=False)
    reader.follow((ROOT / "docs" / "moving-over.md").read_text(encoding="utf-8"))
    reader.write("use.py", USE, is_appended=False)
    reader.run("python manage.py makemigrations orders && python manage.py migrate")
    written = [
        reader.run("python manage.py shell -c 'import use'"),
        reader.run("python manage.py consume billing partner mails broker --drain"),
        reader.run("until python manage.py consume ledger --drain; do :; done"),
        reader.run("python manage.py outbox parked mails"),
        reader.run(
            "python manage.py shell -c 'import orders.models as m; print(m.Invoice.objects.count() * \"one invoice\")'"
        ),
    ]

    for result in RESULTS:
        assert result in "".join(written), "".join(written)


MODELS = """from django.db import models


class Order(models.Model):
    customer = models.TextField()
    total = models.DecimalField(max_digits=9, decimal_places=2)


class Invoice(models.Model):
    order = models.OneToOneField(Order, on_delete=models.CASCADE)
    total = models.DecimalField(max_digits=9, decimal_places=2)
"""


@pytest.mark.parametrize(
    ("shown", "written", "is_fitting"),
    [
        ("", "anything", True),
        ("a  b\n…\nc", "x\na b\nmany\nc\n", True),
        ("3 handled", "13 handled, 0 failed", False),
        ("a\nb", "b\na", False),
    ],
)
def test_what_a_page_shows_is_compared_line_by_line(shown, written, is_fitting):
    """Blanks do not count, `…` stands for any text, and lines may be left out between."""
    assert pages.fits(shown, written) is is_fitting
