"""Events: the typed payloads of messages, and the registry of their classes.

An event class belongs to one channel and has one name on the wire there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast, dataclass_transform

import msgspec

from .encoding import Key, is_storable, joined_key
from .exceptions import (
    DuplicateEventType,
    InvalidChannel,
    InvalidEvent,
    InvalidKey,
    InvalidTypeName,
    did_you_mean,
)

CHANNEL_LENGTH = 63

EventType = type[Any]
KeySpec = str | tuple[str, ...] | Callable[[Any], Key] | None

_registry: dict[tuple[str, str], type[Event]] = {}
_stream_channels: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Contract:
    """What an event class declared about itself in its class statement."""

    channel: str
    type: str
    version: int
    key: Callable[[Any], Key] | None
    event_type: EventType
    is_stream: bool = False
    """Whether its channel is one of streams."""
    was: tuple[str, ...] = ()
    """Type names that it had before."""
    key_text: str = ""
    """What the key is made of, in words: the names of fields, or of the callable."""

    @functools.cached_property
    def decoder(self) -> msgspec.json.Decoder[Any]:
        """Reads the payload. Made at first use, when names in the annotations are defined.

        Raises NameError for one that is not, TypeError for a type that msgspec cannot decode.
        """
        return msgspec.json.Decoder(self.event_type)

    @functools.cached_property
    def batch_decoder(self) -> msgspec.json.Decoder[Any]:
        """Reads a list of drafts of this class as JSON, in one pass; raises as `decoder`."""
        row = msgspec.defstruct("Row", [("payload", self.event_type)])
        return msgspec.json.Decoder(list[row])  # type: ignore[valid-type]


class EventMeta(type(msgspec.Struct)):  # type: ignore[misc]
    """Takes `channel=`, `key=`, `type=` and `version=` in the class statement of an event."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        channel: str | None = None,
        key: KeySpec = None,
        type: str | None = None,
        version: int = 1,
        stream: bool = False,
        was: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Create the class; with a channel, also register it under its type name."""
        try:
            cls = super().__new__(mcls, name, bases, namespace, **options)
        except TypeError as error:
            if "invalid keyword argument" not in str(error):
                raise
            raise _unknown_option(name, str(error).split("'")[1]) from None
        cls.__contract__ = None
        if channel is not None:
            cls.__contract__ = Contract(
                channel=valid_channel(channel, f"{name}: "),
                type=valid_type_name(name if type is None else type, f"{name}: "),
                version=_valid_version(version, name),
                key=_key_reader(cls, key),
                event_type=cls,
                is_stream=bool(stream),
                was=_valid_names(was, name),
                key_text=_key_words(key),
            )
            _register(cls)
        return cls


if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
    class EventStruct:
        """What a type checker needs to know of the metaclass."""

        def __init_subclass__(
            cls,
            *,
            channel: str | None = None,
            key: KeySpec = None,
            type: str | None = None,
            version: int = 1,
            stream: bool = False,
            was: Sequence[str] = (),
            **options: Any,
        ) -> None: ...

else:

    class EventStruct(msgspec.Struct, metaclass=EventMeta, frozen=True):
        """The base class of events when the program runs; a type checker reads the one above."""


class Event(EventStruct):
    """A typed payload: a frozen `msgspec.Struct`.

    Declare it with `class OrderPlaced(outbox.Event, channel="orders", key="order_id")`.

    `channel`: the channel it is published to, 1 to 63 characters. Without one the class is a
    base for others and cannot be published.
    `key`: the ordering key: a field's name, a tuple of names (joined by ":"), a callable that
    takes the event, or None for no key.
    `type`: the name on the wire; the class name when left out.
    `version`: of the payload's shape, 1 when left out; see `upgrade`.
    `stream`: whether the channel is one of streams: the messages of each key are numbered from 1,
    and `publish(expected=)` appends at a version. One class says it for its whole channel.
    `was`: type names that the class had before; stored messages of these names are read as it.
    """

    __contract__: ClassVar[Contract | None]

    @classmethod
    def upgrade(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Turn the stored payload of an older `version` into one of this class's version."""
        return payload


def sources(event_type: type[Any]) -> list[tuple[str, str]]:
    """Return where the messages of an event class are: channels, each with a type name."""
    contract: Contract | None = getattr(event_type, "__contract__", None)
    if contract is not None:
        return [(contract.channel, name) for name in (contract.type, *contract.was)]
    named: Callable[[], list[tuple[str, str]]] | None = getattr(event_type, "sources", None)
    return named() if named is not None else []


