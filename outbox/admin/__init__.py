"""The tables in Django's admin, read-only: nothing can be added, changed or deleted there.

Changes go through `manage.py outbox`, which takes the locks and records who did what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from ..models import Cursor, Message, OperatorAction, ParkedMessage

MOST_LISTED = 10_000
"""Rows of a table that are listed; the log may be too long to be counted."""

if TYPE_CHECKING:
    BaseAdmin = admin.ModelAdmin[Model]
    BasePaginator = Paginator[Model]
else:
    BaseAdmin = admin.ModelAdmin
    BasePaginator = Paginator


class FirstPages(BasePaginator):
    """Pages of the first rows only, so that a page never counts the whole table."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, up to `MOST_LISTED`."""
        return cast(QuerySet[Any], self.object_list)[:MOST_LISTED].count()


class ReadOnly(BaseAdmin):
    """A model that can be viewed only."""

    paginator = FirstPages
    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Read-only."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Read-only."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Read-only."""
        return False


@admin.register(Message)
class MessageAdmin(ReadOnly):
    list_display = ["position", "created_at", "channel", "type", "key"]
    ordering = ["-position"]
    search_fields = ["=position"]
    search_help_text = "a position"


@admin.register(Cursor)
class CursorAdmin(ReadOnly):
    list_display = ["group", "channel", "slot_from", "slot_to", "position", "attempts", "parked"]
    list_filter = ["group", "channel"]
    ordering = ["group", "channel", "slot_from"]


@admin.register(ParkedMessage)
class ParkedMessageAdmin(ReadOnly):
    list_display = ["group", "position", "channel", "key", "type", "reason", "attempts", "error"]
    list_filter = ["group", "reason"]
    ordering = ["group", "position"]
    search_fields = ["=key", "=position"]
    search_help_text = "a key or a position"


@admin.register(OperatorAction)
class OperatorActionAdmin(ReadOnly):
    list_display = ["at", "actor", "action", "group", "details"]
    list_filter = ["group", "action"]
    ordering = ["-id"]
