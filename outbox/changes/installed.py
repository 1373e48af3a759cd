"""Declared captures compared with the triggers of a database.

`migrate` installs the captures of managed models. Those of unmanaged models, and of their proxies,
no migration can install: `install_unmanaged` does it when `migrate` ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from django.apps import AppConfig, apps
from django.core import checks
from django.core.management import CommandError
from django.db import DatabaseError, connections, models
from django.db.migrations.loader import MigrationLoader

from ..sql import one_row, run_statement
from .capture import CaptureTrigger
from .trigger_sql import quoted

Problem = Literal["trigger", "log", "undeclared", "partitions", "unmanaged"]
IDS = {
    "trigger": "E020",
    "log": "E021",
    "undeclared": "W022",
    "partitions": "W023",
    "unmanaged": "W027",  # no error: it would keep `migrate` from installing the trigger
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the captures of a table."""

    problem: Problem
    detail: str
    fix: str
    """What to do."""

    @property
    def is_error(self) -> bool:
        """Whether changes are lost, doubled or refused; else they may be."""
        return self.problem in ("trigger", "log", "unmanaged")


def declared() -> Iterator[tuple[Any, CaptureTrigger]]:
    """Return every declared capture trigger with the model that declares it."""
    for model in apps.get_models(include_auto_created=True):
        for trigger in getattr(model._meta, "triggers", ()):
            if isinstance(trigger, CaptureTrigger):
                yield model, trigger


def run_checks(using: str) -> list[Finding]:
    """Return the faults of the captures in a database."""
    if connections[using].vendor != "postgresql":
        return []
    found: list[Finding] = []
    tables: dict[tuple[int, str], None] = {}
    partitioned: dict[str, None] = {}
    migrating: set[str] | None = None
    for model, trigger in declared():
        table = one_row("see_captured_table", using, table=quoted(model._meta.db_table))
        if table is None:
            continue
        tables[table[0], trigger.get_pgid(model)] = None
        if not trigger.allow_migrate(model, using):
            continue  # a replica, say, to which the triggers came with the table
        if table[2]:
            partitioned[model._meta.label] = None
        problem = _problem(model, trigger, using) if table[3] else _no_table(model, using)
        if problem is not None:
            migrating = _migrating(using) if migrating is None else migrating
            app = "outbox" if problem.problem == "log" else model._meta.app_label
            if app not in migrating:
                found.append(problem)
    return [*found, *_undeclared(tables, using), *map(_partitions, partitioned)]


def install_unmanaged(*, using: str, **kwargs: Any) -> None:
    """Install missing captures of unmanaged models; see Django's post_migrate."""
    if connections[using].vendor != "postgresql":
        return
    if one_row("see_captured_table", using, table="outbox_message") is None:
        return
    for model, trigger in declared():
        concrete: Any = model._meta.concrete_model
        if concrete._meta.managed or not trigger.allow_migrate(model, using):
            continue
        table = one_row("see_captured_table", using, table=quoted(model._meta.db_table))
        if table is None or not table[3]:
            continue
        if trigger.get_installation_status(model, using)[0] != "INSTALLED":
            trigger.install(model, database=using)


def keep_log(*, using: str, plan: Iterable[tuple[Any, bool]], **kwargs: Any) -> None:
    """Refuse to drop the log while captures are installed; see Django's pre_migrate."""
    dropped = [m for m, is_backwards in plan if is_backwards and m.app_label == "outbox"]
    if not any(migration.initial for migration in dropped):
        return
    with connections[using].cursor() as cursor:
        run_statement(cursor, "list_capture_triggers")
        tables = dict.fromkeys(table for _, table, _ in cursor.fetchall())
    if tables:
        raise CommandError(
            f"The log of {using!r} cannot be dropped while captures are installed on "
            f"{', '.join(tables)}: every write of them would fail. Take outbox.capture() out of "
            "the models and run makemigrations and migrate first, or run `manage.py pgtrigger "
            f"uninstall -d {using}`."
        )


def _problem(model: Any, trigger: CaptureTrigger, using: str) -> Finding | None:
    name = f"The trigger {trigger.name} of {model._meta.label}"
    uri = trigger.get_uri(model)
    status, is_enabled = trigger.get_installation_status(model, using)
    if status == "INSTALLED" and is_enabled:
        return _log_problem(model, trigger, using)
    if status == "INSTALLED":
        detail = f"{name} is disabled in {using!r}: changes are not captured."
        return Finding("trigger", detail, f"Run `manage.py pgtrigger enable {uri} -d {using}`.")
    wrong = "is not installed" if status == "UNINSTALLED" else "has another text than its model"
    is_unmanaged = not model._meta.concrete_model._meta.managed
    migrate = "migrate`" if is_unmanaged else "makemigrations` and `migrate`"
    return Finding(
        "unmanaged" if is_unmanaged else "trigger",
        f"{name} {wrong} in {using!r}: changes are not captured.",
        f"Run `manage.py {migrate}, or `manage.py pgtrigger install {uri} -d {using}`.",
    )


