"""Actions on the cursors of a group: what each shows as its plan, and does.

They call the functions of the command line.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, ClassVar

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ..consuming.cursor_rows import CursorRow
from ..exceptions import ScaleUnfinished
from ..operations import (
    forgetting,
    pauses,
    range_status,
    replay,
    scaling,
)
from ..operations.plans import Facts
from ..sql import zoned
from . import forms

COUNTED = 100_000
"""Messages that the plan of a reset looks at, over all ranges."""
SCALE_SECONDS = 5.0
"""How long a request waits until workers have brought ranges together for a merge."""

Done = tuple[bool, str]
"""Whether all was done, and a sentence about it."""


class Action:
    """An action on a group, with the choices of its form."""

    name: ClassVar[str]
    title: ClassVar[str | Promise]
    form: ClassVar[type[forms.ChoicesForm]]
    asks: ClassVar[bool] = True
    """Whether its form must be filled in before there is a plan."""
    is_one_transaction: ClassVar[bool] = True
    """Whether plan and change happen in one transaction that holds the group's cursor rows."""

    def __init__(self, group: str, choice: dict[str, Any], using: str) -> None:
        self.group, self.choice, self.using = group, choice, using

    def facts(self) -> Facts:
        """Return the plan; changes nothing."""
        raise NotImplementedError

    def carried(self) -> dict[str, str]:
        """Return what the confirmation must know beside the choice."""
        return {}

    def execute(self, reason: str) -> Done:
        """Do it."""
        raise NotImplementedError

    @property
    def channels(self) -> list[str] | None:
        """The chosen channel; None: all."""
        return [self.choice["channel"]] if self.choice.get("channel") else None


class Pause(Action):
    name, title, form, asks = "pause", gettext_lazy("Pause"), forms.PauseForm, False

    def _rows(self, reason: str, execute: bool) -> list[CursorRow]:
        until = self.choice["until"]
        return pauses.pause(
            self.group,
            until=zoned(until) if until else None,
            channels=self.channels,
            reason=reason,
            using=self.using,
            execute=execute,
        )

    def facts(self) -> Facts:
        """Return for each range until when it is paused now and will be."""
        until = self.choice["until"]
        new = zoned(until).isoformat() if until else _("until it is resumed")
        return {_range(row): f"{_pause_of(row)} → {new}" for row in self._rows("", False)}

    def execute(self, reason: str) -> Done:
        """Pause the ranges."""
        return True, ranges_text(len(self._rows(reason, True)))


class Resume(Action):
    name, title, form, asks = "resume", gettext_lazy("Resume"), forms.ChannelForm, False

    def _rows(self, reason: str, execute: bool) -> list[CursorRow]:
        return pauses.resume(
            self.group, channels=self.channels, reason=reason, using=self.using, execute=execute
        )

    def facts(self) -> Facts:
        """Return the ranges that are paused now."""
        return {_range(row): f"{_pause_of(row)} → {_('running')}" for row in self._rows("", False)}

    def execute(self, reason: str) -> Done:
        """Resume the ranges."""
        return True, ranges_text(len(self._rows(reason, True)))


class Reset(Action):
    name, title, form = "reset", gettext_lazy("Reset"), forms.ResetForm

    def _moves(self, reason: str, execute: bool) -> list[replay.CursorMove]:
        return replay.reset(
            self.group,
            **self.choice["target"],
            channels=self.channels,
            using=self.using,
            execute=execute,
            reason=reason,
            most=COUNTED,
        )

    def facts(self) -> Facts:
        """Return from where to where each range moves, and which messages that means."""
        self.moves = self._moves("", False)
        return {_range(move): _move(move) for move in self.moves}

    def carried(self) -> dict[str, str]:
        """Return the positions of the plan: they are what is confirmed."""
        places = [[move.channel, move.slot_from, move.slot_to, move.new] for move in self.moves]
        return {"places": json.dumps(places)}

    def execute(self, reason: str) -> Done:
        """Move the ranges."""
        return True, ranges_text(len(self._moves(reason, True)))


class Scale(Action):
    name, title, form = "scale", gettext_lazy("Scale"), forms.ScaleForm
    is_one_transaction = False

    def facts(self) -> Facts:
        """Return how many ranges there are and will be, by channel."""
        ranges = range_status.current(self.group, 0, self.using)
        return {
            name: f"{sum(each.channel == name for each in ranges)} → {self.choice['to']}"
            for name in sorted({each.channel for each in ranges})
            if name in (self.channels or [name])
        }

    def execute(self, reason: str) -> Done:
        """Split ranges, or merge them as far as workers bring them together meanwhile."""
        try:
            ranges = scaling.scale(
                self.group,
                self.choice["to"],
                channel=self.choice["channel"] or None,
                using=self.using,
                timeout=SCALE_SECONDS,
                reason=reason,
            )
        except ScaleUnfinished as error:
            return False, str(error)
        return True, ranges_text(len(ranges))


class Skip(Action):
    name, title, form = "skip", gettext_lazy("Skip a message"), forms.SkipForm

    def _row(self, reason: str, execute: bool) -> CursorRow:
        position = self.choice["position"]
        return replay.skip(self.group, position, reason=reason, using=self.using, execute=execute)

    def facts(self) -> Facts:
        """Return from where the range moves past the message."""
        row = self._row("", False)
        effect = f"{messages_text(1)} {_('not handled')}"
        return {_range(row): f"{row.position} → {self.choice['position']}: {effect}"}

    def execute(self, reason: str) -> Done:
        """Move the range past the message."""
        row = self._row(reason, True)
        return True, f"{row.channel}: {row.position} → {self.choice['position']}"


class Forget(Action):
    name, title, form, asks = "forget", gettext_lazy("Forget"), forms.ChannelForm, False

    def _found(self, reason: str, execute: bool) -> list[forgetting.Forgotten]:
        channel = self.choice["channel"] or None
        return forgetting.forget(
            self.group, channel=channel, reason=reason, execute=execute, using=self.using
        )

    def facts(self) -> Facts:
        """Return the number of ranges and of parked messages in each channel."""
        return {
            each.channel: f"{ranges_text(each.ranges)}, {messages_text(each.parked)} {_('parked')}"
            for each in self._found("", False)
        }

    def execute(self, reason: str) -> Done:
        """Delete the cursors and parked messages."""
        return True, ", ".join(each.channel for each in self._found(reason, True))


def _range(row: CursorRow | replay.CursorMove) -> str:
    return f"{row.channel} {row.slot_from}-{row.slot_to}"


def _pause_of(row: CursorRow) -> str:
    until = row.paused_until
    if until is None or until <= datetime.datetime.now(datetime.UTC):
        return _("running")
    return _("until it is resumed") if until == pauses.FOREVER else until.isoformat()


def _move(move: replay.CursorMove) -> str:
    count = messages_text(move.messages, move.is_lower_bound)
    effect = _("handled again") if move.delta < 0 else _("not handled")
    clamped = _("; brought to where the log goes") if move.clamped else ""
    return f"{move.old} → {move.new}: {count} {effect}{clamped}"


def messages_text(count: int, is_lower_bound: bool = False) -> str:
    """Return a number of messages in words."""
    shown = f"{count}+" if is_lower_bound else str(count)
    return ngettext("%(n)s message", "%(n)s messages", count) % {"n": shown}


def ranges_text(count: int) -> str:
    """Return a number of ranges in words."""
    return ngettext("%(n)s range", "%(n)s ranges", count) % {"n": count}
