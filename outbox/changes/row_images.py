"""Rows as the capture triggers store them, and the model instances that they become.

`to_jsonb` writes a row as an object by column. Reading it back gives each field the value that
the ORM would have loaded. Columns that the model does not know are ignored, those that the
image lacks are deferred.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from django.conf import settings
from django.contrib.postgres.fields import ArrayField, RangeField
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.utils import timezone
from msgspec import UNSET, UnsetType

from .fields import table_fields
from .former_names import former_columns

Operation = Literal["insert", "update", "delete", "snapshot"]
Conversion = Callable[[Any], Any]

# The text of an interval under IntervalStyle postgres, and under iso_8601.
INTERVALS = [
    re.compile(
        r"(?:(?P<years>[-+]?\d+) years?)? ?(?:(?P<months>[-+]?\d+) mons?)? ?"
        r"(?:(?P<days>[-+]?\d+) days?)? ?"
        r"(?:(?P<sign>[-+]?)(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>[\d.]+))?"
    ),
    re.compile(
        r"P(?:(?P<years>-?\d+)Y)?(?:(?P<months>-?\d+)M)?(?:(?P<days>-?\d+)D)?(?:T(?P<sign>)"
        r"(?:(?P<hours>-?\d+)H)?(?:(?P<minutes>-?\d+)M)?(?:(?P<seconds>-?[\d.]+)S)?)?"
    ),
]
INFINITE = {
    "infinity": datetime.datetime.max.replace(tzinfo=datetime.UTC),
    "-infinity": datetime.datetime.min.replace(tzinfo=datetime.UTC),
}
"""What stands for the times without end, as with psycopg2; psycopg 3 cannot load them."""
RANGE = re.compile(r'([\[(])"?([^",]*)"?,"?([^",]*?)"?([\])])')


class _Rows(msgspec.Struct):
    """A payload whose rows are read by column, each value as it stands there."""

    operation: str
    old: dict[str, msgspec.Raw] | None
    new: dict[str, msgspec.Raw] | None


class Image:
    """Reads the payloads about one model."""

    def __init__(self, model: type[models.Model]) -> None:
        self.model = model
        self.fields = [field for field in table_fields(model) if _is_stored(field)]
        self.names = [field.name for field in self.fields]
        self.attnames = [field.attname for field in self.fields]
        self.former_columns = former_columns(model)
        self.renamed = [i for i, f in enumerate(self.fields) if f.column in self.former_columns]
        columns, self.conversions = [], []
        for index, field in enumerate(self.fields):
            wire_type, conversion = _column_reader(field, model)
            columns.append((f"f{index}", _nullable(wire_type) | UnsetType, UNSET))
            self.conversions.append(conversion)
        image = msgspec.defstruct(
            f"{model.__name__}Image",
            columns,
            rename={f"f{index}": field.column for index, field in enumerate(self.fields)},
        )
        payload = msgspec.defstruct(
            f"{model.__name__}Payload",
            [("operation", Operation), ("old", image | None), ("new", image | None)],
        )
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(payload, strict=False)

    def read(self, payload: str) -> tuple[Operation, Any, Any, frozenset[str]]:
        """Return the operation, the old and the new instance, and the names that changed.

        Raises msgspec.ValidationError or ValueError when a value does not fit its field.
        """
        change = self.decoder.decode(payload)
        old, new = _values(change.old), _values(change.new)
        if any(row and row[i] is UNSET for i in self.renamed for row in (old, new)):
            change = self.decoder.decode(self._with_columns_of_today(payload))
            old, new = _values(change.old), _values(change.new)
        return change.operation, self._instance(old), self._instance(new), self._changed(old, new)

    def _with_columns_of_today(self, payload: str) -> bytes:
        rows = msgspec.json.decode(payload, type=_Rows)
        for row in (rows.old, rows.new):
            for column, former in self.former_columns.items():
                for name in former:
                    if row is not None and column not in row and name in row:
                        row[column] = row.pop(name)
        return msgspec.json.encode(rows)

    def _instance(self, values: tuple[Any, ...] | None) -> models.Model | None:
        if values is None:
            return None
        attnames = self.attnames
        if UNSET in values:
            attnames = [n for n, value in zip(attnames, values, strict=True) if value is not UNSET]
        loaded = [
            value if conversion is None else conversion(value)
            for conversion, value in zip(self.conversions, values, strict=True)
            if value is not UNSET
        ]
        return self.model.from_db(None, attnames, loaded)

    def _changed(self, old: tuple[Any, ...] | None, new: tuple[Any, ...] | None) -> frozenset[str]:
        if old is None or new is None:
            return frozenset()
        pairs = zip(self.names, old, new, strict=True)
        return frozenset(
            name
            for name, before, after in pairs
            if before != after and (before == before or after == after)  # NaN is not itself
        )


@functools.cache
def image_of(model: type[models.Model]) -> Image:
    """Return the reader of a model's payloads."""
    return Image(model)


def _values(image: Any) -> tuple[Any, ...] | None:
    return None if image is None else msgspec.structs.astuple(image)


def _is_stored(field: Any) -> bool:
    """Return whether a row holds the field: PostgreSQL computes a virtual one on reading."""
    return bool(getattr(field, "db_persist", True))


