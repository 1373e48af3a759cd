"""The lock file of events: the shape of each event class, and whether a change reads old messages.

`events.lock.json` holds a JSON Schema per channel and type, as msgspec writes it. A class may
change as long as each payload that fits the locked schema still decodes; else its version is
raised and `upgrade()` reads the stored ones.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from .. import events
from ..exceptions import InvalidLockFile
from .event_schemas import schema_of

FORMAT = 1
NUMBERS = ("integer", "number")
Lock = dict[str, dict[str, Any]]
""""channel/type" -> version, key, and schema."""


def current() -> Lock:
    """Return the lock of the event classes as they are."""
    lock: Lock = {}
    for event_type in events.all_event_types():
        contract = event_type.__contract__
        assert contract is not None
        lock[f"{contract.channel}/{contract.type}"] = {
            "version": contract.version,
            "key": key_of(contract),
            "was": list(contract.was),
            "schema": schema_of(event_type),
        }
    return lock


def write(path: Path) -> int:
    """Write the lock file; return how many types it holds."""
    lock = current()
    content = {"format": FORMAT, "checksum": _checksum(lock), "events": lock}
    text = json.dumps(content, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    return len(lock)


def read(path: Path) -> Lock:
    """Read a lock file; raises InvalidLockFile."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InvalidLockFile(path=path, reason=f"its format is {content['format']!r}")
        lock: Lock = content["events"]
        for entry in lock.values():
            if set(entry) != {"version", "key", "was", "schema"}:
                raise InvalidLockFile(path=path, reason="an entry has other fields")
        if content["checksum"] != _checksum(lock):
            raise InvalidLockFile(path=path, reason="it was edited by hand, or by a merge")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidLockFile(path=path, reason=f"{type(error).__name__}: {error}") from error
    return lock


def _checksum(lock: Lock) -> str:
    return hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()


def check(lock: Lock) -> list[str]:
    """Return why the classes as they are would not read what was stored by the locked ones."""
    now = current()
    renamed = {
        f"{name.partition('/')[0]}/{old}": name
        for name, entry in now.items()
        for old in entry["was"]
    }
    problems = []
    for name, locked in sorted(lock.items()):
        found = now.get(name) or now.get(renamed.get(name, ""))
        if found is None:
            kind = name.partition("/")[2]
            problems.append(
                f"{name}: no class reads it any more. Keep the class, or name it in the class that "
                f'takes its place: was=["{kind}"].'
            )
        else:
            problems += [f"{name}: {problem}" for problem in _problems(locked, found)]
    return problems


def key_of(contract: events.Contract) -> str:
    """Return what the key is made of, as far as it can be compared."""
    if contract.key is None:
        return ""
    return contract.key_text


def _problems(locked: dict[str, Any], found: dict[str, Any]) -> list[str]:
    if found["version"] < locked["version"]:
        return [f"its version went back from {locked['version']} to {found['version']}."]
    problems = []
    if found["key"] != locked["key"]:
        problems.append(
            f"its key was {locked['key'] or 'none'!r} and is {found['key'] or 'none'!r}: messages "
            "of one thing would lose their order. Publish to a new channel instead."
        )
    if found["version"] > locked["version"]:
        return problems
    old, new = locked["schema"], found["schema"]
    for reason in _incompatible(old, new, _Compared(old, new), ""):
        problems.append(f"{reason} Or raise version= and read the stored payloads in upgrade().")
    return problems


class _Compared(NamedTuple):
    """The two schemas with their definitions, and the pairs of definitions being compared."""

    old: dict[str, Any]
    new: dict[str, Any]
    open: frozenset[tuple[str, str]] = frozenset()


