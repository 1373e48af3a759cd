"""System checks of the settings, the groups and the event classes; they query no database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core import checks

from .. import events, groups, payloads
from ..conf import ALLOWED, Settings
from ..exceptions import did_you_mean


@checks.register("outbox")
def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E001: OUTBOX is not a dict. E002: unknown key. E003: a value of the wrong type."""
    given = getattr(django_settings, "OUTBOX", {})
    if not isinstance(given, dict):
        return [
            checks.Error(
                f"OUTBOX is {given!r}, not a dict.",
                hint="Known keys: " + ", ".join(Settings.keys()),
                id="outbox.E001",
            )
        ]
    unknown = [_unknown_key(key) for key in given if key not in ALLOWED]
    wrong = [
        checks.Error(f"OUTBOX[{key!r}] is {value!r}; use {ALLOWED[key][1]}.", id="outbox.E003")
        for key, value in given.items()
        if key in ALLOWED and not ALLOWED[key][0](value)
    ]
    return [*unknown, *wrong]


def _unknown_key(key: Any) -> checks.CheckMessage:
    known = ", ".join(Settings.keys())
    return checks.Error(
        f"OUTBOX has an unknown key {key!r}. Known keys: {known}.",
        hint=did_you_mean(key, Settings.keys()).strip() or None,
        id="outbox.E002",
    )


@checks.register("outbox")
def check_groups(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E004: two consumer groups under one name."""
    return [
        checks.Error(
            f"Two consumer groups are named {second.name!r}: {_described(first)} and "
            f"{_described(second)}.",
            hint="They would share one cursor, and only the second one's handlers would run. "
            "Rename one of them.",
            id="outbox.E004",
        )
        for first, second in groups.duplicates()
    ]


def _described(group: groups.ConsumerGroup) -> str:
    place = f" in {group.declared_at}" if group.declared_at else ""
    return f"one of {', '.join(group.channels)}{place}"


@checks.register("outbox")
def check_subscriptions(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """W011: a group reads a channel that nothing publishes to. W012: it handles such a type.

    I011 and I012 where the name resembles no declared one: publish_raw() or another program may
    publish it.
    """
    found: list[checks.CheckMessage] = []
    published = published_types()
    for group in groups.all_groups():
        what = f"Group {group.name!r}" + (f" ({group.declared_at})" if group.declared_at else "")
        for channel in group.channels:
            if channel not in published:
                found.append(_unpublished(f"{what} reads channel", channel, set(published), "011"))
        # A handler of a class names a type that exists, or existed before a rename.
        handled = {
            name
            for channel in group.channels
            for name, route in group.routes(channel).items()
            if route.event_type is None
        }
        types = set().union(*(published.get(channel, ()) for channel in group.channels))
        for name in sorted(handled - types):
            if types or _is_pattern(name):
                found.append(_unpublished(f"{what} handles type", name, types, "012"))
    return found


def published_types() -> dict[str, set[str]]:
    """Return the types of message that event classes and captures publish, by channel."""
    published: dict[str, set[str]] = {}
    for event_type in events.all_event_types():
        for channel, name in events.sources(event_type):
            published.setdefault(channel, set()).add(name)
    for model in apps.get_models(include_auto_created=True):
        for trigger in getattr(model._meta, "triggers", ()):
            if of_capture := getattr(trigger, "channel", None):
                table_of = model._meta.concrete_model or model
                published.setdefault(of_capture, set()).add(table_of._meta.label)
    return published


def _unpublished(what: str, name: str, known: set[str], number: str) -> checks.CheckMessage:
    is_pattern, suggestion = _is_pattern(name), did_you_mean(name, known)
    text = f"{what} {name!r}, which no event class and no capture() of this project publishes."
    if is_pattern:
        listed = f" ({', '.join(sorted(known))})" if known else ""
        suggestion = f" There are no patterns: write each name in full{listed}."
    if is_pattern or suggestion:
        return checks.Warning(text + suggestion, id=f"outbox.W{number}")
    hint = "Nothing is wrong if publish_raw() or another program publishes it."
    return checks.Info(text, hint=hint, id=f"outbox.I{number}")


def _is_pattern(name: str) -> bool:
    return bool(re.search(r"[*?#%>]", name))


@checks.register("outbox")
def check_events(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E010: an event class whose payload cannot be decoded."""
    found: list[checks.CheckMessage] = []
    for event_type in events.all_event_types():
        try:
            events.decoder_of(event_type)
            for field, kind in payloads.undecodable_fields(event_type):
                found.append(
                    checks.Error(
                        f"Event {event_type.__module__}.{event_type.__qualname__}: {field} is of "
                        f"type {kind}, which no payload can be decoded into.",
                        hint="Use a type that msgspec knows, such as str, Decimal, UUID, a "
                        "dataclass or a msgspec.Struct, and convert in the handler.",
                        id="outbox.E010",
                    )
                )
        except (NameError, TypeError) as error:
            found.append(
                checks.Error(
                    f"Event {event_type.__module__}.{event_type.__qualname__}: {error}",
                    hint="Give its fields types that msgspec decodes and that its module names.",
                    id="outbox.E010",
                )
            )
    return found
