"""Actions on the parked messages of a group: what each shows as its plan, and does."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..operations import discards, parked_selection, redrives
from ..operations.parked_selection import Selection
from ..operations.plans import Facts
from ..sql import zoned
from . import forms
from .group_actions import Action, Done, messages_text


class Redrive(Action):
    name, title, form = "redrive", gettext_lazy("Redrive"), forms.RedriveForm
    is_one_transaction = False

    @property
    def which(self) -> dict[str, Any]:
        """The selection as `redrives.redrive` takes it."""
        choice = self.choice
        return {
            "key": choice["key"] or None,
            "position": choice["position"],
            "error": choice["error"] or None,
            "everything": choice["all"],
        }

    def facts(self) -> Facts:
        """Return how many parked messages would be tried."""
        found = redrives.redrive(
            self.group, **self.which, dry_run=True, limit=self._limit, using=self.using
        )
        return {
            _("selected"): messages_text(found.remaining),
            _("tried"): messages_text(found.handled),
        }

    def execute(self, reason: str) -> Done:
        """Handle the messages again, in this process."""
        done = redrives.redrive(
            self.group, **self.which, limit=self._limit, reason=reason, using=self.using
        )
        text = _(
            "%(handled)s handled, %(skipped)s skipped, %(failed)s failed again, "
            "%(left)s parked still"
        ) % {
            "handled": done.handled,
            "skipped": done.skipped,
            "failed": len(done.failed),
            "left": done.remaining,
        }
        first = f" ({done.failed[0].position}: {done.failed[0].error})" if done.failed else ""
        return not done.failed, text + first

    @property
    def _limit(self) -> int:
        return self.choice["limit"] or forms.MOST_TRIED


class Discard(Action):
    name, title, form = "discard", gettext_lazy("Discard"), forms.DiscardForm

    @property
    def selection(self) -> Selection:
        """The parked messages of the form."""
        choice = self.choice
        return Selection(
            group=self.group,
            position=choice["position"],
            key=choice["key"] or None,
            error=choice["error"] or None,
            reason=choice["kind"] or None,
            since=zoned(choice["since"]) if choice["since"] else None,
            until=zoned(choice["until"]) if choice["until"] else None,
        )

    def facts(self) -> Facts:
        """Return how many messages and keys are selected, and the first and last position."""
        return _total(
            discards.discard_all(self.selection, reason="", execute=False, using=self.using)
        )

    def execute(self, reason: str) -> Done:
        """Delete the selected parked messages."""
        done = discards.discard_all(self.selection, reason=reason, using=self.using)
        return True, messages_text(done.messages)


def _total(found: parked_selection.Total) -> Facts:
    numbers = dataclasses.asdict(found)
    names = {
        "messages": _("messages"),
        "keys": _("keys"),
        "first_position": _("first position"),
        "last_position": _("last position"),
    }
    return {names[name]: str(value) for name, value in numbers.items()}
