"""Errors of the installation, the settings or a declaration of the project."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError
from django.utils.connection import ConnectionDoesNotExist

from .outbox_error import OutboxError
from .suggestions import did_you_mean


class NotInstalled(OutboxError, ImproperlyConfigured):
    """The app {app!r} is not installed, and the outbox needs it: add {app!r} to INSTALLED_APPS."""

    app: str


class MissingExtra(OutboxError, ImproperlyConfigured):
    """The module {module!r} is not installed: `pip install 'django-pgoutbox[{extra}]'`."""

    extra: str
    module: str


class NotMigrated(OutboxError, ProgrammingError):
    """Database {using!r} lacks a table or function of the outbox in the schemas of the \
search_path: run `{command}`. ({reason})"""

    using: str
    command: str
    reason: str

    def __init__(self, using: str, reason: str) -> None:
        option = "" if using == "default" else f" --database {using}"
        super().__init__(using=using, command=f"manage.py migrate outbox{option}", reason=reason)


class RightsMissing(OutboxError, ProgrammingError):
    """Database {using!r}: {reason}. `manage.py outbox grants` prints the statements that give a \
role the rights of a publisher, a consumer, an operator or a reader."""

    using: str
    reason: str


class NotPostgres(OutboxError):
    """Database {using!r} is {vendor}; the outbox needs PostgreSQL: let DATABASE_ROUTERS send the \
app 'outbox' to a PostgreSQL database."""

    using: str
    vendor: str


class UnknownDatabase(OutboxError, ConnectionDoesNotExist):
    """There is no database {using!r}."""

    using: str
    known: list[str]

    def __init__(self, using: str, known: list[str]) -> None:
        super().__init__(
            f"DATABASES has no alias {using!r}.{did_you_mean(using, known)} "
            f"Its aliases: {', '.join(known)}.",
            using=using,
            known=known,
        )


class InvalidChannel(OutboxError, ValueError):
    """{place}{channel!r} is not a channel name: use text of 1 to 63 characters without NUL."""

    channel: Any
    place: str


class UnknownChannel(OutboxError, LookupError):
    """Neither this project nor the log has channel {channel!r}.{suggestion}"""

    channel: str
    suggestion: str


class UnknownType(OutboxError, LookupError):
    """Neither this project nor the log has messages of type {type!r} there.{suggestion}"""

    type: str
    suggestion: str


class InvalidTypeName(OutboxError, ValueError):
    """{place}{name!r} is not the name of a message type: use text of 1 character or more, without \
NUL."""

    name: Any
    place: str


class InvalidGroup(OutboxError, ValueError):
    """A consumer group is declared wrongly."""


class InvalidCapture(OutboxError, ValueError):
    """A capture() is declared wrongly."""


class InvalidStream(OutboxError, ValueError):
    """A stream is used wrongly."""


class InvalidRule(OutboxError, ValueError):
    """{place} is {value!r}; a rule is "forever", a duration such as "90 days", "latest" (the \
newest message of each key), or "latest 7 days" (and those without a key for so long); units are \
seconds, minutes, hours, days and weeks. CHANNELS is {{"channel": {{"keep": rule}}}}."""

    place: str
    value: Any


class InvalidLockFile(OutboxError, ValueError):
    """{path} is no lock file of events: {reason}. Write it with `manage.py outbox events lock`."""

    path: Any
    reason: str


class DuplicateEventType(OutboxError):
    """Channel {channel!r} already has an event type {type!r}, declared by {first}; {second} \
needs another name: give it type="…"."""

    channel: str
    type: str
    first: str
    second: str


class DuplicateHandler(OutboxError):
    """Group {group!r} already handles {type!r} with {first}: one handler per type and group; \
declare a second group to do something else with the same messages."""

    group: str
    type: str
    first: str


class UnknownGroup(OutboxError, LookupError):
    """There is no consumer group {name!r}."""

    name: str
    known: list[str]

    def __init__(self, name: str, known: list[str]) -> None:
        listed = ", ".join(known) or "none: declare one in an app's consumers.py"
        super().__init__(
            f"There is no consumer group {name!r}.{did_you_mean(name, known)} "
            f"Known groups: {listed}.",
            name=name,
            known=known,
        )