def _incompatible(
    old: dict[str, Any], new: dict[str, Any], compared: _Compared, path: str
) -> list[str]:
    """Return why a value of the old schema may not decode by the new one."""
    pair = (old.get("$ref", ""), new.get("$ref", ""))
    if pair in compared.open:  # a type that contains itself
        return []
    if all(pair):
        compared = compared._replace(open=compared.open | {pair})
    old, new = _resolved(old, compared.old), _resolved(new, compared.new)
    if old == new and "$ref" not in json.dumps(old):
        return []
    place = path.lstrip(".") or "the payload"
    if "anyOf" in old:
        return [each for part in old["anyOf"] for each in _incompatible(part, new, compared, path)][
            :1
        ]
    if "anyOf" in new:
        fits = any(not _incompatible(old, part, compared, path) for part in new["anyOf"])
        return [] if fits else [f"{place} was {_kind(old)}, which it may not be any more."]
    if not new:
        return []
    if old.get("type") == "object" == new.get("type") and "properties" in new:
        return _incompatible_fields(old, new, compared, path)
    if old.get("type") == "object" == new.get("type"):
        return _incompatible_values(old, new, compared, path)
    if old.get("type") == "array" == new.get("type"):
        return _incompatible_items(old, new, compared, path)
    if _is_wider(old, new):
        return []
    return [f"{place} was {_kind(old)} and is {_kind(new)}: keep the old type, or a union of both."]


def _incompatible_fields(
    old: dict[str, Any], new: dict[str, Any], compared: _Compared, path: str
) -> list[str]:
    before, after = old.get("properties", {}), new["properties"]
    reasons = [
        f"the field {f'{path}.{name}'.lstrip('.')} is gone: keep it, with a default."
        for name in before
        if name not in after
    ]
    always = set(old.get("required", []))
    reasons += [
        f"the new field {f'{path}.{name}'.lstrip('.')} has no default: give it one."
        for name in new.get("required", [])
        if name not in always
    ]
    for name in before.keys() & after.keys():
        reasons += _incompatible(before[name], after[name], compared, f"{path}.{name}")
    return sorted(reasons)


def _incompatible_values(
    old: dict[str, Any], new: dict[str, Any], compared: _Compared, path: str
) -> list[str]:
    """Compare objects with free names."""
    if old.get("properties") or any(
        old.get(limit) != new[limit] for limit in ("minProperties", "maxProperties") if limit in new
    ):
        return [f"{path.lstrip('.')} takes fewer objects than before: keep its type and limits."]
    before, after = old.get("additionalProperties"), new.get("additionalProperties")
    return _incompatible(
        before if isinstance(before, dict) else {},
        after if isinstance(after, dict) else {},
        compared,
        f"{path}{{}}",
    )


def _incompatible_items(
    old: dict[str, Any], new: dict[str, Any], compared: _Compared, path: str
) -> list[str]:
    limits = ("minItems", "maxItems", "prefixItems")
    if any(old.get(limit) != new.get(limit) for limit in limits if limit in new):
        return [f"{path.lstrip('.')} takes fewer lists than before: keep its limits."]
    if isinstance(new.get("items"), dict):
        items = old.get("items", {})
        return _incompatible(
            items if isinstance(items, dict) else {}, new["items"], compared, f"{path}[]"
        )
    return []


def _is_wider(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Tell whether a plain schema takes all that another one takes."""
    described = ("title", "description", "default", "examples")
    before = {name: value for name, value in old.items() if name not in described}
    after = {name: value for name, value in new.items() if name not in described}
    if "enum" in before:
        values = [json.dumps(each) for each in before["enum"]]
        if "enum" in after:
            return set(values) <= {json.dumps(each) for each in after["enum"]}
        return all(_is_wider({"type": _type_of(each)}, new) for each in before["enum"])
    if after == {"type": "string", "format": "decimal"} and before.get("type") in NUMBERS:
        return True
    if before.get("type") == "integer" and after.get("type") == "number":
        before["type"] = "number"
    return all(before.get(name) == value for name, value in after.items())


def _type_of(value: Any) -> str:
    return {str: "string", bool: "boolean", int: "integer", type(None): "null"}[type(value)]


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {schema['enum']}"
    return str(schema.get("format") or schema.get("type") or "anything")
