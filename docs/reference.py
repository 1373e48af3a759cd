"""Write docs/reference.md from the code; `--check` only compares."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
TOP = """# Reference

Written from the code by `make docs`. Other lists: [settings and system checks](settings.md), [log events](logs.md),
[metrics](monitoring.md).

"""


def text_of(thing: Any) -> str:
    """Return a docstring as Markdown; a line that begins with `name`: becomes a point of a list."""
    text = inspect.getdoc(thing) or ""
    text = re.sub(r"\n(?=`[\w.]+`(?: and `\w+`)*:)", "\n\n- ", "\n" + text).strip()
    lines, in_point = [], False
    for line in text.splitlines():
        in_point = line.startswith("- ") or (in_point and bool(line.strip()))
        lines.append(line if line.startswith("- ") or not in_point else f"  {line.strip()}")
    return re.sub(r"\n\n- ", "\n- ", "\n".join(lines)).replace("\n- ", "\n\n- ", 1)


def signature(name: str, thing: Any) -> str:
    """Return how it is called, without what only a type checker needs."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in found.parameters.values()
        if each.name not in ("self", "cls")
    ]
    shown = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return f"{name}{shown}".replace("'", '"')


def members(thing: type) -> list[str]:
    """Return entries of what a class itself has in public."""
    entries = []
    for name, member in vars(thing).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.getdoc(function):
            continue
        if inspect.isfunction(function):
            entries.append(f"#### `{signature(name, function)}`\n\n{text_of(function)}\n")
        elif isinstance(member, property):
            entries.append(f"#### `{name}`\n\n{text_of(member)}\n")
    return entries


def entry(place: str, name: str, thing: Any) -> str:
    """Return the entry of one public name."""
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    shown = name if is_error else signature(name, thing)
    text = text_of(thing)
    if is_error and "{" in text:
        text = f"Its text: “{text}”"
    parts = [f"### {place}.{name}\n", f"```python\n{place}.{shown}\n```\n", text + "\n"]
    if inspect.isclass(thing) and not is_error:
        parts += members(thing)
    return "\n".join(parts)


def options(parser: argparse.ArgumentParser) -> str:
    """Return a table of a command's arguments, without those that every Django command has."""
    common = {"help", "version", "verbosity", "settings", "pythonpath", "traceback", "no_color"}
    common |= {"force_color", "skip_checks"}
    rows = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.dest in common or action.help == argparse.SUPPRESS or action.dest == "verb":
            continue
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = " ".join(value) if isinstance(value, tuple) else value
        if action.choices and not action.metavar and action.dest != "database":
            value = " or ".join(map(str, action.choices))
        shown = f"{flags} {value}".strip() if flags else f"`{value}`"
        meaning = str(action.help or "")
        rows.append(f"| {shown} | {meaning} |".replace("%%", "%"))
    return "\n".join(rows) + "\n"


def commands() -> list[str]:
    """Return an entry per command and verb."""
    from outbox.management.commands import consume, outbox
    from outbox.management.verbs import VERBS

    found = [
        "## Commands\n",
        "Every verb of `outbox` takes `--json` and `--database ALIAS`.\n",
        f"### manage.py consume\n\n{consume.Command.help}\n",
        options(consume.Command().create_parser("manage.py", "consume")),
        f"{outbox.Command.help}\n",
    ]
    for verb in sorted(VERBS, key=lambda each: each.name):
        parser = argparse.ArgumentParser(add_help=False)
        verb().add_arguments(parser)
        text = " ".join((verb.__doc__ or "").split())
        found.append(f"### manage.py outbox {verb.name}\n\n{text}\n\n{options(parser)}")
    return found


OBJECT = re.compile(
    r"((?:^--.*\n)*)^CREATE (?:OR REPLACE )?(FUNCTION|VIEW|SEQUENCE) (outbox_\w+)", re.MULTILINE
)


def database_objects() -> list[str]:
    """Return the tables by their models, and what the migrations create beside them."""
    from django.apps import apps

    rows = [
        (model._meta.db_table, "table", text_of(model).split("\n")[0])
        for model in apps.get_app_config("outbox").get_models()
        if not model._meta.proxy
    ]
    for file in sorted((ROOT / "outbox" / "migrations" / "sql").rglob("*.sql")):
        for comment, kind, name in OBJECT.findall(file.read_text(encoding="utf-8")):
            text = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
            rows.append((name, kind.lower(), re.split(r"(?<=[.]) ", text)[0]))
    lines = [
        f"| `{name}` | {kind} | {text.replace('|', chr(92) + '|')} |" for name, kind, text in rows
    ]
    return [
        "## Database objects\n",
        "In the schema of the log. Functions with a version in their name are called by publishers and workers of one release.\n",
        "\n".join(["| name | kind | meaning |", "|---|---|---|", *lines]) + "\n",
    ]


def page() -> str:
    """Return the whole page."""
    import outbox
    from outbox import exceptions, signals, testing

    parts = [TOP, "## outbox\n"]
    parts += [entry("outbox", name, getattr(outbox, name)) for name in outbox.__all__]
    parts.append("## outbox.testing\n")
    parts += [
        entry("outbox.testing", name, thing)
        for name, thing in vars(testing).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == testing.__name__
    ]
    parts.append("## outbox.signals\n")
    source = inspect.getsource(signals)
    parts += [
        f"### outbox.signals.{name}\n\n{' '.join(text.split())}\n"
        for name, text in re.findall(r'^(\w+) = Signal\(\)\n"""(.*?)"""', source, re.M | re.S)
    ]
    parts.append("## outbox.exceptions\n\nAll derive from `outbox.OutboxError`.\n")
    parts += [
        entry("outbox.exceptions", name, thing)
        for name, thing in sorted(vars(exceptions).items())
        if inspect.isclass(thing)
        and issubclass(thing, exceptions.OutboxError)
        and name not in outbox.__all__
    ]
    return "\n".join([*parts, *commands(), *database_objects()]).replace("\n\n\n", "\n\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}
    settings.configure(INSTALLED_APPS=["pgtrigger", "outbox"], DATABASES={"default": database})
    django.setup()
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/reference.md does not show the code: run `make docs`")
