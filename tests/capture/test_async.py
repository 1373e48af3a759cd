"""context() and publish() in async code: each task's values go with its own messages."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory

import outbox
from outbox.middleware import ContextMiddleware
from outbox.models import Message
from tests.library.models import Media
from tests.shop.events import OrderPlaced

pytestmark = pytest.mark.django_db(transaction=True)


def written():
    """The headers by what was written: a name of Media, or the number of an order."""
    return {
        message.payload.get("order_id") or message.payload["new"]["name"]: message.headers
        for message in Message.objects.all()
    }


@transaction.atomic
def place_order(number):
    outbox.publish(OrderPlaced(order_id=number))


def test_values_of_an_async_block_go_along():
    """With `with` and with `async with`, for the ORM and for publish() through sync_to_async."""

    async def work():
        with outbox.context(user="ann"):
            await Media.objects.acreate(name="with")
            await sync_to_async(place_order)(1)
        async with outbox.context(user="bob"):
            await Media.objects.acreate(name="async with")
        await Media.objects.acreate(name="after")

    async_to_sync(work)()

    assert written() == {
        "with": {"user": "ann"},
        1: {"user": "ann"},
        "async with": {"user": "bob"},
        "after": {},
    }


def test_values_of_tasks_do_not_mix():
    """Tasks that take turns share one connection, and each keeps its own values."""

    async def task(number):
        async with outbox.context(task=number):
            for step in range(5):
                await Media.objects.acreate(name=f"{number} {step}")
                await asyncio.sleep(0)

    async def work():
        async with outbox.context(outer=True):
            await asyncio.gather(*(task(number) for number in range(4)))

    async_to_sync(work)()

    assert written() == {
        f"{number} {step}": {"outer": True, "task": number}
        for number in range(4)
        for step in range(5)
    }


def test_a_decorated_function_runs_within_the_block():
    """A coroutine function too; a generator is refused, since it runs after the block has ended."""

    @outbox.context(user="ann")
    def plain():
        Media.objects.create(name="plain")

    @outbox.context(user="ann")
    async def lazy():
        await Media.objects.acreate(name="coroutine")

    def generator():
        yield

    plain()
    async_to_sync(lazy)()

    assert written() == {"plain": {"user": "ann"}, "coroutine": {"user": "ann"}}
    with pytest.raises(TypeError, match="cannot decorate"):
        outbox.context(user="ann")(generator)


def test_a_streamed_body_has_the_values_and_hands_on_none():
    """Each chunk is made within the block; between two chunks there are no values."""

    def body():
        for name in ("first", "second"):
            Media.objects.create(name=name)
            yield name

    middleware = ContextMiddleware(lambda request: StreamingHttpResponse(body()))
    response = middleware(RequestFactory().get("/", headers={"X-Request-ID": "r1"}))
    chunks = []
    for chunk in response.streaming_content:
        chunks.append(chunk)
        Media.objects.create(name=f"beside {len(chunks)}")
    response.close()

    values = {"user": None, "request_id": "r1"}
    assert chunks == [b"first", b"second"]
    assert written() == {"first": values, "second": values, "beside 1": {}, "beside 2": {}}


def test_the_middleware_in_an_async_stack():
    """An async view and its streamed body have the values of their request."""

    async def body():
        await Media.objects.acreate(name="streamed")
        yield b"x"

    async def view(request):
        await Media.objects.acreate(name=request.path)
        return StreamingHttpResponse(body()) if request.path == "/stream" else HttpResponse()

    async def work():
        middleware = ContextMiddleware(view)
        for path in ("/plain", "/stream"):
            request = AsyncRequestFactory().get(path, headers={"X-Request-ID": path})
            response = await middleware(request)
            if response.streaming:
                assert [chunk async for chunk in response.streaming_content] == [b"x"]

    async_to_sync(work)()

    def of(path):
        return {"user": None, "request_id": path}

    assert written() == {
        "/plain": of("/plain"),
        "/stream": of("/stream"),
        "streamed": of("/stream"),
    }
