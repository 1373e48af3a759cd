"""The JSON Schema of an event class, with the formats that msgspec leaves out.

msgspec describes a datetime, a time and a duration without constraints as plain strings. The lock
must tell them from texts: a text need not decode as a time.
"""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect as kinds

FORMATS: dict[type, str] = {
    kinds.DateTimeType: "date-time",
    kinds.TimeType: "time",
    kinds.TimeDeltaType: "duration",
}
RECORDS = (kinds.StructType, kinds.TypedDictType, kinds.DataclassType, kinds.NamedTupleType)


def schema_of(event_type: Any) -> dict[str, Any]:
    """Return the schema of an event class."""
    schema = msgspec.json.schema(event_type)
    _add_formats(kinds.type_info(event_type), schema, schema.get("$defs", {}), set())
    return schema


def _add_formats(kind: Any, schema: Any, defs: dict[str, Any], done: set[str]) -> None:
    """Walk a type and its schema side by side."""
    if isinstance(kind, kinds.Metadata):
        return _add_formats(kind.type, schema, defs, done)
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in done:
            _add_formats(kind, defs[name], defs, done | {name})
        return None
    if type(kind) in FORMATS and schema.get("type") == "string":
        schema.setdefault("format", FORMATS[type(kind)])
    elif isinstance(kind, RECORDS) and "properties" in schema:
        for field in kind.fields:
            name = getattr(field, "encode_name", field.name)
            _add_formats(field.type, schema["properties"][name], defs, done)
    elif isinstance(kind, kinds.UnionType):
        _add_to_union(kind, schema, defs, done)
    elif isinstance(kind, kinds.DictType):
        _add_formats(kind.value_type, schema.get("additionalProperties"), defs, done)
    elif isinstance(kind, kinds.TupleType):
        for part, described in zip(kind.item_types, schema.get("prefixItems", []), strict=False):
            _add_formats(part, described, defs, done)
    elif hasattr(kind, "item_type"):
        _add_formats(kind.item_type, schema.get("items"), defs, done)
    return None


def _add_to_union(
    kind: kinds.UnionType, schema: dict[str, Any], defs: dict[str, Any], done: set[str]
) -> None:
    """A union holds at most one type that is a string in JSON, one list, one object without tag."""
    for part in kind.types:
        plain = part.type if isinstance(part, kinds.Metadata) else part
        if type(plain) in FORMATS:
            wanted = "string"
        elif isinstance(plain, kinds.DictType):
            wanted = "object"
        elif hasattr(plain, "item_type") or isinstance(plain, kinds.TupleType):
            wanted = "array"
        else:
            continue
        for described in schema.get("anyOf", []):
            if described.get("type") == wanted:
                _add_formats(plain, described, defs, done)
