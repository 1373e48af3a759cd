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
