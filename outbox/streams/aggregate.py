"""Event-sourced models: the row of an aggregate is the fold of its stream, kept beside it.

    record: apply to the instance -> append at the row's version -> save the row, in one transaction

So constraints, the admin and ORM queries work on the row, and the stream is the truth: `rebuild`
makes the row from it again, `verify` finds rows that are something else.
"""

from __future__ import annotations

import dataclasses
import datetime
import secrets
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self, TypeVar

from django.db import models, router, transaction
from django.utils.translation import gettext_lazy as _

from ..events import Event, EventType, valid_channel
from ..exceptions import InvalidStream, StreamConflict
from ..publisher import Headers, publish, writable_alias
from ..sql import scalar
from .stream import Stream, stream

Method = TypeVar("Method", bound=Callable[..., Any])
MARK = "_outbox_applies"
ROW_IDENTITY = ("version", "rebuild_id")
"""Fields that say which state of a row was loaded."""


def applies(*event_types: EventType) -> Callable[[Method], Method]:
    """Mark a method of an aggregate as the one that applies events of these classes to it.

    It is called as `method(event)` and changes fields; it must not read or write anything else.
    """

    def mark(method: Method) -> Method:
        setattr(method, MARK, event_types)
        return method

    return mark


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """A row that is not the fold of its stream."""

    key: str
    differences: dict[str, tuple[Any, Any]]
    """Field -> its value in the row, its value in the fold."""


