"""A page that shows the messages of a channel as they come, from the log, by Server-Sent Events.

The id of each event is the message's position. A browser that lost its connection sends the last id
that it saw, and goes on right behind it: nothing is missing and nothing comes twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

import outbox
from outbox import message_log
from outbox.models import Message

CHANNELS = ["notes"]
PAUSE = 0.2
"""Seconds between two looks at the log."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Notes, live</title>
<ol id="notes" aria-live="polite"></ol>
<script>
  const list = document.getElementById("notes")
  const source = new EventSource("/stream?after=0")
  source.addEventListener("NoteWritten", event => {
    const item = document.createElement("li")
    item.textContent = JSON.parse(event.data).text
    item.value = event.lastEventId
    list.append(item)
  })
</script>
"""


class NoteWritten(outbox.Event, channel="notes"):
    text: str


def show(request: HttpRequest) -> HttpResponse:
    """The page itself."""
    return HttpResponse(PAGE)


@csrf_exempt  # an example for the command line; a real form has a token
def write(request: HttpRequest) -> HttpResponse:
    """Publish a note."""
    with transaction.atomic():
        outbox.publish(NoteWritten(text=request.POST["text"]))
    return HttpResponse(status=204)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Messages behind the one that the browser saw last, as they come."""
    after = int(request.headers.get("Last-Event-ID") or request.GET.get("after", 0))
    return StreamingHttpResponse(events_after(after), content_type="text/event-stream")


def events_after(position: int) -> Iterator[str]:
    """Yield events for ever; a comment between two looks finds out that the browser is gone."""
    while True:
        # Above the horizon a message with a lower position may still appear: read up to it only.
        horizon = message_log.horizon("default", CHANNELS)
        found = Message.objects.filter(
            channel__in=CHANNELS, position__gt=position, position__lte=horizon
        )
        for message in found.order_by("position")[:500]:
            position = message.position
            yield f"id: {position}\nevent: {message.type}\ndata: {json.dumps(message.payload)}\n\n"
        yield ":\n\n"
        time.sleep(PAUSE)


urlpatterns = [path("", show), path("notes", write), path("stream", stream)]