def _no_table(model: Any, using: str) -> Finding:
    return Finding(
        "trigger",
        f"{model._meta.label} is captured, and in {using!r} its table is a view or a foreign "
        "table, whose triggers see no rows: changes are not captured.",
        "Capture the table behind it, or take the capture out of the model.",
    )


def _log_problem(model: Any, trigger: CaptureTrigger, using: str) -> Finding | None:
    seen = trigger.see(model, using)
    if seen is None or seen[3]:
        return None
    return Finding(
        "log",
        f"{model._meta.label} is captured in {using!r}, where its trigger finds no table "
        "outbox_message: every write of the model fails.",
        f"Let DATABASE_ROUTERS allow the app 'outbox' in {using!r} and run `manage.py migrate "
        f"outbox --database {using}`; if the log moved to another schema, run `manage.py pgtrigger "
        f"install -d {using}`.",
    )


def _migrating(using: str) -> set[str]:
    """Return the labels of the apps with migrations that the database lacks."""
    loader = MigrationLoader(connections[using])
    return {app for app, name in loader.graph.nodes if (app, name) not in loader.applied_migrations}


def _undeclared(tables: Iterable[tuple[int, str]], using: str) -> Iterator[Finding]:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "list_capture_triggers")
        rows = cursor.fetchall()
    for number, table, name in rows:
        if (number, name) not in tables:
            yield Finding(
                "undeclared",
                f"No model declares the capture trigger {name} on {table} in {using!r}: it goes on "
                "storing messages, and may fail after a change of the table.",
                f"DROP TRIGGER {name} ON {table};",
            )


def _partitions(label: str) -> Finding:
    return Finding(
        "partitions",
        f"The table of {label} has partitions or child tables: a statement that names one of them "
        "is not captured.",
        "Write through the parent table only; then add 'outbox.W023' to SILENCED_SYSTEM_CHECKS.",
    )


@checks.register("outbox", checks.Tags.database)
def check_captures(
    databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """E020: trigger missing, disabled or outdated. E021: no log. W022: undeclared.

    W023: partitions. W027: trigger of an unmanaged model missing or outdated.

    Apps whose migrations are not all applied are left out, so that `migrate` can start.
    """
    found: list[checks.CheckMessage] = []
    for alias in databases or []:
        try:
            findings = run_checks(alias)
        except DatabaseError:
            continue  # W009 and E006 to E008 say what is wrong.
        for each in findings:
            number = IDS[each.problem]
            kind = checks.Error if number.startswith("E") else checks.Warning
            found.append(kind(each.detail, hint=each.fix, id=f"outbox.{number}"))
    return found


@checks.register("outbox")
def check_inherited_captures(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """W024: a model whose Meta hides the captures of its abstract parent."""
    return [
        checks.Warning(
            f"{model._meta.label} does not have the captures of channel "
            f"{', '.join(map(repr, lost))} that its abstract parent declares: its own Meta hides "
            "them.",
            hint="Write `class Meta(Parent.Meta)`, and `triggers = [*Parent.Meta.triggers, ...]` "
            "beside triggers of its own; `triggers = []` leaves them out on purpose.",
            id="outbox.W024",
        )
        for model in apps.get_models()
        if (lost := _lost_channels(model))
    ]


def _lost_channels(model: type[models.Model]) -> list[str]:
    given = model._meta.original_attrs.get("triggers")
    if model._meta.proxy or given == []:
        return []
    own = {trigger.channel for trigger in _captures(model)}
    channels = dict.fromkeys(
        trigger.channel for base in _abstract_parents(model) for trigger in _captures(base)
    )
    return [channel for channel in channels if channel not in own]


def _captures(model: type[models.Model]) -> list[CaptureTrigger]:
    triggers = getattr(model._meta, "triggers", ())
    return [trigger for trigger in triggers if isinstance(trigger, CaptureTrigger)]


def _abstract_parents(model: type) -> Iterator[type[models.Model]]:
    """Return the abstract models that a model inherits from without a concrete one between."""
    for base in model.__bases__:
        if getattr(getattr(base, "_meta", None), "abstract", False):
            yield base
            yield from _abstract_parents(base)
