"""The settings of the outbox: one dict, `OUTBOX`, in the Django settings.

`settings()` returns them as one frozen object. All keys are optional; unknown keys are
refused by a system check with a suggestion (see `checks`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.db import connections, router
from django.utils.connection import ConnectionDoesNotExist
from django.utils.module_loading import import_string

from .exceptions import NotInstalled, UnknownDatabase


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Every key of `OUTBOX`, in lower case, with its default."""

    require_transaction: bool = True
    """Refuse `publish()` outside `transaction.atomic()`."""
    batch_size: int = 500
    """Most messages in one claim, and so in one transaction."""
    batch_bytes: int = 8_000_000
    """Most bytes of JSON (payloads and headers) in one claim; a larger message comes alone."""
    batch_seconds: float = 1.0
    """Seconds after which a batch ends early, so that no transaction stays open long."""
    poll_interval: float = 5.0
    """Seconds an idle worker sleeps at most; a NOTIFY wakes it earlier."""
    linger: float = 0.01
    """Seconds an idle worker stays awake before it sleeps, so that a steady stream finds it."""
    listen: bool | str = True
    """True: listen on the worker's own connection. False: poll only. Text: the alias of another
    database connection to listen on, for when the worker's goes through a transaction pooler."""
    operator: str = ""
    """The actor in the records of operators' actions; empty: the user and host of the process."""
    tracing: str = ""
    """Spans by OpenTelemetry. "links": one per batch, linked to those that published; "parent": one
    per call of a handler, a child of the one that published; empty: none."""
    sentry: bool = False
    """Spans by Sentry: one per publish and one per call of a handler."""

    keep: str = "forever"
    """How long messages are kept in channels without a rule of their own: "forever", a duration
    such as "90 days", or "latest": the newest message of each key."""
    channels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Rules of channels: {"orders": {"keep": "90 days"}}."""
    archive: str = ""
    """The alias of a Django storage to which messages are written before retention removes them;
    empty: they are removed without a copy."""
    archive_format: str = "ndjson"
    """"ndjson": gzipped JSON lines; "parquet": needs the extra `archive`."""

    mask: str | Callable[[Any, Any], Any] = ""
    """What the admin's pages show instead of a payload: a function, or its dotted path, that is
    called with the payload and its message (position, channel, key, type, headers, created_at).
    Empty: the payload."""

    @classmethod
    def keys(cls) -> list[str]:
        """Return the key names as written in `OUTBOX`."""
        return [f.name.upper() for f in dataclasses.fields(cls)]


def is_number(
    value: Any,
    least: float,
    most: float = math.inf,
    *,
    is_above: bool = False,
    whole: bool = False,
) -> bool:
    """Return whether a value is a finite number within limits; `is_above`: above the least one."""
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return least <= value <= most and not (is_above and value == least)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_seconds(value: Any) -> bool:
    return is_number(value, 0, is_above=True)


def _is_function(value: Any) -> bool:
    try:
        return callable(import_string(value) if isinstance(value, str) else value)
    except ImportError:
        return False


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "REQUIRE_TRANSACTION": (_is_bool, "True or False"),
    "BATCH_SIZE": (lambda value: is_number(value, 1, whole=True), "a whole number from 1 on"),
    "BATCH_BYTES": (lambda value: is_number(value, 1, whole=True), "a whole number from 1 on"),
    "BATCH_SECONDS": (_is_seconds, "seconds above 0"),
    "POLL_INTERVAL": (_is_seconds, "seconds above 0"),
    "LINGER": (lambda value: is_number(value, 0), "seconds from 0 on"),
    "LISTEN": (
        lambda value: _is_bool(value) or value in list(django_settings.DATABASES),
        "True, False or the alias of a database",
    ),
    "KEEP": (lambda value: isinstance(value, str), 'text such as "90 days"'),
    "CHANNELS": (lambda value: isinstance(value, Mapping), "a dict of channel names"),
    "ARCHIVE": (
        lambda value: value == "" or value in getattr(django_settings, "STORAGES", {}),
        "the alias of a storage in STORAGES",
    ),
    "ARCHIVE_FORMAT": (lambda value: value in ("ndjson", "parquet"), '"ndjson" or "parquet"'),
    "MASK": (lambda value: value == "" or _is_function(value), "a function or its path"),
    "OPERATOR": (lambda value: isinstance(value, str) and "\0" not in value, "text without NUL"),
    "TRACING": (lambda value: value in ("", "links", "parent"), '"", "links" or "parent"'),
    "SENTRY": (_is_bool, "True or False"),
}
"""What each key of `OUTBOX` may be: a predicate, and the same in words."""


@functools.cache
def settings() -> Settings:
    """Return the current settings; a wrong `OUTBOX` is left to the system check."""
    given = getattr(django_settings, "OUTBOX", {})
    if not isinstance(given, dict):
        return Settings()
    known = {name: given[name] for name in ALLOWED if name in given}
    return Settings(**{name.lower(): value for name, value in known.items()})


def require_apps() -> None:
    """Raise NotInstalled for an app that models of the outbox, or with a capture, need."""
    for app in ("outbox", "pgtrigger"):
        if not apps.is_installed(app):
            raise NotInstalled(app=app)


def log_alias(using: str | None = None) -> str:
    """Return the alias of the database that has the log: `using`, or where the router writes it.

    Raises UnknownDatabase, NotInstalled.
    """
    try:
        if using is not None and using != "":
            connections[using]
    except (ConnectionDoesNotExist, TypeError):
        raise UnknownDatabase(using or "", list(connections)) from None
    try:
        return using or router.db_for_write(apps.get_model("outbox", "Message"))
    except LookupError:
        raise NotInstalled(app="outbox") from None


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "OUTBOX":
        settings.cache_clear()


setting_changed.connect(_forget)
