"""Payloads: what is published, the event class can decode.

Types are not enforced when an event is made, so its payload is decoded once before it is stored.
A value of the wrong type fails its publisher, not every group that reads it later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from . import events
from .encoding import encode
from .exceptions import InvalidEvent, InvalidField
from .messages import Draft


class _Row(msgspec.Struct):
    payload: msgspec.Raw


_rows = msgspec.json.Decoder(list[_Row])
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")


def payload_text(payload: Any, name: str) -> str:
    """Return a payload as JSON text; one of an event class is decoded once to see that it can be.

    Raises InvalidField for a value that the class cannot decode, InvalidEvent for a class that
    decodes nothing, UnencodableValue and NulCharacter, which name the place inside `name`.
    """
    text = encode(payload, name)
    contract: events.Contract | None = getattr(type(payload), "__contract__", None)
    if contract is not None:
        try:
            contract.decoder.decode(text)
        except msgspec.ValidationError as error:
            raise _invalid_field(contract, text, str(error)) from None
        except (NameError, TypeError) as error:
            raise InvalidEvent(
                f"Event {contract.event_type.__qualname__} cannot be read back: {error}. Give its "
                "fields types that msgspec decodes and that its module names.",
                event=payload,
            ) from error
    return text


def are_decodable(drafts: Sequence[Draft], text: str) -> bool:
    """Return whether the payloads in `text`, the drafts as JSON, can be decoded by their classes.

    One pass over the text of a batch instead of encoding each payload by itself.
    """
    classes = {type(draft.payload) for draft in drafts}
    try:
        if len(classes) == 1:
            if (one := getattr(classes.pop(), "__contract__", None)) is not None:
                one.batch_decoder.decode(text)
            return True
        for draft, row in zip(drafts, _rows.decode(text), strict=True):
            contract: events.Contract | None = getattr(type(draft.payload), "__contract__", None)
            if contract is not None:
                contract.decoder.decode(row.payload)
    except (msgspec.MsgspecError, NameError, TypeError):
        return False
    return True


def undecodable_fields(event_type: events.EventType) -> list[tuple[str, str]]:
    """Return the fields that no payload can be decoded into: path and type of each.

    msgspec accepts any class in an annotation, and decodes only those it knows. Raises NameError
    and TypeError as `Contract.decoder`.
    """
    found = _custom_types(msgspec.inspect.type_info(event_type), event_type.__qualname__, set())
    return list(dict.fromkeys(found))


def _custom_types(node: Any, path: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Walk through the types of msgspec's description, each once: a type may hold itself."""
    if isinstance(node, msgspec.inspect.CustomType):
        yield path, f"{node.cls.__module__}.{node.cls.__qualname__}"
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.Field):
        yield from _custom_types(node.type, f"{path}.{node.name}", seen)
    elif isinstance(node, tuple):
        for part in node:
            yield from _custom_types(part, path, seen)
    elif isinstance(node, msgspec.inspect.Type):
        for name in node.__struct_fields__:
            yield from _custom_types(getattr(node, name), path, seen)


def _invalid_field(contract: events.Contract, text: str, error: str) -> InvalidField:
    """Return the error; msgspec names the place, as in "Expected `int` - at `$.order_id`"."""
    reason, _, place = error.partition(" - at ")
    path = place[place.find("$") : -1] if "$" in place else "$"
    return InvalidField(
        event=contract.event_type.__qualname__,
        field=path.removeprefix("$").removeprefix(".") or "the payload",
        value=_at(text, path),
        reason=reason,
    )


def _at(text: str, path: str) -> Any:
    """Return the value of JSON text at a path like `$.lines[0].price`, as far as that leads."""
    value = msgspec.json.decode(text)
    for name, index, _ in _STEP.findall(path):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and index and int(index) < len(value):
            value = value[int(index)]
        else:
            break
    return value
