"""The forms of the actions: what an operator chooses before the plan is shown."""

from __future__ import annotations

import datetime
from typing import Any

from django import forms
from django.utils.dateparse import parse_duration
from django.utils.translation import gettext_lazy as _

from ..groups import MOST_RANGES
from ..models import ParkedMessage
from ..operations.reset_targets import RangePosition
from ..sql import zoned

LARGEST = 2**62
MOST_TRIED = 500
"""Messages that one request redrives unless the form says another number."""


class LocalTime(forms.DateTimeInput):
    input_type = "datetime-local"


class ReasonForm(forms.Form):
    """The confirmation of a plan."""

    reason = forms.CharField(label=_("Reason"), max_length=1000, strip=True)
    plan = forms.JSONField(widget=forms.HiddenInput)


class ChoicesForm(forms.Form):
    """The choices of an action; `channels`: those of the group."""

    def __init__(self, *args: Any, channels: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(field := self.fields.get("channel"), forms.ChoiceField):
            field.choices = [("", _("all channels")), *[(each, each) for each in channels]]


class ChannelForm(ChoicesForm):
    channel = forms.ChoiceField(label=_("Channel"), required=False)


class PauseForm(ChannelForm):
    until = forms.DateTimeField(
        label=_("Until"),
        required=False,
        widget=LocalTime,
        help_text=_("empty: until it is resumed"),
    )


class ScaleForm(ChannelForm):
    to = forms.IntegerField(label=_("Ranges"), min_value=1, max_value=MOST_RANGES)


class SkipForm(ChoicesForm):
    position = forms.IntegerField(label=_("Position"), min_value=1, max_value=LARGEST)


class ResetForm(ChannelForm):
    """Where to; the plan turns it into the position of each range, which `places` carries on."""

    WAYS = [
        ("to_earliest", _("to the first message of the log")),
        ("to_latest", _("to the end: only what is published from now on")),
        ("position", _("just after a position")),
        ("shift_by", _("by a number of positions, back if negative")),
        ("to_time", _("to a time, such as 2026-01-31T12:00+00:00")),
        ("by_duration", _("back by a duration, such as PT30M or P1DT2H")),
        ("to_group", _("to where another group stands")),
    ]

    way = forms.ChoiceField(label=_("Where to"), choices=WAYS, required=False)
    value = forms.CharField(
        label=_("Value"),
        required=False,
        help_text=_("the position, number, time, duration or group"),
    )
    places = forms.JSONField(required=False, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        """Turn the choice into the argument of `replay.reset`."""
        data = super().clean() or {}
        try:
            data["target"] = self._target(data)
        except (ValueError, TypeError, OverflowError):
            text = _("%(value)s does not say where to.") % {"value": repr(data.get("value"))}
            self.add_error("value", text)
        return data

    def _target(self, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("places"):
            return {"places": [RangePosition(str(p[0]), *map(int, p[1:4])) for p in data["places"]]}
        way, value = data.get("way") or "", data.get("value") or ""
        if way in ("to_earliest", "to_latest"):
            return {way: True}
        if way in ("position", "shift_by"):
            if abs(number := int(value)) > LARGEST:
                raise ValueError(value)
            return {way: number}
        if way == "to_time":
            return {way: zoned(datetime.datetime.fromisoformat(value))}
        duration = parse_duration(value) if way == "by_duration" else value
        if not duration or not way:
            raise ValueError(value)
        return {way: duration}


class SelectionForm(ChoicesForm):
    """Which parked messages; at least one field, so that an empty form never means all."""

    position = forms.IntegerField(
        label=_("Position"), required=False, min_value=1, max_value=LARGEST
    )
    key = forms.CharField(label=_("Key"), required=False, strip=False)
    error = forms.CharField(
        label=_("Error"), required=False, help_text=_("its class, or a part of its text")
    )
    all = forms.BooleanField(label=_("All of the group"), required=False)

    def clean(self) -> dict[str, Any]:
        """Refuse a form that chooses nothing."""
        data = super().clean() or {}
        if not self.errors and not any(value for value in data.values()):
            raise forms.ValidationError(_("Choose messages, or all of the group."))
        return data


class RedriveForm(SelectionForm):
    limit = forms.IntegerField(
        label=_("At most"), required=False, min_value=1, max_value=100_000, initial=MOST_TRIED
    )

    def clean(self) -> dict[str, Any]:
        """Refuse a form that chooses in several ways: a redrive takes whole keys."""
        data = self.cleaned_data
        ways = [name for name in ("position", "key", "error", "all") if data.get(name)]
        if not self.errors and len(ways) != 1:
            raise forms.ValidationError(_("Choose by one of position, key, error, or all."))
        return data


class DiscardForm(SelectionForm):
    kind = forms.ChoiceField(
        label=_("Kind"), required=False, choices=[("", _("any")), *ParkedMessage.Reason.choices]
    )
    since = forms.DateTimeField(label=_("Parked since"), required=False, widget=LocalTime)
    until = forms.DateTimeField(label=_("Parked before"), required=False, widget=LocalTime)