def decoder_of(event_type: EventType) -> msgspec.json.Decoder[Any]:
    """Return the decoder of an event class with a channel; raises as `Contract.decoder`."""
    return cast(Contract, event_type.__contract__).decoder


def event_type(channel: str, name: str) -> type[Event] | None:
    """Return the class registered for a type name in a channel, if any."""
    return _registry.get((channel, name))


def is_stream_channel(channel: str) -> bool:
    """Return whether an event class or a capture declared the channel with `stream=True`."""
    return channel in _stream_channels


def add_stream_channel(channel: str) -> None:
    """Make a channel one of streams, as an event class with `stream=True` does."""
    _stream_channels.add(channel)


def all_event_types() -> list[type[Event]]:
    """Return every event class with a channel, by channel and type name."""
    found = {_registry[name]: None for name in sorted(_registry)}
    return list(found)


def valid_channel(channel: Any, place: str = "") -> str:
    """Return `channel` when it is one; raises InvalidChannel, whose text `place` begins."""
    if (
        not isinstance(channel, str)
        or not 1 <= len(channel) <= CHANNEL_LENGTH
        or not is_storable(channel)
    ):
        raise InvalidChannel(channel=channel, place=place)
    return channel


def valid_type_name(name: Any, place: str = "") -> str:
    """Return `name` when it can be a type's; raises InvalidTypeName, whose text `place` begins."""
    if not isinstance(name, str) or not name or not is_storable(name):
        raise InvalidTypeName(name=name, place=place)
    return name


def is_version(version: Any) -> bool:
    """Return whether `version` can be a payload's: a whole number from 1 on."""
    return isinstance(version, int) and not isinstance(version, bool) and version >= 1


def _unknown_option(name: str, option: str) -> InvalidEvent:
    options = ("channel", "key", "type", "version", "stream", "was")
    return InvalidEvent(
        f"{name}: the class statement of an event has no {option}=.{did_you_mean(option, options)} "
        f"It takes {', '.join(options)}, and what a msgspec.Struct takes.",
        event=name,
    )


def _valid_version(version: Any, name: str) -> int:
    if not is_version(version):
        raise InvalidEvent(
            f"{name}: version={version!r}: use a whole number from 1 on.", event=name
        )
    return cast(int, version)


def _valid_names(names: Any, name: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidTypeName(
            f"{name}: was={names!r}: use a list of type names.", name=names, place=f"{name}: "
        )
    return tuple(valid_type_name(each, f"{name}: ") for each in names)


def _key_words(key: KeySpec) -> str:
    if callable(key):
        return getattr(key, "__qualname__", type(key).__name__)
    return key if isinstance(key, str) else ", ".join(key or ())


def _key_reader(cls: type, key: KeySpec) -> Callable[[Any], Key] | None:
    if key is None or callable(key):
        return key
    names = (key,) if isinstance(key, str) else key
    if not isinstance(names, tuple | list) or not names:
        raise InvalidKey(
            f"key={key!r} of {cls.__name__}: name a field, several in a tuple, or a callable.",
            key=key,
            kind=type(key).__name__,
        )
    fields: tuple[str, ...] = cls.__struct_fields__  # type: ignore[attr-defined]
    for name in names:
        if name not in fields:
            raise InvalidKey(
                f"key={key!r}: {cls.__name__} has no field {name!r}.{did_you_mean(name, fields)} "
                f"Its fields are {', '.join(fields)}.",
                key=key,
                kind="field name",
            )
    if len(names) == 1:
        return lambda event: cast(Key, getattr(event, names[0]))
    return lambda event: joined_key([getattr(event, name) for name in names])


def _register(cls: type[Event]) -> None:
    contract = cast(Contract, cls.__contract__)
    name = f"{cls.__module__}.{cls.__qualname__}"
    known = _registry.get((contract.channel, contract.type))
    if known is not None and f"{known.__module__}.{known.__qualname__}" != name:
        raise DuplicateEventType(
            channel=contract.channel,
            type=contract.type,
            first=f"{known.__module__}.{known.__qualname__}",
            second=name,
        )
    for type_name in (contract.type, *contract.was):
        _registry[contract.channel, type_name] = cls
    if contract.is_stream:
        add_stream_channel(contract.channel)
