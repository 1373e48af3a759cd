"""Rules: how long the messages of a channel are kept. Rules belong to channels.

`forever` is the default: nothing is removed unless the project asks for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from django.apps import AppConfig
from django.core import checks

from .. import events
from ..checks.declarations import published_types
from ..conf import settings
from ..exceptions import InvalidRule, did_you_mean

UNITS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
}
_DURATION = re.compile(r"(\d+)\s*(second|minute|hour|day|week)s?")
Kind = Literal["forever", "age", "latest"]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What a channel keeps.

    `kind`: "forever"; "age": messages younger than `age`; "latest": the newest message of each
    key, and messages without a key for `age`, or forever when that is None.
    """

    kind: Kind
    age: datetime.timedelta | None = None

    def __str__(self) -> str:
        if self.kind == "forever":
            return "forever"
        text = "" if self.age is None else _text(self.age)
        return text if self.kind == "age" else " ".join(filter(None, ["latest", text]))


FOREVER = Rule("forever")


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """The rules of all channels; `default` is for those that have none of their own."""

    by_channel: Mapping[str, Rule]
    default: Rule = FOREVER

    def of(self, channel: str) -> Rule:
        """Return the rule of a channel; streams are kept forever, whatever a setting says."""
        if events.is_stream_channel(channel):
            return FOREVER
        return self.by_channel.get(channel, self.default)

    @property
    def remove_something(self) -> bool:
        """Whether any channel may lose messages."""
        return any(rule != FOREVER for rule in (self.default, *self.by_channel.values()))


def parse_rule(text: Any, place: str) -> Rule:
    """Return the rule that a text says: "forever", "90 days", "latest" or "latest 7 days".

    `place`: the setting, for the error. Raises InvalidRule.
    """
    if not isinstance(text, str):
        raise InvalidRule(place=place, value=text)
    words = text.strip().lower()
    if words == "forever":
        return FOREVER
    if words == "latest":
        return Rule("latest")
    kind: Kind = "latest" if words.startswith("latest ") else "age"
    match = _DURATION.fullmatch(words.removeprefix("latest ").strip())
    if match is None or not int(match[1]):
        raise InvalidRule(place=place, value=text)
    try:
        age = datetime.timedelta(seconds=int(match[1]) * UNITS[match[2]])
    except OverflowError:
        raise InvalidRule(place=place, value=text) from None
    return Rule(kind, age)


def parse_rules(keep: Any, channels: Any) -> Rules:
    """Return the rules of the settings KEEP and CHANNELS; raises InvalidRule."""
    default = parse_rule(keep, 'OUTBOX["KEEP"]')
    if not isinstance(channels, Mapping):
        raise InvalidRule(place='OUTBOX["CHANNELS"]', value=channels)
    by_channel = {}
    for name, options in channels.items():
        place = f'OUTBOX["CHANNELS"][{name!r}]'
        if not isinstance(options, Mapping) or set(options) - {"keep"}:
            raise InvalidRule(place=place, value=options)
        by_channel[name] = parse_rule(options.get("keep", keep), f'{place}["keep"]')
    return Rules(by_channel, default)


def current() -> Rules:
    """Return the rules of the project's settings; raises InvalidRule."""
    return parse_rules(settings().keep, settings().channels)


@checks.register("outbox")
def check_rules(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E025: a retention rule that cannot be understood; E026: one that cannot be met.

    W029: one of a channel whose name is probably misspelt: the channel meant has another rule.
    """
    try:
        chosen = current()
    except InvalidRule as error:
        return [checks.Error(str(error), id="outbox.E025")]
    return _misspelt(chosen) + [
        checks.Error(
            f'OUTBOX["CHANNELS"][{name!r}]["keep"] is "{rule}", but {name} is a channel of '
            "streams, and those are kept forever: an aggregate is the sum of all its messages.",
            hint='Write "forever", or leave the rule out.',
            id="outbox.E026",
        )
        for name, rule in sorted(chosen.by_channel.items())
        if rule != FOREVER and events.is_stream_channel(name)
    ]


def _misspelt(chosen: Rules) -> list[checks.CheckMessage]:
    known = set(published_types())
    return [
        checks.Warning(
            f'OUTBOX["CHANNELS"] has a rule for {name!r}, to which nothing publishes.'
            f"{did_you_mean(name, known)}",
            hint="Correct the name, or take the rule out.",
            id="outbox.W029",
        )
        for name in chosen.by_channel
        if name not in known and did_you_mean(name, known)
    ]


def _text(age: datetime.timedelta) -> str:
    seconds = int(age.total_seconds())
    unit = next(name for name in reversed(UNITS) if seconds % UNITS[name] == 0)
    count = seconds // UNITS[unit]
    return f"{count} {unit}{'s' if count > 1 else ''}"
