"""The guide for users of django-pgpubsub: its example moves over without losing or doubling a
notification, and its tables and code are true."""

import importlib.metadata
import inspect
import os
import re
from pathlib import Path

import pytest
from django.db import connection

from tests.support.forks import Forks
from tests.support.processes import ROOT

pgpubsub = pytest.importorskip("pgpubsub", reason="django-pgpubsub is not installed")

MOVING = Path(__file__).with_name("moving")
GUIDE = ROOT / "docs" / "from-pgpubsub.md"
DATABASE = "outbox_blog"
WARM = Forks()
APPS = {
    "before": "django.contrib.contenttypes pgtrigger pgpubsub blog.apps.BlogConfig",
    "after": "django.contrib.contenttypes pgtrigger pgpubsub outbox blog",
    "in the end": "django.contrib.contenttypes pgtrigger outbox blog",
}
LISTEN = """
from pgpubsub.listen import listen_to_channels, process_notifications
from pgpubsub.notify import process_stored_notifications
listener = listen_to_channels()
process_stored_notifications()
process_notifications(listener)
"""
READ = """
import datetime, pgpubsub
from blog.channels import PostReads
pgpubsub.notify(PostReads, model_id=5, date=datetime.date(2026, 3, 7))
"""
HAPPENED = """
from outbox.models import Message
for message in Message.objects.order_by("position"):
    print(str(message.headers.get("happened_at", "")) != "" and message.headers["happened_at"] < str(message.created_at.isoformat()))
"""
POSTS = """
from blog.models import Post
print(*sorted(Post.objects.values_list("author__name", flat=True)))
"""


@pytest.fixture
def blog_database(transactional_db):
    """An empty database beside the tests' own."""
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    yield
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE {DATABASE}")


def django(version, *arguments):
    """Run a management command of the blog in one of its versions; return what it printed."""
    folder = MOVING / ("before" if version == "before" else "after")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "DJANGO_SETTINGS_MODULE": "tests.capture.moving.settings",
        "BLOG_APPS": APPS[version],
        "BLOG_DATABASE": DATABASE,
    }
    result = WARM.complete(folder, ["-m", "django", *arguments], environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shell(version, code):
    """Run Python in the blog."""
    return django(version, "shell", "--no-imports", "-c", code)


def new_author(version, name):
    shell(version, f"from blog.models import Author; Author.objects.create(name={name!r})")


def test_the_blog_moves_without_losing_or_doubling_a_notification(blog_database):
    """What the old listeners had handled is not handled again; what was stored is moved into the
    log by the migration, in front of what comes after it, and has its effect once."""
    django("before", "migrate", "-v0")
    new_author("before", "Ann")
    shell("before", LISTEN)
    for name in ("Bob", "O'Neil"):
        new_author("before", name)
    shell("before", READ)
    stored = "from pgpubsub.models import Notification; print(Notification.objects.count())"
    waiting = int(shell("before", stored))
    django("after", "migrate", "-v0")
    new_author("after", "Dan")
    left = int(shell("after", stored))
    django("after", "consume", "welcome", "--drain")
    posts = shell("after", POSTS)
    django("after", "consume", "welcome", "--drain")
    read = django("after", "consume", "statistics", "--drain")
    happened = shell("after", HAPPENED)
    django("after", "migrate", "pgpubsub", "zero", "-v0")
    new_author("in the end", "Eve")
    django("in the end", "consume", "welcome", "--drain")

    assert (waiting, left) == (3, 0)
    assert "post 5 was read on 07.03." in read
    assert happened.split() == ["True"] * 3 + ["False"]
    assert posts.split() == ["Ann", "Bob", "Dan", "O'Neil"]
    assert shell("in the end", POSTS).split() == ["Ann", "Bob", "Dan", "Eve", "O'Neil"]


def test_the_moved_blog_starts_on_a_new_database(blog_database):
    """Its migrations run where django-pgpubsub never was, and hold all that the models say."""
    django("in the end", "migrate", "-v0")
    django("in the end", "makemigrations", "--check", "--dry-run")
    new_author("in the end", "Ann")
    shell(
        "in the end",
        "from blog.models import Author, Post; from django.utils.timezone import now\n"
        "Post.fetch(Post.objects.create(content='x', date=now(), author=Author.objects.get()).pk)\n"
        "Post.objects.get().delete()",
    )
    django("in the end", "consume", "welcome", "--drain")
    told = [
        django("in the end", "consume", group, "--drain") for group in ("statistics", "mailing")
    ]

    assert "was read on" in told[0]
    assert "of author 1 is gone" in told[1]


def public_names():
    """What a user of django-pgpubsub 1.3.1 can write in code, settings, environment or shell."""
    package = Path(pgpubsub.__file__).parent
    command = (package / "management" / "commands" / "listen.py").read_text()
    assert importlib.metadata.version("django-pgpubsub") == "1.3.1"
    names = {
        name
        for name, value in vars(pgpubsub).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    flags = set(re.findall(r"['\"](--[a-z-]+)['\"]", command))
    source = "".join(path.read_text() for path in package.glob("*.py"))
    settings = set(re.findall(r"PGPUBSUB_[A-Z_0-9]+", source))
    return names | flags | settings


def test_the_guide_names_everything_public():
    """Each function, class, decorator, setting, environment variable and flag has its line."""
    guide = GUIDE.read_text(encoding="utf-8")
    missing = [name for name in sorted(public_names()) if f"`{name}" not in guide]

    assert len(public_names()) > 25
    assert missing == []


def test_the_code_of_the_guide_is_the_code_that_was_tested():
    """Each block of the guide that names a file stands in that file of the blog."""
    blocks = re.findall(
        r"```python\n# (blog/\S+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) >= 6
    for path, block in blocks:
        versions = [(MOVING / version / path) for version in ("before", "after")]
        texts = [version.read_text(encoding="utf-8") for version in versions if version.exists()]
        for part in block.strip("\n").split("\n\n\n"):
            assert any(part in text for text in texts), f"{path}: {part}"
