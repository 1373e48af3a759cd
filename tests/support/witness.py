"""Consumer groups of a single test that keep what their handlers get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import outbox
from outbox.testing import isolated_groups
from tests.support.harness import drain


class Witness:
    """A group whose handler keeps events and messages."""

    def __init__(self, name: str, *channels: str, **options: Any) -> None:
        self.group = outbox.ConsumerGroup(name, channels=channels, **options)
        self.events: list[Any] = []
        self.messages: list[outbox.Message] = []

    def handle(self, event: Any, message: outbox.Message) -> None:
        self.events.append(event)
        self.messages.append(message)

    def of(self, *event_types: Any) -> Witness:
        """Handle these types; return the witness."""
        for event_type in event_types:
            self.group.handler(event_type)(self.handle)
        return self

    def drain(self) -> list[Any]:
        """Handle what is pending; return the events of just that."""
        before = len(self.events)
        drain(self.group)
        return self.events[before:]


@pytest.fixture
def witness() -> Iterator[Callable[..., Witness]]:
    """Declare a witness for one test; its group is forgotten afterwards."""
    with isolated_groups():
        yield Witness
