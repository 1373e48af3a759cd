"""What PostgreSQL stores of Python values: JSON text, and text for keys.

Nothing is changed silently: a value that JSON cannot carry, or a text that
PostgreSQL cannot store, is refused with the path to it.
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import functools
import math
import re
import reprlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect
from django.utils.functional import Promise

from .exceptions import InvalidKey, NulCharacter, UnencodableValue

Key = str | int | float | decimal.Decimal | uuid.UUID | enum.Enum | None

_SCALARS = (str, int, float, type(None), decimal.Decimal, uuid.UUID)
_PLAIN_TYPES = (
    msgspec.inspect.IntType,
    msgspec.inspect.StrType,
    msgspec.inspect.BoolType,
    msgspec.inspect.FloatType,
    msgspec.inspect.NoneType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)
_KEY_TYPES = (str, int, float, decimal.Decimal, uuid.UUID)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACED_COLON = re.compile(rb'"\s+:')
_KEY_END = b'":'
_INFINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""How NaN and the infinities begin in msgpack. JSON has null for them, as for None."""


def encode(value: Any, name: str, parts: Sequence[Any] = ()) -> str:
    """Return `value` as JSON text that is stored without loss.

    `parts`: those of its parts that may have any type, when the rest has none but texts as keys.

    Raises UnencodableValue or NulCharacter, which name the place inside `name`.
    """
    try:
        data = _encoder.encode(value)
        text = data.decode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        raise _unencodable(*_culprit(value, name)) from None
    if not all(
        _is_plain(type(part))  # type: ignore[arg-type]
        for part in parts or (value,)
    ) and _may_lose_keys(data):
        _refuse_equal_keys(value, name)
    if "\\u0000" in text:
        _refuse_nul(value, text, name)
    if "null" in text and _seems_infinite(value) and (found := _find(value, name, _is_infinite)):
        raise _unencodable(*found)
    return text


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: it has no NUL and no lone surrogates."""
    return "\0" not in text and (text.isascii() or not _SURROGATE.search(text))


def key_text(key: Any) -> str | None:
    """Return a key as the text that is stored, None for no key.

    Of an enum's member its value counts. Raises InvalidKey, and NulCharacter or
    UnencodableValue for a text that cannot be stored.
    """
    if key is None:
        return None
    value = key.value if isinstance(key, enum.Enum) else key
    is_infinite = isinstance(value, float | decimal.Decimal) and not math.isfinite(value)
    if is_infinite or isinstance(value, bool) or not isinstance(value, _KEY_TYPES):
        raise InvalidKey(key=key, kind=type(key).__name__)
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        raise InvalidKey(key=type(value), kind="an integer of thousands of digits") from None
    if "\0" in text:
        raise NulCharacter(path="the key")
    if not is_storable(text):
        raise _unencodable("the key", text)
    return text


def joined_key(parts: list[Any]) -> str:
    """Return the key of several values, joined by ":"; raises InvalidKey for None among them."""
    texts = [key_text(part) for part in parts]
    if None in texts:
        raise InvalidKey(key=tuple(parts), kind="a key of several fields, one of them None")
    return ":".join(str(text).replace("\\", "\\\\").replace(":", "\\:") for text in texts)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 100


def _plain(value: Any) -> Any:
    """Return what msgspec encodes instead of a value whose class it does not know."""
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(type(value).__name__)


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_packer = msgspec.msgpack.Encoder(enc_hook=_plain)


def _seems_infinite(value: Any) -> bool:
    """Return whether a float in `value` may not be finite, without a walk through it."""
    try:
        return _INFINITE.search(_packer.encode(value)) is not None
    except OverflowError:
        return True


def _may_lose_keys(data: bytes) -> bool:
    """Return whether an object in the JSON `data` has equal keys, or a number cannot be read back.

    Decoding keeps one of equal keys: count the keys before and after.
    """
    try:
        kept = msgspec.json.decode(data)
        if _SPACED_COLON.search(data):  # of a msgspec.Raw
            data = msgspec.json.format(data, indent=-1)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return True
    keys = data.count(_KEY_END)
    return keys > 1 and _encoder.encode(kept).count(_KEY_END) != keys


def _loses_keys(value: Any) -> bool:
    return _may_lose_keys(_encoder.encode(value))


def _refuse_equal_keys(value: Any, name: str) -> None:
    """Raise UnencodableValue for an object with equal keys, such as 1 and "1", or bad raw JSON."""
    try:
        found = _find(value, name, _loses_keys)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _unencodable(*_culprit(value, name)) from None
    if found is None:
        return
    path, culprit = found
    keys = [_key_as_json(key) for key in culprit] if isinstance(culprit, Mapping) else []
    twice = next((key for key in keys if keys.count(key) > 1), None)
    what = f"the key {twice} twice in JSON" if twice else "equal keys, or no valid JSON"
    raise UnencodableValue(
        f"{path} has {what}, and decoding keeps one value: give each value a key of its own.",
        path=path,
        value=culprit,
        kind=type(culprit).__name__,
        shown=twice or "",
    )


def _key_as_json(key: Any) -> str:
    return str(_encoder.encode({key: None}).decode()[1:-6])


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@functools.cache
def _is_plain(kind: type) -> bool:
    """Return whether no value of a class holds an object with free keys, or raw JSON."""
    if not issubclass(kind, msgspec.Struct):
        return issubclass(kind, _SCALARS)
    try:
        return _is_plain_type(msgspec.inspect.type_info(kind))
    except (TypeError, NameError, AttributeError, RecursionError):
        return False


def _is_plain_type(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.StructType):
        return all(_is_plain_type(field.type) for field in kind.fields)
    if isinstance(kind, msgspec.inspect.UnionType):
        return all(map(_is_plain_type, kind.types))
    return isinstance(kind, _PLAIN_TYPES)


def _is_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_unencodable(value: Any) -> bool:
    try:
        _encoder.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return True
    return False


def _refuse_nul(value: Any, text: str, name: str) -> None:
    """Raise NulCharacter for a NUL, not for the six characters of its escape in a text."""
    found = _find(value, name, _is_nul) or _find(msgspec.json.decode(text), name, _is_nul)
    if found:
        raise NulCharacter(path=found[0])


def _culprit(value: Any, name: str) -> tuple[str, Any]:
    """Return the path and value of what keeps `value` from being encoded."""
    try:
        path, culprit = _find(value, name, _is_unencodable) or (name, value)
    except RecursionError:
        return name, value
    if isinstance(culprit, Mapping):
        for key in culprit:
            if _is_unencodable({key: None}):
                return f"a key of {path}", key
    return path, culprit


def _unencodable(path: str, value: Any) -> UnencodableValue:
    kind = type(value).__name__
    try:
        shown = _shortener.repr(value)
    except Exception:
        shown = "a value without a repr()"
    return UnencodableValue(path=path, value=value, kind=kind, shown=shown)


def _find(value: Any, path: str, bad: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """Return the path and value of the innermost part of `value` that is bad."""
    for name, part in _parts(value):
        if found := _find(part, name.format(path), bad):
            return found
    return (path, value) if bad(value) else None


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return the parts of a value, each with its path, `{}` standing for the value's own."""
    if isinstance(value, msgspec.Struct):
        return [(f"{{}}.{name}", getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f"{{}}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        keys = [("a key of {}", key) for key in value]
        return keys + [(f"{{}}[{_escaped(key)}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{{}}[{index}]", part) for index, part in enumerate(value)]
    return []


def _escaped(key: Any) -> str:
    return _shortener.repr(key).replace("{", "{{").replace("}", "}}")
