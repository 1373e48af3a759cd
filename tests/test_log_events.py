"""docs/logs.md lists every log event of the package, and no other."""

from __future__ import annotations

import ast
import re

from tests.support.processes import ROOT

PACKAGE = ROOT / "outbox"
PAGE = ROOT / "docs" / "logs.md"
LEVELS = {"exception": "error"}
CHOSEN = "logger.log"
"""The level is chosen when it runs: the page shows the lowest and the highest one."""


def texts_of(argument, tree):
    """The format strings that an argument of a log call may be."""
    if isinstance(argument, ast.Constant):
        return {argument.value}
    if isinstance(argument, ast.Name):
        return {
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "") == argument.id
            and isinstance(node.value, ast.Constant)
        }
    return set()


def events():
    """(Logger, text) of each call of a logger, but `http_server`, which passes on others' texts."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        logger = re.search(r'^logger = logging\.getLogger\("([\w.]+)"\)', text, re.MULTILINE)
        if logger is None:
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            arguments = node.args[1:] if called == CHOSEN else node.args
            if called == "_log" and len(node.args) > 2:
                arguments = node.args[2:]
            elif not called.startswith("logger.") or called == "logger.getChild":
                continue
            found |= {(logger[1], each) for each in texts_of(arguments[0], tree)}
    return found


def test_the_page_of_logs_lists_every_event():
    """Each line of the table has the logger and the text as the code has it."""
    rows = re.findall(
        r"^\| [A-Z, ]+ \| `([\w.]+)` \| ``(.+?)`` \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )

    assert set(rows) == events()
