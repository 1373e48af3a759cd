"""Declared captures against the triggers of the database: missing, changed, forgotten, refused."""

import pytest
from django.core import checks
from django.test.utils import isolate_apps

import outbox
from outbox.changes import CaptureSql, installed
from outbox.operations import doctor
from tests.library.models import AbstractParent, Media, Membership
from tests.support.captured import run_sql
from tests.support.project import Project

pytestmark = pytest.mark.django_db(transaction=True)

LEGACY = """
import outbox
from django.db import models

class Legacy(models.Model):
    name = models.TextField()

    class Meta:
        managed = False
        db_table = "it's legacy"
        triggers = [*outbox.capture(channel="legacy", on="insert")]

class LegacyProxy(Legacy):
    class Meta:
        proxy = True
        triggers = [*outbox.capture(channel="proxied", on="insert")]
"""

ELSEWHERE = """
import outbox
from django.db import models

class Place(models.Model):
    name = models.TextField()

    class Meta:
        db_table = {!r}
        triggers = [*outbox.capture(channel="places")]
"""


def trigger_of_inserts():
    """The capture trigger of Media's inserts."""
    return next(t for t in Media._meta.triggers if t.captures == "insert")


def database_checks():
    """What `check --database default` finds about captures, by id."""
    found = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
    return {each.id: each for each in found}


def doctors_word():
    """What the doctor says about captures."""
    return next(each for each in doctor.run_checks() if each.check == "captures")


def test_all_is_well_when_all_is_installed():
    """Neither of them finds anything in the test project."""
    assert database_checks() == {}
    assert doctors_word().level == "ok"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER TABLE library_media DISABLE TRIGGER {0}", "is disabled"),
        ("ALTER TABLE library_media ENABLE REPLICA TRIGGER {0}", "is disabled"),
        ("DROP TRIGGER {0} ON library_media", "is not installed"),
        ("COMMENT ON TRIGGER {0} ON library_media IS 'another'", "has another text"),
        (
            "CREATE OR REPLACE FUNCTION {0}() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN RETURN NULL; END'",
            "has another text",
        ),
    ],
)
def test_a_capture_that_does_not_work_is_found(statement, words):
    """E020 and the doctor name the trigger, the model, the database and the command."""
    trigger = trigger_of_inserts()
    try:
        run_sql(statement.format(trigger.get_pgid(Media)))
        found, word = database_checks()["outbox.E020"], doctors_word()
    finally:
        trigger.install(Media)

    assert words in found.msg
    assert "outbox_media_insert of library.Media" in found.msg
    assert "library.Media:outbox_media_insert -d default" in found.hint
    assert (word.level, word.detail) == ("fail", found.msg)


def test_a_capture_without_its_log_is_found():
    """E021: the trigger is there and every write of the model fails."""
    pgid = trigger_of_inserts().get_pgid(Media)
    try:
        run_sql(f"ALTER FUNCTION {pgid}() SET search_path = pg_temp")
        found = database_checks()
    finally:
        trigger_of_inserts().install(Media)

    assert list(found) == ["outbox.E021"]
    assert "library.Media" in found["outbox.E021"].msg


def test_a_trigger_that_no_model_declares_is_reported():
    """W022 and the doctor give the statement that drops it."""
    outbox.capture(channel="forgotten", on="insert")[0].install(Media)
    try:
        found, word = database_checks()["outbox.W022"], doctors_word()
    finally:
        run_sql(found.hint)

    assert "outbox_forgotten_insert" in found.msg
    assert (word.level, word.fix) == ("warn", found.hint)
    assert database_checks() == {}


def test_a_table_with_partitions_is_warned_of():
    """W023: a statement that names a partition or child table fires no trigger of the parent."""
    run_sql("CREATE TABLE child_of_media () INHERITS (library_media)")
    try:
        found = database_checks()
    finally:
        run_sql("DROP TABLE child_of_media")

    assert list(found) == ["outbox.W023"]
    assert "library.Media" in found["outbox.W023"].msg


@isolate_apps("tests.library")
def test_a_meta_that_hides_inherited_captures_is_warned_of():
    """W024, unless the triggers are inherited, or left out on purpose."""

    class Hidden(AbstractParent):
        class Meta:
            app_label = "library"
            ordering = ["key"]

    class Inherited(AbstractParent):
        class Meta(AbstractParent.Meta):
            app_label = "library"

    class OnPurpose(AbstractParent):
        class Meta:
            app_label = "library"
            triggers = []

    lost = [installed._lost_channels(model) for model in (Hidden, Inherited, OnPurpose)]

    assert lost == [["offspring"], [], []]


def test_the_path_that_migrations_name_is_the_promised_one():
    """Migrations of projects name outbox.changes.CaptureSql and these arguments; they stay."""
    path, arguments, options = Membership._meta.triggers[0].compile(Membership).deconstruct()

    assert (path, arguments) == ("outbox.changes.CaptureSql", [])
    assert list(options) == [
        "name",
        "captures",
        "channel",
        "pgid",
        "append",
        "found",
        "pk",
        "hash",
    ]
    assert options["pk"] == ["club", "number"]
    assert CaptureSql(**options) == CaptureSql(**options)


