from django.db import connection

import outbox
from tests.library.models import (
    Author,
    Counter,
    CounterCopy,
    Effect,
    Media,
    Post,
)

welcome = outbox.ConsumerGroup("welcome", channels=["authors"])
tenants = outbox.ConsumerGroup("tenants", channels=["authors"])
scanners = outbox.ConsumerGroup("scanners", channels=["media"], parallelism=8)
doubtful = outbox.ConsumerGroup("doubtful", channels=["media"], retry=outbox.Retry(max_attempts=1))
copy = outbox.ConsumerGroup("copy", channels=["counters"], parallelism=4)


class Broken(Exception):
    """What a handler raises on purpose."""


@welcome.handler(outbox.Change[Author])
def write_first_post(event, message):
    """Give each new author a first post; the context may choose its text."""
    if event.operation == "insert":
        content = event.context.get("content", "Welcome! This is your first post")
        Post.objects.create(author_id=event.new.pk, content=content, date=message.created_at)


@tenants.handler(outbox.Change[Author])
def write_for_tenant(event, message):
    """Act on the changes of one tenant only."""
    if event.context.get("tenant") == "ours":
        Post.objects.create(author_id=event.new.pk, content="ours", date=message.created_at)


def leave_effect(event, message):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()[0]
    Effect.objects.create(group=message.group, position=message.position, backend=backend)


@scanners.handler(outbox.Change[Media])
def scan(event, message):
    leave_effect(event, message)


@doubtful.handler(outbox.Change[Media])
def scan_or_fail(event, message):
    """Fail on poison."""
    leave_effect(event, message)
    if event.new.name.startswith("poison"):
        raise Broken(event.new.name)


@copy.batch_handler(outbox.Change[Counter])
def copy_counters(events, messages):
    """Keep a copy of the table: of each row of the batch, its last state."""
    last = {(event.new or event.old).pk: event.new for event in events}
    CounterCopy.objects.filter(pk__in=last).delete()
    CounterCopy.objects.bulk_create(
        CounterCopy(pk=new.pk, value=new.value, note=new.note) for new in last.values() if new
    )
