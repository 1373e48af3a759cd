"""Middleware that adds the user and the request's id to the headers of every message."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import FileResponse, HttpRequest, StreamingHttpResponse

from .headers import Block, context

REQUEST_ID_LENGTH = 200
"""Characters of a client's request id that are kept."""


class ContextMiddleware:
    """Attach `user` and `request_id` to every message of a request; see `outbox.context`.

    `user`: the primary key of `request.user` when the request first writes, None without a user
    or without authentication. `request_id`: the header X-Request-ID, else a new random one.
    A streamed body has them too. Place it anywhere in `MIDDLEWARE`, under WSGI or ASGI.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Answer the request with its values attached."""
        request_id = request.headers.get("X-Request-ID") or uuid.uuid4().hex
        block = context(user=lambda: _user(request), request_id=request_id[:REQUEST_ID_LENGTH])
        if self.is_async:
            return self._answer_async(request, block)
        with block:
            return _within(block, self.get_response(request))

    async def _answer_async(self, request: HttpRequest, block: Block) -> Any:
        with block:
            return _within(block, await self.get_response(request))


def _user(request: HttpRequest) -> Any:
    return getattr(getattr(request, "user", None), "pk", None)


def _within(block: Block, response: Any) -> Any:
    """Return the response; a streamed body is made within the block, chunk by chunk."""
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        body: Any = response.streaming_content
        chunks = _async_chunks(block, body) if response.is_async else _chunks(block, body)
        response.streaming_content = chunks
    return response


def _chunks(block: Block, body: Iterator[bytes]) -> Iterator[bytes]:
    # No yield inside the block: code that runs between two chunks would get the context.
    while True:
        with block:
            chunk = next(body, None)
        if chunk is None:
            return
        yield chunk


async def _async_chunks(block: Block, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        with block:
            chunk = await anext(body, None)
        if chunk is None:
            return
        yield chunk
