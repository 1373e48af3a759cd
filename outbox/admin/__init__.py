"""The control room: what is late, why, and what to do about it, as pages of Django's admin.

Looking needs the permission to view the model of a page; each action has a permission of its own,
shows its plan first, and calls the function that the command line calls.
"""

from __future__ import annotations

from django.contrib import admin

from ..models import Group, Message, OperatorAction, ParkedMessage
from .groups import GroupAdmin
from .log import MessageAdmin
from .parked import ParkedMessageAdmin
from .record import OperatorActionAdmin

admin.site.register(Group, GroupAdmin)
admin.site.register(Message, MessageAdmin)
admin.site.register(ParkedMessage, ParkedMessageAdmin)
admin.site.register(OperatorAction, OperatorActionAdmin)
