"""Filters of the control room's templates."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from django import template
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..operations import cures
from ..operations.sessions import Holder
from ..sql import zoned

register = template.Library()


@register.filter
def age(time: datetime.datetime | None) -> str:
    """Return the age of a time, in one unit."""
    if time is None:
        return _("never")
    now = datetime.datetime.now(datetime.UTC)
    seconds = max(0, round((now - zoned(time)).total_seconds()))
    if seconds < 120:
        return _("%(n)s s ago") % {"n": seconds}
    if seconds < 7200:
        return _("%(n)s min ago") % {"n": seconds // 60}
    if seconds < 172800:
        return _("%(n)s h ago") % {"n": seconds // 3600}
    days = seconds // 86400
    return ngettext("%(n)s day ago", "%(n)s days ago", days) % {"n": days}


@register.filter
def named(value: str, names: Mapping[str, Any]) -> Any:
    """Return the name that a status has in the reader's language."""
    return names.get(value, value)


@register.filter
def unlocalized(value: float) -> str:
    """Return a number without thousands separators."""
    return repr(float(value))


@register.filter
def cure_of_holder(holder: Holder) -> str:
    """Return the command that ends the session which holds the horizon back."""
    return cures.end(holder)
