"""Events: the typed payloads of messages, their registry, encoding and decoding.

An event class belongs to one channel and has one name on the wire there. What is stored is
JSON; reading it back gives an equal event or an `UndecodableMessage` that says why.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import msgspec

from .exceptions import (
    DuplicateEventType,
    InvalidChannel,
    InvalidEvent,
    InvalidKey,
    NulCharacter,
    UndecodableMessage,
    UnencodableValue,
)

CHANNEL_LENGTH = 63
VERSION_HEADER = "version"

Key = str | int | float | decimal.Decimal | uuid.UUID | None
KeySpec = str | tuple[str, ...] | Callable[[Any], Key] | None

_encoder = msgspec.json.Encoder()
_registry: dict[tuple[str, str], type[Event]] = {}


class Contract(NamedTuple):
    """What an event class declared about itself in its class statement."""

    channel: str
    type: str
    version: int
    key: Callable[[Any], Key] | None
    decoder: msgspec.json.Decoder[Any]


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
        **options: Any,
    ) -> Any:
        """Create the class; with a channel, also register it under its type name."""
        cls = super().__new__(mcls, name, bases, namespace, **options)
        cls.contract = None
        if channel is not None:
            cls.contract = Contract(
                channel=valid_channel(channel),
                type=valid_text(type or name, "the type name of " + name),
                version=version,
                key=_key_reader(cls, key),
                decoder=msgspec.json.Decoder(cls),
            )
            _register(cls)
        return cls


class Event(msgspec.Struct, metaclass=EventMeta, frozen=True):
    """A typed payload: a frozen `msgspec.Struct`.

    Declare it with `class OrderPlaced(outbox.Event, channel="orders", key="order_id")`.

    `channel`: the channel it is published to, 1 to 63 characters. Without one the class is a
    base for others and cannot be published.
    `key`: the ordering key: a field's name, a tuple of names (joined by ":"), a callable that
    takes the event, or None for no key.
    `type`: the name on the wire; the class name when left out.
    `version`: of the payload's shape, 1 when left out; see `upgrade`.
    """

    contract: ClassVar[Contract | None]

    @classmethod
    def upgrade(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Turn the stored payload of an older `version` into one of this class's version."""
        return payload


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message as a handler sees it."""

    position: int
    """Its number in the log, rising over all channels."""
    channel: str
    key: str | None
    """The ordering key, or None."""
    type: str
    attempt: int
    """1 at the first try, one more after each recorded failure."""
    replayed: bool
    """Whether the group's cursor has been past this position before."""
    group: str
    """The consumer group that handles it."""
    raw_payload: str
    """The payload as JSON text."""
    raw_headers: str
    """The headers as JSON text."""
    raw_created_at: str
    """The time of publication as PostgreSQL writes it."""

    @property
    def payload(self) -> Any:
        """The payload as plain Python values."""
        return msgspec.json.decode(self.raw_payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers of `publish()` and the values of `outbox.context()`."""
        return cast(dict[str, Any], msgspec.json.decode(self.raw_headers))

    @property
    def created_at(self) -> datetime.datetime:
        """When the message was published, by the database's clock."""
        return datetime.datetime.fromisoformat(self.raw_created_at)

    @property
    def idempotency_key(self) -> str:
        """A text that stays the same over retries, redrives and replays, for other systems."""
        return f"{self.group}:{self.position}"


class Draft(msgspec.Struct, frozen=True):
    """A message that has no position yet; the fields are columns of the log."""

    channel: str
    key: str | None
    type: str
    payload: Any
    headers: Mapping[str, Any] | None


def draft(event: Event, headers: Mapping[str, Any] | None) -> Draft:
    """Return the message that `event` becomes.

    Raises InvalidEvent for an object without a channel, InvalidKey for a bad key.
    """
    contract: Contract | None = getattr(event, "contract", None)
    if contract is None:
        raise InvalidEvent(event=event)
    if contract.version != 1:
        headers = {**(headers or {}), VERSION_HEADER: contract.version}
    key = None if contract.key is None else key_text(contract.key(event))
    return Draft(contract.channel, key, contract.type, event, headers)


def encode(value: Any, name: str) -> str:
    """Return `value` as JSON text that jsonb accepts.

    Raises UnencodableValue or NulCharacter, which name the place inside `name`.
    """
    try:
        text = _encoder.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        path, culprit = _find(value, name, _is_unencodable) or (name, value)
        raise UnencodableValue(
            path=path, value=culprit, kind=type(culprit).__name__
        ) from None
    if "\\u0000" in text and (found := _find(value, name, _is_nul)):
        raise NulCharacter(path=found[0])
    return text


def encode_drafts(drafts: Sequence[Draft]) -> str:
    """Return drafts as one JSON array of objects; raises as `encode` does."""
    try:
        text = _encoder.encode(drafts).decode()
    except (TypeError, ValueError, RecursionError):
        _check_each(drafts)
        raise
    if "\\u0000" in text:
        _check_each(drafts)
    return text


def _check_each(drafts: Sequence[Draft]) -> None:
    for each in drafts:
        encode(each.payload, each.type)
        encode(each.headers, "headers")


def decode(message: Message, event_type: type[Event]) -> Event:
    """Return the event of a stored message.

    Raises UndecodableMessage when the payload does not fit `event_type` any more, or has a
    newer version than the class knows.
    """
    contract = cast(Contract, event_type.contract)
    try:
        if f'"{VERSION_HEADER}"' in message.raw_headers or contract.version != 1:
            return _decode_version(message, event_type, contract)
        return cast(Event, contract.decoder.decode(message.raw_payload))
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError) as error:
        raise UndecodableMessage(
            position=message.position,
            type=message.type,
            channel=message.channel,
            event=event_type.__qualname__,
            reason=str(error),
        ) from error


