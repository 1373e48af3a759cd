"""What PostgreSQL stores of Python values: JSON text for jsonb, and text for keys.

Nothing is changed on the way in silence: a value that JSON cannot carry, or a text that
PostgreSQL cannot store, is refused with the path to it.
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import math
import re
import reprlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from django.utils.functional import Promise

from .exceptions import InvalidKey, NulCharacter, UnencodableValue

Key = str | int | float | decimal.Decimal | uuid.UUID | enum.Enum | None

_KEY_TYPES = (str, int, float, decimal.Decimal, uuid.UUID)
_SURROGATE = re.compile("[\ud800-\udfff]")
_INFINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""How NaN and the infinities begin in msgpack. JSON has null for them, as for None."""


def encode(value: Any, name: str) -> str:
    """Return `value` as JSON text that jsonb accepts and that holds all of it.

    Raises UnencodableValue or NulCharacter, which name the place inside `name`.
    """
    try:
        text = _encoder.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        raise _unencodable(*_culprit(value, name)) from None
    if "\\u0000" in text:
        _refuse_nul(value, text, name)
    if "null" in text and _seems_infinite(value) and (found := _find(value, name, _is_infinite)):
        raise _unencodable(*found)
    return text


def is_storable(text: str) -> bool:
    """Tell whether PostgreSQL can store a text: it has no NUL and no lone surrogates."""
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
    text = str(value)
    if "\0" in text:
        raise NulCharacter(path="the key")
    if not is_storable(text):
        raise _unencodable("the key", text)
    return text


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
    """Tell without a walk through `value` whether a float in it may not be finite."""
    try:
        return _INFINITE.search(_packer.encode(value)) is not None
    except OverflowError:
        return True


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


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
