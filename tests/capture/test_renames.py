"""Captured models and fields that get other names: each change is told once, older messages are read."""

import pytest

from tests.support.project import Project

pytestmark = pytest.mark.django_db(transaction=True)

MODELS = """
import outbox
from django.db import models

class {name}(models.Model):
    {field} = models.DecimalField(max_digits=40, decimal_places=25)

    class Meta:
        {meta}
        triggers = [*outbox.capture(channel="{channel}", fields=["{field}"])]
"""
CONSUMERS = """
import outbox
from people.models import {name}
group = outbox.ConsumerGroup("group", channels=["people", "others"])

@group.handler(outbox.Change[{name}])
def changed(event, message):
    print("told", message.channel, event.operation, event.new.{field})
"""
MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("people", "0001_initial")]
    operations = [
        migrations.RenameModel("Author", "Writer"),
        migrations.RenameField("Writer", "age", "years"),
    ]
"""


def test_a_renamed_model_table_field_and_channel(tmp_path, empty_database):
    """Whatever the migrations rename, forwards and backwards: a write is told once, by the triggers
    that the models declare, and messages from before are handled as changes of today's model."""
    apps = ["pgtrigger", "outbox", "people"]
    project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=apps,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )

    def declare(name, field, channel="people", meta=""):
        project.write(
            "people/models.py",
            MODELS.format(name=name, field=field, channel=channel, meta=meta),
        )
        project.write("people/consumers.py", CONSUMERS.format(name=name, field=field))

    def create(name, field, value):
        project.run(f"from people.models import {name} as M; M.objects.create({field}='{value}')")

    def migrate(*target):
        project.manage("migrate", "-v0", *target)

    project.write("people/migrations/__init__.py", "")
    declare("Author", "age")
    project.manage("makemigrations", "people")
    migrate()
    create("Author", "age", "1.1234567890123456789012345")
    project.write("people/migrations/0002_rename.py", MIGRATION)
    declare("Writer", "years", "others")
    project.manage("makemigrations", "people", "-n", "triggers")
    migrate()
    create("Writer", "years", 2)
    declare("Writer", "years", "others", 'db_table = "people"')
    project.manage("makemigrations", "people", "-n", "table")
    migrate()
    create("Writer", "years", 3)
    healthy = project.manage("check", "--database", "default", "--fail-level", "WARNING")
    handled = project.manage("consume", "group", "--drain")
    migrate("people", "0001")
    migrate()

    assert [line.split()[1:] for line in handled.splitlines() if line.startswith("told")] == [
        ["people", "insert", "1.1234567890123456789012345"],
        ["others", "insert", "2.0000000000000000000000000"],
        ["others", "insert", "3.0000000000000000000000000"],
    ]
    assert "WARNINGS" not in healthy
    assert "ERRORS" not in healthy
    assert "outbox.I012" not in healthy, "the former name is no misspelt type"