def _decode_version(message: Message, event_type: type[Event], contract: Contract) -> Event:
    version = int(message.headers.get(VERSION_HEADER, 1))
    if version > contract.version:
        raise ValueError(f"version {version} is newer than the known version {contract.version}")
    payload = message.payload
    if version < contract.version:
        payload = event_type.upgrade(payload, version)
    return msgspec.convert(payload, event_type)


def event_type(channel: str, name: str) -> type[Event] | None:
    """Return the class registered for a type name in a channel, if any."""
    return _registry.get((channel, name))


def valid_channel(channel: Any) -> str:
    """Return `channel` when it is one; raises InvalidChannel."""
    if not isinstance(channel, str) or not 1 <= len(channel) <= CHANNEL_LENGTH or "\0" in channel:
        raise InvalidChannel(channel=channel)
    return channel


def valid_text(text: Any, name: str) -> str:
    """Return `text` when PostgreSQL can store it; `name` says in an error what it is."""
    if not isinstance(text, str) or not text:
        raise UnencodableValue(path=name, value=text, kind=type(text).__name__)
    if "\0" in text:
        raise NulCharacter(path=name)
    return text


def key_text(key: Any) -> str | None:
    """Return a key as the text that is stored, None for no key; raises InvalidKey."""
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, str | int | float | decimal.Decimal | uuid.UUID):
        raise InvalidKey(key=key, kind=type(key).__name__)
    text = str(key)
    if "\0" in text:
        raise NulCharacter(path="the key")
    return text


def _key_reader(cls: type, key: KeySpec) -> Callable[[Any], Key] | None:
    if key is None or callable(key):
        return key
    names = (key,) if isinstance(key, str) else tuple(key)
    for name in names:
        if name not in cls.__struct_fields__:  # type: ignore[attr-defined]
            raise InvalidKey(
                f"key={key!r}: {cls.__name__} has no field {name!r}; its fields are "
                f"{', '.join(cls.__struct_fields__)}.",  # type: ignore[attr-defined]
                key=key,
                kind="field name",
            )
    if len(names) == 1:
        return lambda event: cast(Key, getattr(event, names[0]))
    return lambda event: _joined([getattr(event, name) for name in names])


def _joined(parts: list[Any]) -> str:
    texts = [key_text(part) for part in parts]
    if None in texts:
        raise InvalidKey(key=tuple(parts), kind="a key of several fields, one of them None")
    return ":".join(str(text).replace("\\", "\\\\").replace(":", "\\:") for text in texts)


def _register(cls: type[Event]) -> None:
    contract = cast(Contract, cls.contract)
    name = f"{cls.__module__}.{cls.__qualname__}"
    known = _registry.get((contract.channel, contract.type))
    if known is not None and f"{known.__module__}.{known.__qualname__}" != name:
        raise DuplicateEventType(
            channel=contract.channel,
            type=contract.type,
            first=f"{known.__module__}.{known.__qualname__}",
            second=name,
        )
    _registry[contract.channel, contract.type] = cls


def _is_unencodable(value: Any) -> bool:
    try:
        _encoder.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return True
    return False


def _is_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _find(value: Any, path: str, bad: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """Return the path and value of the innermost part of `value` that is bad."""
    for name, part in _parts(value):
        if found := _find(part, f"{path}{name}", bad):
            return found
    return (path, value) if bad(value) else None


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        return [(f".{name}", getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, Mapping):
        keys = [(f" key {key!r}", key) for key in value]
        return keys + [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return []