def test_unmanaged_models_and_a_log_in_use(tmp_path, empty_database):
    """`migrate` installs the captures of unmanaged models and of their proxies, in a table with an
    apostrophe, too; the log cannot be dropped while they are there."""
    apps = ["pgtrigger", "outbox", "old"]
    project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=apps,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    project.write("old/models.py", LEGACY)
    project.write("old/migrations/__init__.py", "")
    project.run(
        "from django.db import connection\n"
        "connection.cursor().execute("
        "'CREATE TABLE \"it\\'s legacy\" (id serial PRIMARY KEY, name text)')"
    )
    project.manage("makemigrations", "old")
    project.manage("migrate")
    written = project.run(
        "from old.models import Legacy; from outbox.models import Message\n"
        "from outbox.changes import snapshot\n"
        "Legacy.objects.create(name='a'); print(snapshot.run(Legacy, channel='legacy'))\n"
        "print(*sorted(Message.objects.values_list('channel', flat=True)))"
    )
    clean = project.manage("makemigrations", "--check", "--dry-run")
    healthy = project.manage("check", "--database", "default", "--fail-level", "WARNING")
    refused = project.python("-m", "django", "migrate", "outbox", "zero")
    project.manage("pgtrigger", "uninstall", "old.Legacy:outbox_legacy_insert")
    missing = project.python("-m", "django", "check", "--database", "default")

    assert written.split() == ["1", "legacy", "legacy", "proxied"]
    assert "No changes detected" in clean
    assert "no issues" in healthy
    assert refused.returncode != 0
    assert 'captures are installed on "it\'s legacy"' in refused.stderr
    assert "pgtrigger install old.Legacy:outbox_legacy_insert -d default" in missing.stderr


def test_an_unmanaged_table_that_comes_later(tmp_path, empty_database):
    """The next `migrate` installs its captures: that they are missing does not keep it from running,
    and is a fault for the doctor. A view, whose triggers see no rows, is named as such."""
    apps = ["pgtrigger", "outbox", "old"]
    project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=apps,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    project.write("old/models.py", LEGACY)
    project.write("old/migrations/__init__.py", "")
    project.manage("makemigrations", "old")
    project.manage("migrate")
    execute = "from django.db import connection\nconnection.cursor().execute({!r})"
    project.run(execute.format('CREATE TABLE "it\'s legacy" (id serial PRIMARY KEY, name text)'))
    warned = project.manage("check", "--database", "default")
    failed = project.manage("outbox", "doctor", code=3)
    project.manage("migrate")
    healthy = project.manage("check", "--database", "default", "--fail-level", "WARNING")
    project.run(execute.format('DROP TABLE "it\'s legacy"'))
    project.run(execute.format("CREATE VIEW \"it's legacy\" AS SELECT 1 AS id, text 'a' AS name"))
    view = project.manage("check", "--database", "default", code=1)

    assert "outbox.W027" in warned
    assert "Run `manage.py migrate`, or `manage.py pgtrigger install old.Legacy" in warned
    assert "is not installed" in failed
    assert "no issues" in healthy
    assert "outbox.E020" in view
    assert "a view or a foreign table" in view


@pytest.mark.parametrize("table", ['"else where"."place"', 'else where"."place'])
def test_a_table_whose_name_has_a_schema(table, tmp_path, empty_database):
    """Both ways to write it in Meta.db_table: capture, snapshot, checks and migrations find the table."""
    project = Project(
        tmp_path,
        {"default": empty_database},
        INSTALLED_APPS=["outbox", "pgtrigger", "old"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    project.write("old/models.py", ELSEWHERE.format(table))
    project.write("old/migrations/__init__.py", "")
    project.run(
        "from django.db import connection\nconnection.cursor().execute('CREATE SCHEMA \"else where\"')"
    )
    project.manage("makemigrations", "old")
    project.manage("migrate")
    written = project.run(
        "from old.models import Place; from outbox.models import Message\n"
        "from outbox.changes import snapshot\n"
        "place = Place.objects.create(name='a'); Place.objects.update(name='b'); place.delete()\n"
        "Place.objects.create(name='c'); print(snapshot.run(Place))\n"
        "for each in Message.objects.order_by('position'): print(each.payload['operation'], each.headers)"
    )
    clean = project.manage("makemigrations", "--check", "--dry-run")
    healthy = project.manage("check", "--database", "default", "--fail-level", "WARNING")

    assert written.splitlines() == [
        "1",
        *(
            f"{operation} {{'schema': 'else where'}}"
            for operation in ("insert", "update", "delete", "insert", "snapshot")
        ),
    ]
    assert "No changes detected" in clean
    assert "no issues" in healthy


class NothingMigrates:
    """A router for which an alias is a replica."""

    def allow_migrate(self, db, app_label, **hints):
        return False


def test_the_captures_of_a_replica_are_declared(settings):
    """The triggers came with the tables, and the statement of W022 would drop them."""
    settings.DATABASE_ROUTERS = [NothingMigrates()]

    assert [each.problem for each in installed.run_checks("default")] == []
