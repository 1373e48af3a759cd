"""End a session that holds the horizon back: plan -> confirm -> ended | refused."""

from __future__ import annotations

import json

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _

from ..conf import log_alias
from ..exceptions import CannotEndSession, PlanChanged
from ..operations import action_log, plans, sessions
from ..operations.plans import Facts
from . import actions, forms
from .pages import ControlRoomAdmin


def view(page: ControlRoomAdmin, request: HttpRequest, pid: int) -> HttpResponse:
    """Return the plan, or end the session; raises PermissionDenied."""
    actions.require(request, "end-session")
    using, confirmation, changes, error = log_alias(), forms.ReasonForm(), None, ""
    if request.method == "POST":
        confirmation = forms.ReasonForm(request.POST)
        if confirmation.is_valid():
            data = confirmation.cleaned_data
            try:
                return _end(page, request, pid, data["plan"], data["reason"], using)
            except PlanChanged as changed:
                changes = changed.changes
            except CannotEndSession as failed:
                error = str(failed)
    facts = None
    try:
        facts = _facts(sessions.find_holder(pid, using))
    except CannotEndSession as failed:
        error = error or str(failed)
    return page.page(
        request,
        "action",
        _("End session %(pid)s") % {"pid": pid},
        status=409 if changes else 400 if error else 200,
        facts=facts,
        plan=json.dumps(facts),
        confirmation=confirmation,
        changes=changes,
        error=error,
    )


def _end(
    page: ControlRoomAdmin, request: HttpRequest, pid: int, shown: object, reason: str, using: str
) -> HttpResponse:
    holder = sessions.find_holder(pid, using)
    plans.check(shown if isinstance(shown, dict) else {}, _facts(holder))
    with action_log.acting_as(request.user.get_username()):
        sessions.end_session(pid, holder.since, reason=reason, using=using)
    text = _("Session %(pid)s of %(user)s was ended.") % {"pid": pid, "user": holder.user}
    actions.record(request, "", f"{text} ({reason})")
    messages.success(request, text)
    home = reverse("admin:outbox_group_changelist", current_app=page.admin_site.name)
    return HttpResponseRedirect(home)


def _facts(holder: sessions.Holder) -> Facts:
    """Return what identifies the session and its transaction."""
    return {
        _("process"): str(holder.pid),
        _("application"): holder.application,
        _("user"): holder.user,
        _("transaction since"): holder.since.isoformat() if holder.since else "",
        _("holds the horizon at"): str(holder.floor),
    }
