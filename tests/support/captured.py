"""What the log holds of the library's models, as messages and as the events that handlers get."""

from django.db import connection

import outbox
from outbox import message_log
from outbox import messages as published
from outbox.models import Message


def stored(channel):
    """The messages of a channel, in position order."""
    return list(Message.objects.filter(channel=channel).order_by("position"))


def operations(channel):
    """What the channel tells: of each message the operation and its key."""
    return [(message.payload["operation"], message.key) for message in stored(channel)]


def changes(model, channel):
    """The events that a handler of `Change[model]` gets of a channel, in position order."""
    rows = message_log.read(
        "default", channel, after=0, until=1 << 62, slots=(0, 32767), most=100_000
    )
    messages = [
        published.Message(position, channel, key, type_name, 1, False, "test", *texts)
        for position, key, type_name, *texts in rows
    ]
    return [published.decode(message, outbox.Change[model]) for message in messages]


def run_sql(statement, *parameters):
    """Run one statement; return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []
