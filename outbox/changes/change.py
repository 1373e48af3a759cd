"""The events of captured model changes: `Change[Author]` is what `capture()` makes of an Author.

A class per model stands for the messages of every channel that captures the model's table.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from django.db import models

from ..messages import STREAM_HEADER, Message
from . import row_images
from .capture import captures_of, message_type
from .former_names import former_types
from .row_images import Operation

Model = TypeVar("Model", bound=models.Model)


class Change(Generic[Model]):
    """What happened to one row; `Change[Author]` names the events of a model's changes.

    `operation`: "insert", "update", "delete", or "snapshot" (the row as it was found there).
    `old`, `new`: the row before and after as an instance of the model, made without a query;
    None where there is none. Fields that the message does not hold are deferred.
    `changed`: the names of the fields that differ between old and new; empty when there is
    only one of them.
    `context`: the values of `outbox.context()` in the transaction that made the change.
    """

    __slots__ = ("changed", "context", "new", "old", "operation")

    model: ClassVar[type[models.Model]]

    def __init__(
        self,
        operation: Operation,
        old: Model | None,
        new: Model | None,
        changed: frozenset[str] = frozenset(),
        context: dict[str, Any] | None = None,
    ) -> None:
        self.operation = operation
        self.old = old
        self.new = new
        self.changed = changed
        self.context = context if context is not None else {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.operation} {self.old!r} -> {self.new!r}>"

    if not TYPE_CHECKING:

        def __class_getitem__(cls, model: type[models.Model]) -> type[Change]:
            return super().__class_getitem__(model) if isinstance(model, TypeVar) else _of(model)

    @classmethod
    def sources(cls) -> list[tuple[str, str]]:
        """Return the channels that capture the model, each with the messages' type name."""
        channels = dict.fromkeys(trigger.channel for _, trigger in captures_of(cls.model))
        return [(channel, message_type(cls.model)) for channel in channels]

    @classmethod
    def __message_types__(cls) -> tuple[str, ...]:
        """Return the type name of the model's messages, and those from before it was renamed."""
        return message_type(cls.model), *former_types(cls.model)

    @classmethod
    def from_message(cls, message: Message) -> Change[Model]:
        """Return the change that a message holds; see `messages.decode`."""
        operation, old, new, changed = row_images.image_of(cls.model).read(message.raw_payload)
        context = None if message.raw_headers == "{}" else message.headers
        if context is not None:
            context.pop(STREAM_HEADER, None)
        return cls(operation, old, new, changed, context)


@functools.cache
def _of(model: type[models.Model]) -> type[Change[Any]]:
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        raise TypeError(f"Change[{model!r}]: name a model class.")
    return type(f"Change[{model.__name__}]", (Change,), {"__slots__": (), "model": model})
