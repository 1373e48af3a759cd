"""The pages of the log: by position, one message in full, the segments."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote, unquote
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _

from ..conf import log_alias
from ..models import ArchivedSegment, Message
from ..operations import log_pages
from ..operations.tail import Filter
from ..retention import readers, rules, segments
from . import pages
from .masking import as_json, shown_payload

PER_PAGE = 50
NEIGHBOURS = 5
"""Messages of the same key that are shown before and after a message."""
LATEST_ARCHIVES = 20


class MessageAdmin(pages.ControlRoomAdmin):
    """The log."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages."""
        return [
            self.view("", self.changelist_view, "message_changelist"),
            self.view("segments/", self.segments_view, "message_segments"),
            self.view("<str:object_id>/change/", self.change_view, "message_change"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A page of the log, the newest message first; it never counts the log."""
        using = log_alias()
        names = {name: pages.text(request, name) for name in ("channel", "key", "type")}
        chosen, after = Filter(**names), pages.number(request, "after")
        before = pages.number(request, "before")
        if position := pages.number(request, "position"):
            before = position + 1
        if time := pages.time(request, "time"):
            after = log_pages.place_of(time, using) - 1
        if after is not None:
            found = log_pages.page_after(chosen, after, PER_PAGE, using)
        else:
            found = log_pages.page_before(chosen, before, PER_PAGE, using)
        kept = urlencode({name: value for name, value in names.items() if value})
        return self.page(
            request,
            "log",
            _("Log"),
            found=found,
            chosen=names,
            time=request.GET.get("time", ""),
            kept=f"&{kept}" if kept else "",
            is_filtered=bool(chosen.key or chosen.type),
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """A message: payload, headers, the groups that passed it, its neighbours of the key."""
        using = log_alias()
        found = unquote(object_id)
        digits = found.isascii() and found.isdecimal() and len(found) < 19
        message = (
            Message.objects.using(using).filter(position=int(found)).first() if digits else None
        )
        if message is None:
            raise Http404(_("The log has no message at this position."))
        near = log_pages.neighbours(message, NEIGHBOURS, using) if message.key is not None else []
        return self.page(
            request,
            "message",
            _("Message %(position)s") % {"position": message.position},
            message=message,
            payload=shown_payload(message),
            headers=as_json(message.headers),
            readers=[(each, quote(each.group)) for each in log_pages.readers(message, using)],
            neighbours=near,
            walked=log_pages.WALKED,
        )

    def segments_view(self, request: HttpRequest) -> HttpResponse:
        """The segments, the rules of the channels, and the files of the archive."""
        using = log_alias()
        found = segments.list_segments(using)
        chosen = rules.current()
        slowest = readers.slowest(readers.readers(using))
        archived = ArchivedSegment.objects.using(using).order_by("-id")[:LATEST_ARCHIVES]
        return self.page(
            request,
            "segments",
            _("Segments"),
            segments=found,
            bytes=sum(each.bytes for each in found),
            default=chosen.default,
            rules=[(name, chosen.of(name), each) for name, each in sorted(slowest.items())],
            archived=list(archived),
        )
