"""Code and commands in the pages: each block can be compiled, each name and option exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from django.core.management.base import CommandError

import outbox
from outbox.management.commands import consume
from outbox.management.commands import outbox as outbox_command
from tests.support.pages import BLOCK
from tests.support.processes import ROOT

PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
    if path.name not in {"reference.md", "CHANGELOG.md"}
)
COMMANDS = {"consume": consume.Command, "outbox": outbox_command.Command}
PROGRAM = re.compile(r"^\$ (?:\w+=\S+ )*(?:python )?(?:\./)?manage\.py (consume|outbox)\b(.*)$")


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's blocks of these languages."""
    text = page.read_text(encoding="utf-8")
    return [textwrap.dedent(found[2]) for found in BLOCK.findall(text) if found[0] in languages]


def parsed(block: str) -> ast.Module:
    """The block as code; a fragment may use `await` and `return` as in a function."""
    try:
        return ast.parse(block)
    except SyntaxError:
        body = textwrap.indent(block, "    ")
        return ast.parse(f"async def _():\n{body}")


def dotted(node: ast.expr) -> str:
    """`outbox.a.b` of an attribute, or nothing when it begins with something else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    is_ours = isinstance(node, ast.Name) and node.id == "outbox" and names
    return ".".join(["outbox", *reversed(names)]) if is_ours else ""


def resolve(path: str) -> object:
    """The object of a dotted path; its modules are imported."""
    found: object = outbox
    place = "outbox"
    for name in path.split(".")[1:]:
        place = f"{place}.{name}"
        if not hasattr(found, name):
            importlib.import_module(place)
        found = getattr(found, name)
    return found


def unknown_arguments(call: ast.Call, called: object) -> list[str]:
    """Keyword arguments that the called object does not take."""
    parameters = inspect.signature(called).parameters  # type: ignore[arg-type]
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return []
    return [each.arg for each in call.keywords if each.arg and each.arg not in parameters]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_in_a_page_uses_what_exists(page):
    """Names that are imported from or looked up in `outbox`, and the arguments of calls."""
    wrong = []
    for block in blocks(page, "python"):
        for node in ast.walk(parsed(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "outbox":
                module = importlib.import_module(node.module or "")
                for each in node.names:
                    try:
                        resolve(f"{node.module}.{each.name}")
                    except (ImportError, AttributeError):
                        wrong.append(f"{module.__name__} has no {each.name}")
            elif isinstance(node, ast.Attribute) and (path := dotted(node)):
                try:
                    resolve(path)
                except (ImportError, AttributeError):
                    wrong.append(f"there is no {path}")
            if isinstance(node, ast.Call) and (path := dotted(node.func)):
                wrong += [f"{path}({each}=)" for each in unknown_arguments(node, resolve(path))]

    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_a_page_have_the_options_that_it_shows(page):
    """Each `manage.py consume` and `manage.py outbox` is taken by the command's own parser."""
    wrong = []
    for block in blocks(page, "console", "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := PROGRAM.match(line):
                command = re.split(r" [|>&;]+ ?| #", found[2])[0].replace("…", "x")
                if "-h" in command or "--help" in command:
                    continue
                parser = COMMANDS[found[1]]().create_parser("manage.py", found[1])
                try:
                    parser.parse_args(shlex.split(command))
                except (CommandError, SystemExit) as error:
                    wrong.append(f"{line}: {error}")

    assert wrong == []


def test_a_page_that_shows_what_does_not_exist_is_found():
    """A misspelt name and a misspelt argument."""
    tree = parsed("outbox.publsh(event)\noutbox.ConsumerGroup('a', chanels=['b'])\nawait x")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]

    with pytest.raises(ImportError):
        resolve(dotted(calls[0].func))
    assert unknown_arguments(calls[1], outbox.ConsumerGroup) == ["chanels"]
