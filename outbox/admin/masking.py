"""Payloads as the pages show them: through the hook MASK where a project sets one."""

from __future__ import annotations

import json
import logging
from typing import Any

from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from ..conf import settings

logger = logging.getLogger("outbox")


def shown_payload(message: Any) -> str:
    """Return the payload of a message as indented JSON, masked.

    When the hook fails nothing of the payload is shown, and the error is logged.
    """
    payload = message.payload
    if hook := settings().mask:
        try:
            function = import_string(hook) if isinstance(hook, str) else hook
            payload = function(payload, message)
        except Exception:
            logger.exception('OUTBOX["MASK"] failed at message %s', message.position)
            return _("The payload is hidden: the function of OUTBOX['MASK'] failed; see the log.")
    return as_json(payload)


def as_json(value: Any) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
