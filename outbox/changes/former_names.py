"""Names that a captured model and its columns had when messages were stored.

Messages hold the model's label as their type and the rows by column. Both change when a model or a
field is renamed, while older messages stay in the log. The migrations of the app hold the former
names; `was` of a capture names the model in the app where it was before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import apps
from django.db import migrations, models
from django.db.migrations.exceptions import BadMigrationError, NodeNotFoundError
from django.db.migrations.loader import MigrationLoader

from .capture import CaptureTrigger, captures_of, message_type


@functools.cache
def former_types(model: type[models.Model]) -> tuple[str, ...]:
    """Return the type names of older messages about a model's table.

    A name that another model has now is not among them.
    """
    known = {each._meta.label_lower for each in apps.get_models(include_auto_created=True)}
    return tuple(label for label in dict.fromkeys(_labels(model)) if label.lower() not in known)


@functools.cache
def captured_types() -> frozenset[tuple[str, str]]:
    """Return channel and type name of the messages about captured models, former names too."""
    return frozenset(
        (trigger.channel, name)
        for model in apps.get_models(include_auto_created=True)
        for trigger in getattr(model._meta, "triggers", ())
        if isinstance(trigger, CaptureTrigger)
        for name in (message_type(model), *former_types(model))
    )


@functools.cache
def former_columns(model: type[models.Model]) -> dict[str, list[str]]:
    """Return the columns that older messages have instead of a column of the model's table."""
    meta: Any = model._meta.concrete_model._meta  # type: ignore[union-attr]
    columns = {field.column for field in meta.local_concrete_fields}
    found: dict[str, list[str]] = {}
    for field in meta.local_concrete_fields:
        were = [each for each in _columns(model, field) if each not in columns]
        if were:
            found[field.column] = list(dict.fromkeys(were))
    return found


def _labels(model: type[models.Model]) -> Iterator[str]:
    """Return each former label of a model."""
    label = model._meta.concrete_model._meta.label  # type: ignore[union-attr]
    was = [name for _, trigger in captures_of(model) for name in trigger.was]
    yield from was
    for start in [label, *was]:
        app, _, name = start.partition(".")
        for operation in reversed(_operations(app)):
            is_rename = isinstance(operation, migrations.RenameModel)
            if is_rename and operation.new_name_lower == name.lower():
                name = operation.old_name
                yield f"{app}.{name}"


def _columns(model: type[models.Model], field: Any) -> Iterator[str]:
    """Return the columns that a field had, by what the migrations say about it."""
    meta: Any = model._meta.concrete_model._meta  # type: ignore[union-attr]
    model_name, name = meta.model_name, field.name
    suffix = field.attname.removeprefix(field.name)
    for operation in reversed(_operations(meta.app_label)):
        if isinstance(operation, migrations.RenameModel):
            if operation.new_name_lower == model_name:
                model_name = operation.old_name_lower
        elif isinstance(operation, migrations.CreateModel):
            if operation.name_lower == model_name:
                yield from (_column(each, name) for key, each in operation.fields if key == name)
        elif getattr(operation, "model_name_lower", "") == model_name:
            if isinstance(operation, migrations.RenameField) and operation.new_name == name:
                name = operation.old_name
                yield name + suffix
            elif getattr(operation, "field", None) is not None and operation.name == name:
                yield _column(operation.field, name)


def _column(field: Any, name: str) -> str:
    is_reference = isinstance(field, models.ForeignKey)
    return field.db_column or (f"{name}_id" if is_reference else name)


@functools.cache
def _operations(app_label: str) -> tuple[Any, ...]:
    """Return the operations of an app's migrations on the models' state, in their order."""
    loader = _loader()
    if loader is None:
        return ()
    found: dict[tuple[str, str], None] = {}
    for leaf in loader.graph.leaf_nodes(app_label):
        found |= dict.fromkeys(loader.graph.forwards_plan(leaf))
    plan = [loader.graph.nodes[key] for key in found if key[0] == app_label]
    return tuple(each for migration in plan for each in _flat(migration.operations))


def _flat(operations: Iterable[Any]) -> Iterator[Any]:
    for operation in operations:
        if isinstance(operation, migrations.SeparateDatabaseAndState):
            yield from _flat(operation.state_operations)
        else:
            yield operation


@functools.cache
def _loader() -> MigrationLoader | None:
    try:
        return MigrationLoader(None)
    except (ImportError, BadMigrationError, NodeNotFoundError):
        return None  # Migrations that cannot be read are the business of `migrate`.
