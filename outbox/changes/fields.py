"""The fields of a captured model that are columns of its own table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models

from ..exceptions import InvalidCapture


def table_fields(model: type[models.Model]) -> list[Any]:
    """Return the fields that are columns of the model's own table."""
    return list(model._meta.concrete_model._meta.local_concrete_fields)  # type: ignore[union-attr]


def refuse_reserved_columns(model: type[models.Model], reserved: Iterable[str]) -> None:
    """Raise InvalidCapture for a column whose name the trigger needs for itself."""
    for field in table_fields(model):
        if field.column in reserved:
            raise InvalidCapture(
                f"{model._meta.label}.{field.name} has the column {field.column!r}, a name that "
                "the capture's trigger uses itself: give the field another db_column."
            )


def refuse_empty_keys(model: type[models.Model], fields: Iterable[Any], channel: str) -> None:
    """Raise InvalidCapture for fields that do not make a key of every row, as a stream needs it."""
    fields = list(fields)
    nullable = [field.name for field in fields if field.null]
    if nullable or not fields:
        reason = f"{', '.join(nullable)} may be NULL" if fields else "key=() is none"
        raise InvalidCapture(
            f"Channel {channel!r} on {model._meta.label} is one of streams, so each "
            f"message needs a key, and {reason}: name fields that are never NULL as key=."
        )


def names_of(names: Any) -> tuple[str, ...] | None:
    """Return the names of fields that a caller gave, one or several; raises InvalidCapture."""
    if names is None:
        return None
    chosen = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not all(isinstance(name, str) for name in chosen):
        raise InvalidCapture(f"capture() got {names!r}: name a field, or several in a list.")
    return chosen


def named_fields(model: type[models.Model], names: Iterable[str]) -> list[Any]:
    """Return fields of the table by their names, "pk" for its key; raises InvalidCapture."""
    known = table_fields(model)
    found: list[Any] = []
    for name in names:
        try:
            field = model._meta.get_field(name) if name != "pk" else None
        except FieldDoesNotExist:
            field = None
        named = model._meta.pk_fields if name == "pk" else [field]
        if any(each not in known for each in named):
            raise InvalidCapture(
                f"{name!r} is no field of the table of {model._meta.label}; its fields are "
                f"{', '.join(each.name for each in known)}."
            )
        found += named
    return found
