"""The actions on a group: choose -> plan -> confirm -> done | refused.

The address holds the choice (GET, which changes nothing), the page shows the plan, and the
confirmation (POST) carries it back. Under the locks of the change the plan is made again; the
change is refused when it is another one.
"""

from __future__ import annotations

import contextlib
import json

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import get_content_type_for_model
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from ..conf import log_alias
from ..consuming import cursor_rows
from ..exceptions import OutboxError, PlanChanged
from ..models import Group
from ..operations import action_log, cursor_locks, plans
from . import forms
from .group_actions import Action, Forget, Pause, Reset, Resume, Scale, Skip
from .pages import ACTION_PERMISSIONS, ControlRoomAdmin
from .parked_actions import Discard, Redrive

ACTIONS: dict[str, type[Action]] = {
    each.name: each for each in (Pause, Resume, Scale, Reset, Skip, Redrive, Discard, Forget)
}


def view(page: ControlRoomAdmin, request: HttpRequest, group: str, name: str) -> HttpResponse:
    """Return the page of an action, or do it; raises PermissionDenied and Http404."""
    if name not in ACTIONS:
        raise Http404
    require(request, name)
    using = log_alias()
    channels = sorted({row.channel for row in cursor_rows.see(group, using)})
    if request.method == "POST":
        return _confirm(page, request, ACTIONS[name], group, channels, using)
    chosen = {key: value for key, value in request.GET.items() if value and key != "live"}
    kind = ACTIONS[name]
    form = kind.form(chosen if chosen or not kind.asks else None, channels=channels)
    return _show(page, request, kind, group, form, using)


def require(request: HttpRequest, name: str) -> None:
    """Raise PermissionDenied for a user without the permission of an action."""
    if not request.user.has_perm(f"outbox.{ACTION_PERMISSIONS[name]}"):
        raise PermissionDenied


def record(request: HttpRequest, group: str, sentence: str) -> None:
    """Add an action to Django's own log of the admin, which is shown on its first page."""
    LogEntry.objects.create(
        user_id=request.user.pk or 0,
        content_type_id=get_content_type_for_model(Group()).pk,
        object_id=group,
        object_repr=group[:200],
        action_flag=CHANGE,
        change_message=sentence,
    )


def _show(
    page: ControlRoomAdmin,
    request: HttpRequest,
    kind: type[Action],
    group: str,
    form: forms.ChoicesForm,
    using: str,
    *,
    confirmation: forms.ReasonForm | None = None,
    changes: list[str] | None = None,
    error: str = "",
) -> HttpResponse:
    """Return the form, and the plan when the form is complete."""
    facts, carried = None, {}
    if form.is_bound and form.is_valid():
        action = kind(group, form.cleaned_data, using)
        try:
            facts = action.facts()
            carried = {name: form.data[name] for name in form.fields if form.data.get(name)}
            carried |= action.carried()
        except (OutboxError, DatabaseError) as failed:
            error = error or str(failed)
    return page.page(
        request,
        "action",
        f"{kind.title}: {group}",
        status=409 if changes else 400 if error else 200,
        group=group,
        quoted=quote(group),
        action=kind,
        form=form,
        facts=facts,
        plan=json.dumps(facts),
        carried=carried,
        confirmation=confirmation or forms.ReasonForm(),
        changes=changes,
        error=error,
    )


def _confirm(
    page: ControlRoomAdmin,
    request: HttpRequest,
    kind: type[Action],
    group: str,
    channels: list[str],
    using: str,
) -> HttpResponse:
    form = kind.form(request.POST, channels=channels)
    confirmation = forms.ReasonForm(request.POST)
    if not form.is_valid() or not confirmation.is_valid():
        return _show(page, request, kind, group, form, using, confirmation=confirmation)
    reason, shown = confirmation.cleaned_data["reason"], confirmation.cleaned_data["plan"]
    action = kind(group, form.cleaned_data, using)
    try:
        with contextlib.ExitStack() as stack:
            if kind.is_one_transaction:
                stack.enter_context(transaction.atomic(using=using))
                cursor_locks.rows_of(group, None, using)
            plans.check(shown if isinstance(shown, dict) else {}, action.facts())
            stack.enter_context(action_log.acting_as(request.user.get_username()))
            done, sentence = action.execute(reason)
            record(request, group, f"{kind.title}: {sentence} ({reason})")
    except PlanChanged as changed:
        return _show(page, request, kind, group, form, using, changes=changed.changes)
    except (OutboxError, DatabaseError) as failed:
        return _show(page, request, kind, group, form, using, error=str(failed))
    level = messages.SUCCESS if done else messages.WARNING
    messages.add_message(request, level, f"{kind.title}: {sentence}")
    name = page.admin_site.name
    address = reverse("admin:outbox_group_change", args=[quote(group)], current_app=name)
    gone = kind.name == "forget"
    home = reverse("admin:outbox_group_changelist", current_app=name)
    return HttpResponseRedirect(home if gone else address)