class Aggregate(models.Model):
    """An abstract model whose row is the fold of a stream.

    Declare it with `class Account(outbox.Aggregate, channel="accounts")`. The primary key is the
    key of the stream, `version` the version of its last event.
    """

    channel: ClassVar[str]
    _appliers: ClassVar[dict[EventType, str]]
    _loaded: dict[str, Any] | None = None
    """While record() saves: the fields that the row must still have."""

    version = models.BigIntegerField(_("version"), default=0, editable=False)
    rebuild_id = models.BigIntegerField(_("rebuild"), default=0, db_default=0, editable=False)
    """Another number after each `rebuild()`: an instance loaded before it cannot save over it."""

    class Meta:
        abstract = True

    def __init_subclass__(cls, channel: str | None = None, **options: Any) -> None:
        """Take `channel=` in the class statement, and find the methods that apply events."""
        super().__init_subclass__(**options)
        if channel is not None:
            cls.channel = valid_channel(channel, f"{cls.__name__}: ")
        cls._appliers = dict(getattr(cls, "_appliers", {}))
        for name, method in vars(cls).items():
            for event_type in getattr(method, MARK, ()):
                cls._appliers[event_type] = name

    def record(self, event: Event, *, headers: Headers = None, using: str | None = None) -> int:
        """Apply an event, append it to the stream at this row's version, and save the row.

        Returns the position. Raises StreamConflict when the stream has moved on since the row was
        loaded, or the row was rebuilt or changed without an event since then; InvalidStream for an
        event of another channel or key; and whatever the model's constraints raise. The instance is
        then as it was before.
        """
        alias = writable_alias(using or router.db_for_write(type(self), instance=self))
        self._check(event)
        before = dict(self.__dict__)
        adding = self._state.adding
        try:
            self.apply(event)
            position = publish(event, expected=before["version"], headers=headers, using=alias)
            self.version = before["version"] + 1
            self._loaded = None if adding else {name: before[name] for name in ROW_IDENTITY}
            super().save(using=alias, force_insert=adding, force_update=not adding)
            self._loaded = None
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            self._state.adding = adding
            raise
        return position

    def apply(self, event: Event) -> None:
        """Change the fields as an event says; nothing is saved. Raises InvalidStream."""
        name = self._appliers.get(type(event))
        if name is None:
            raise InvalidStream(
                f"{type(self).__name__} has no method for {type(event).__name__}: mark one with "
                f"@outbox.applies({type(event).__name__})."
            )
        getattr(self, name)(event)

    def save(self, *args: Any, **options: Any) -> None:
        """Refuse: a row that changes without an event would no longer be the fold of its stream."""
        raise InvalidStream(
            f"{type(self).__name__} {self.pk!r} is event-sourced: record() an event instead of "
            "save(), or rebuild() the row from its stream."
        )

    def _do_update(  # type: ignore[override]
        self, rows: models.QuerySet[Any], *args: Any, **options: Any
    ) -> bool:
        """Update the row as it was loaded only. save() rolls the transaction back on an error."""
        loaded = self._loaded if issubclass(rows.model, Aggregate) else None
        same = rows.filter(**loaded) if loaded else rows
        is_updated = bool(super()._do_update(same, *args, **options))
        if is_updated or not loaded:
            return is_updated
        raise StreamConflict(
            f"The row of {type(self).__name__} {self.pk!r} was rebuilt, deleted or changed without "
            "an event after it was loaded. Load it again and decide again, as outbox.decide() does "
            "by itself; when that fails too, rebuild() it.",
            channel=self.channel,
            key=str(self.pk),
            expected=loaded["version"],
            actual=None,
        )

    def delete(self, *args: Any, **options: Any) -> tuple[int, dict[str, int]]:
        """Refuse, as `save` does."""
        raise InvalidStream(
            f"{type(self).__name__} {self.pk!r} is event-sourced: record() an event that closes it."
        )

    @classmethod
    def stream(cls, key: Any, *, using: str | None = None) -> Stream:
        """Return the stream of a primary key."""
        return stream(cls.channel, str(key), using=using or router.db_for_write(cls))

    @classmethod
    def as_of(
        cls,
        key: Any,
        *,
        version: int | None = None,
        time: datetime.datetime | None = None,
        using: str | None = None,
    ) -> Self:
        """Return the instance as it was at a version or a time, not saved.

        `time`: with a zone. Raises InvalidStream before the first and after the last event.
        """
        history = cls.stream(key, using=using)
        if (version is None) == (time is None):
            raise InvalidStream("as_of() takes a version or a time.")
        wanted = history.version_at(time) if time is not None else int(version or 0)
        last = history.version
        if not 1 <= wanted <= last:
            raise InvalidStream(
                f"{cls.__name__} {key!r} has versions 1 to {last}; there is nothing at "
                f"{version if time is None else time.isoformat()}."
            )
        return cls._fold(key, history, wanted)

    @classmethod
    def rebuild(cls, key: Any, *, using: str | None = None) -> Self:
        """Make the row of a primary key from its stream again, and return it.

        Writers of the stream wait meanwhile. Raises InvalidStream when the stream has no event.
        """
        history = cls.stream(key, using=using)
        with transaction.atomic(using=history.using):
            version = scalar(
                "lock_stream", history.using, channel=cls.channel, key=history.key, for_write=True
            )
            if not version:
                raise InvalidStream(f"{cls.__name__} {key!r} has no events.")
            instance = cls._fold(key, history, version)
            instance.rebuild_id = secrets.randbits(62)
            models.Model.save(instance, using=history.using)
        return instance

    @classmethod
    def verify(cls, *, using: str | None = None) -> Iterator[Drift]:
        """Give the rows that are not the fold of their stream; those that change meanwhile, too."""
        for row in cls._default_manager.using(using or router.db_for_write(cls)).iterator():
            folded = cls._fold(row.pk, cls.stream(row.pk, using=row._state.db), row.version)
            names = [f.attname for f in cls._meta.concrete_fields if f.name != "rebuild_id"]
            differences = {
                name: (getattr(row, name), getattr(folded, name))
                for name in names
                if getattr(row, name) != getattr(folded, name)
            }
            if differences:
                yield Drift(str(row.pk), differences)

    @classmethod
    def _fold(cls, key: Any, history: Stream, until: int) -> Self:
        instance = cls(pk=cls._meta.pk.to_python(key))
        for event, version in history.read_events(until):
            instance.apply(event)
            instance.version = version
        for field in cls._meta.concrete_fields:
            value = getattr(instance, field.attname)
            if not hasattr(value, "resolve_expression"):
                setattr(instance, field.attname, field.to_python(value))
        return instance

    def _check(self, event: Event) -> None:
        if deferred := self.get_deferred_fields():
            raise InvalidStream(
                f"{type(self).__name__} {self.pk!r} was loaded without "
                f"{', '.join(sorted(deferred))}: load the whole row, without only() and defer()."
            )
        contract = getattr(event, "__contract__", None)
        if contract is None or contract.channel != self.channel:
            raise InvalidStream(
                f"{event!r} is no event of channel {self.channel!r}, which "
                f"{type(self).__name__} folds."
            )
        key = None if contract.key is None else contract.key(event)
        if self.pk is None or self.pk == "":
            self.pk = self._meta.pk.to_python(key)
        if str(key) != str(self.pk):
            raise InvalidStream(
                f"{type(event).__name__} has the key {key!r}, and {type(self).__name__} is "
                f"{self.pk!r}."
            )
