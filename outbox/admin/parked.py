"""The pages of parked messages: by group, of a group by error and by key, one in full."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote, unquote
from django.db.models import Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _

from ..conf import log_alias
from ..models import Cursor, ParkedMessage
from ..operations import parked_selection
from ..operations.parked_selection import Selection
from . import pages
from .masking import as_json, shown_payload

PER_PAGE = 50


class ParkedMessageAdmin(pages.ControlRoomAdmin):
    """The messages that groups gave up on."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages."""
        return [
            self.view("", self.changelist_view, "parkedmessage_changelist"),
            self.view("<str:object_id>/change/", self.change_view, "parkedmessage_change"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The groups with parked messages, or those of one group by error, by key, and each."""
        using, group = log_alias(), pages.text(request, "group")
        if group is None:
            counted = Cursor.objects.using(using).filter(parked__gt=0).values("group")
            groups = counted.annotate(parked=Sum("parked")).order_by("group")
            title = _("Parked messages")
            return self.page(request, "parked_groups", title, groups=list(groups))
        chosen = self._chosen(request, group)
        rows = chosen.rows(using).defer("payload", "headers", "traceback")
        if after := pages.number(request, "after"):
            rows = rows.filter(position__gt=after)
        shown = list(rows[: PER_PAGE + 1])
        names = ("group", "key", "reason", "error", "since", "until")
        kept = {name: request.GET[name] for name in names if request.GET.get(name)}
        return self.page(
            request,
            "parked",
            _("Parked messages of %(group)s") % {"group": group},
            group=group,
            quoted=quote(group),
            chosen=chosen,
            given=request.GET,
            reasons=ParkedMessage.Reason.choices,
            errors=parked_selection.by_error(chosen, using),
            keys=parked_selection.by_key(chosen, using),
            rows=shown[:PER_PAGE],
            after=shown[PER_PAGE - 1].position if len(shown) > PER_PAGE else None,
            kept=urlencode(kept),
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """A parked message with its payload, its error and traceback, and what can be done."""
        found = unquote(object_id)
        digits = found.isascii() and found.isdecimal() and len(found) < 19
        rows = ParkedMessage.objects.using(log_alias())
        parked = rows.filter(pk=int(found)).first() if digits else None
        if parked is None:
            raise Http404(_("There is no such parked message any more."))
        return self.page(
            request,
            "parked_message",
            _("Parked message %(position)s") % {"position": parked.position},
            parked=parked,
            quoted=quote(parked.group),
            payload=shown_payload(parked),
            headers=as_json(parked.headers),
        )

    def _chosen(self, request: HttpRequest, group: str) -> Selection:
        return Selection(
            group=group,
            position=pages.number(request, "position"),
            key=pages.text(request, "key"),
            reason=pages.text(request, "reason"),
            error=pages.text(request, "error"),
            since=pages.time(request, "since"),
            until=pages.time(request, "until"),
        )
