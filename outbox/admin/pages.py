"""What the pages of the control room share: they change nothing, count no table, check permissions.

A page is a view of a `ModelAdmin`, so that the admin's login, menu, search paths and theme apply.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext_lazy as _

from ..conf import log_alias
from ..sql import zoned

if TYPE_CHECKING:
    BaseAdmin = admin.ModelAdmin[Model]
else:
    BaseAdmin = admin.ModelAdmin

ACTION_PERMISSIONS = {
    "pause": "operate_group",
    "resume": "operate_group",
    "scale": "scale_group",
    "reset": "reset_group",
    "skip": "skip_message",
    "redrive": "redrive_message",
    "discard": "discard_message",
    "forget": "forget_group",
    "end-session": "end_session",
}
"""The permission of each action, in the app "outbox"."""


class ControlRoomAdmin(BaseAdmin):
    """A model whose pages are views of the control room."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: the pages add no rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Return False: rows are changed by actions only."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Return False: rows are deleted by actions only."""
        return False

    def page(
        self, request: HttpRequest, template: str, title: Any, status: int = 200, **context: Any
    ) -> HttpResponse:
        """Return a page of the control room; its template lies in `outbox/control/`."""
        request.current_app = self.admin_site.name
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "is_live": request.GET.get("live") == "on",
            "may": actions_allowed(request),
            "sees": {
                name: request.user.has_perm(f"outbox.view_{name}")
                for name in ("group", "message", "parkedmessage", "operatoraction")
            },
        }
        name = f"outbox/control/{template}.html"
        return TemplateResponse(request, name, {**shared, **context}, status=status)

    def view(self, pattern: str, function: Callable[..., HttpResponse], name: str) -> URLPattern:
        """Return the pattern of a page for users who may see rows of this model.

        It opens no transaction around what the page does.
        """

        def permitted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return function(request, *args, **kwargs)

        view = transaction.non_atomic_requests(log_alias())(self.admin_site.admin_view(permitted))
        return path(pattern, view, name=f"outbox_{name}")


def actions_allowed(request: HttpRequest) -> dict[str, bool]:
    """Return which actions the user may do, by name with underscores."""
    user: Any = request.user
    return {
        name.replace("-", "_"): user.has_perm(f"outbox.{permission}")
        for name, permission in ACTION_PERMISSIONS.items()
    }


def number(request: HttpRequest, name: str) -> int | None:
    """Return a position that the address names; None when it names none."""
    text = request.GET.get(name, "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def text(request: HttpRequest, name: str) -> str | None:
    """Return a text that the address names; None when it is empty or PostgreSQL refuses it."""
    found = request.GET.get(name, "").strip()
    return found if found and "\x00" not in found else None


def time(request: HttpRequest, name: str) -> datetime.datetime | None:
    """Return a time that the address names, in the current zone unless it has one; else None."""
    try:
        found = datetime.datetime.fromisoformat(request.GET.get(name, "").strip())
    except ValueError:
        return None
    return zoned(found)


STATUS_NAMES = {
    "undeclared": _("undeclared"),
    "ok": _("ok"),
    "behind": _("behind"),
    "replaying": _("replaying"),
    "paused": _("paused"),
    "failing": _("failing"),
    "stalled": _("stalled"),
    "stopped": _("stopped"),
    "behind retention": _("behind retention"),
    "invalid": _("invalid"),
}
"""The statuses as the pages show them."""
