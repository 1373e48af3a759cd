"""Middleware that says in every message of a request who made it, and which request it was."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponseBase

from .headers import context

REQUEST_ID_LENGTH = 200
"""Characters of a client's request id that are kept."""


class ContextMiddleware:
    """Attach `user` and `request_id` to every message of a request; see `outbox.context`.

    `user`: the primary key of `request.user` when the request first writes, None for nobody
    or without authentication. `request_id`: the header X-Request-ID, else a new random one.
    Place it anywhere in `MIDDLEWARE`.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request with its values attached."""
        request_id = request.headers.get("X-Request-ID") or uuid.uuid4().hex
        with context(user=lambda: _user(request), request_id=request_id[:REQUEST_ID_LENGTH]):
            return self.get_response(request)


def _user(request: HttpRequest) -> Any:
    return getattr(getattr(request, "user", None), "pk", None)
