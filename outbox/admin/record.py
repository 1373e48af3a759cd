"""The page of the operators' record."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import quote
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _

from ..conf import log_alias
from ..models import OperatorAction
from . import pages
from .masking import as_json

PER_PAGE = 50


class OperatorActionAdmin(pages.ControlRoomAdmin):
    """What operators did."""

    def get_urls(self) -> list[URLPattern]:
        """Return the page."""
        return [
            self.view("", self.changelist_view, "operatoraction_changelist"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The actions, the latest first, of all groups or of one."""
        rows = OperatorAction.objects.using(log_alias()).order_by("-id")
        group, before = pages.text(request, "group"), pages.number(request, "before")
        rows = rows.filter(group=group) if group else rows
        rows = rows.filter(pk__lt=before) if before else rows
        found = list(rows[: PER_PAGE + 1])
        return self.page(
            request,
            "record",
            _("Record of operators' actions"),
            group=group or "",
            rows=[
                (each, quote(each.group), each.details.get("reason", ""), as_json(each.details))
                for each in found[:PER_PAGE]
            ],
            before=found[PER_PAGE - 1].pk if len(found) > PER_PAGE else None,
        )
