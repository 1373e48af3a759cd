"""The pages of the consumer groups: all groups, one group in full, and its actions."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import quote, unquote
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _

from ..conf import log_alias
from ..exceptions import UnknownGroup
from ..operations import cures, parked_selection, status
from ..operations.parked_selection import Selection
from . import actions, pages, session_actions

LAG_COUNTED = 100_000
"""Pending messages that a page counts, over all cursors."""


class GroupAdmin(pages.ControlRoomAdmin):
    """The consumer groups."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages; the address holds the group's name in place of a primary key."""
        return [
            self.view("", self.changelist_view, "group_changelist"),
            self.view("session/<int:pid>/end/", self.end_session, "group_end_session"),
            self.view("<str:object_id>/change/", self.change_view, "group_change"),
            self.view("<str:object_id>/do/<str:action>/", self.do, "group_do"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All groups: status and cause, lag, rate, parked messages, and what holds the horizon."""
        found = status.overview(log_alias(), lag_budget=LAG_COUNTED)
        totals = {
            "lag": sum(each.lag for each in found.groups),
            "is_lower_bound": any(each.lag_is_lower_bound for each in found.groups),
            "rate": sum(each.rate for each in found.groups),
            "parked": sum(each.parked for each in found.groups),
        }
        return self.page(
            request,
            "groups",
            _("Consumer groups"),
            overview=found,
            rows=[(each, quote(each.group)) for each in found.groups],
            never_run=[(name, quote(name), cures.start(name)) for name in found.never_run],
            totals=totals,
            status_names=pages.STATUS_NAMES,
            can_be_live=True,
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """One group: its ranges, workers, parked messages by error, actions and their record."""
        name, using = unquote(object_id), log_alias()
        try:
            found = status.describe(name, using, lag_budget=LAG_COUNTED)
        except UnknownGroup as error:
            raise Http404(str(error)) from error
        parked = []
        if found.summary.parked:
            parked = parked_selection.by_error(Selection(group=name), using)
        return self.page(
            request,
            "group",
            name,
            group=name,
            quoted=quote(name),
            found=found,
            state=found.summary,
            parked=parked,
            status_names=pages.STATUS_NAMES,
            can_be_live=True,
        )

    def do(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """An action on a group: its plan, then its confirmation."""
        return actions.view(self, request, unquote(object_id), action)

    def end_session(self, request: HttpRequest, pid: int) -> HttpResponse:
        """End a session that holds the horizon back: the plan, then the confirmation."""
        return session_actions.view(self, request, pid)