def _column_reader(field: Any, model: type[models.Model]) -> tuple[Any, Conversion | None]:
    """Return the type of a column's JSON, and how it becomes the field's value."""
    connection = connections[DEFAULT_DB_ALIAS]
    column = field.get_col(model._meta.db_table)
    if type(column.output_field) is models.JSONField and column.output_field.decoder is None:
        return Any, None
    converters = [
        *connection.ops.get_db_converters(column),
        *column.get_db_converters(connection),
    ]
    wire_type, to_driver = _wire_format(column.output_field)
    if not converters:
        return wire_type, to_driver and _of_values(to_driver)

    def convert(value: Any) -> Any:
        if value is not None and to_driver is not None:
            value = to_driver(value)
        for converter in converters:
            value = converter(value, column, connection)
        return value

    return wire_type, convert


def _of_values(to_driver: Conversion) -> Conversion:
    return lambda value: None if value is None else to_driver(value)


def _wire_format(field: Any) -> tuple[Any, Conversion | None]:
    """Return the type of a field's JSON, and how it becomes what the driver would return."""
    if isinstance(field, models.GeneratedField):
        field = field.output_field
    if isinstance(field, ArrayField):
        wire_type, to_driver = _wire_format(field.base_field)
        return list[_nullable(wire_type)], to_driver and _of_elements(to_driver)  # type: ignore[misc]
    if isinstance(field, RangeField):
        return str, functools.partial(_range, field.range_type, _bound_reader(field.base_field))
    if isinstance(field, models.JSONField):
        return msgspec.Raw, _json_text
    return WIRE_FORMATS.get(field.get_internal_type(), (Any, None))


def _nullable(wire_type: Any) -> Any:
    """Return a type that accepts null; msgspec.Raw does, and cannot be part of a union."""
    return wire_type if wire_type is msgspec.Raw else wire_type | None


def _json_text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text == "null" else text


def _of_elements(to_driver: Conversion) -> Conversion:
    return lambda values: [None if value is None else to_driver(value) for value in values]


def _date(text: str) -> datetime.date:
    found = INFINITE.get(text)
    return datetime.date.fromisoformat(text) if found is None else found.date()


def _time(text: str) -> datetime.time:
    return datetime.time() if text == "24:00:00" else datetime.time.fromisoformat(text)


def _moment(text: str) -> datetime.datetime:
    if (found := INFINITE.get(text)) is not None:
        return found if settings.USE_TZ else found.replace(tzinfo=None)
    moment = datetime.datetime.fromisoformat(text)
    if settings.USE_TZ:
        return moment if moment.tzinfo is None else moment.astimezone(datetime.UTC)
    return moment if moment.tzinfo is None else timezone.make_naive(moment)


def _duration(text: str) -> datetime.timedelta:
    """Return an interval; a month counts 30 days and a year 365, as the drivers count them."""
    match = next(filter(None, (pattern.fullmatch(text) for pattern in INTERVALS)), None)
    if match is None or not text:
        raise ValueError(f"{text!r} is no interval under IntervalStyle postgres or iso_8601")
    part = {name: float(value) for name, value in match.groupdict("0").items() if name != "sign"}
    time = datetime.timedelta(hours=part["hours"], minutes=part["minutes"], seconds=part["seconds"])
    days = 365 * part["years"] + 30 * part["months"] + part["days"]
    return datetime.timedelta(days) + (-time if match["sign"] == "-" else time)


def _binary(text: str) -> bytes:
    """Return a bytea, under bytea_output hex or escape."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    octal = re.compile(rb"\\(\\|[0-7]{3})")
    return octal.sub(
        lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1], 8)]), text.encode()
    )


def _bound_reader(field: Any) -> Conversion:
    wire_type, to_driver = _wire_format(field)
    readers: dict[Any, Conversion] = {
        int: int,
        decimal.Decimal: decimal.Decimal,
    }
    return to_driver or readers[wire_type]


def _range(range_type: Any, read_bound: Conversion, text: str) -> Any:
    if text == "empty":
        return range_type(empty=True)
    match = RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no range")
    lower, upper = (read_bound(bound) if bound else None for bound in match.group(2, 3))
    return range_type(lower, upper, match[1] + match[4])


def _kinds(wire_type: Any, *names: str) -> Iterator[tuple[str, tuple[Any, None]]]:
    return ((f"{name}Field", (wire_type, None)) for name in names)


WIRE_FORMATS: dict[str, tuple[Any, Conversion | None]] = {
    **dict(_kinds(int, "Auto", "BigAuto", "SmallAuto", "Integer", "BigInteger", "SmallInteger")),
    **dict(_kinds(int, "PositiveInteger", "PositiveBigInteger", "PositiveSmallInteger")),
    **dict(_kinds(str, "Char", "Text", "Slug", "File", "FilePath")),
    **dict(_kinds(bool, "Boolean")),
    **dict(_kinds(float, "Float")),
    **dict(_kinds(decimal.Decimal, "Decimal")),
    **dict(_kinds(uuid.UUID, "UUID")),
    "DateField": (str, _date),
    "TimeField": (str, _time),
    "DateTimeField": (str, _moment),
    "DurationField": (str, _duration),
    "BinaryField": (str, _binary),
    "GenericIPAddressField": (str, lambda text: text.partition("/")[0]),
}
