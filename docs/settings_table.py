"""Write the table of docs/settings.md from outbox/conf.py; `--check` only compares."""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


def rows() -> list[str]:
    """Return a row per field: the key, its default, and what its docstring says."""
    module = ast.parse((ROOT / "outbox" / "conf.py").read_text(encoding="utf-8"))
    (fields,) = (
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    found = []
    for field, text in itertools.pairwise(fields):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            key = ast.unparse(field.target).upper()
            default = ast.unparse(field.value) if field.value else ""
            default = default.replace("dataclasses.field(default_factory=dict)", "{}")
            meaning = " ".join(str(ast.literal_eval(text.value)).split())
            found.append(f"| `{key}` | `{default}` | {meaning} |\n")
    return found


def page() -> str:
    """Return the text of the page with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = ["| key | default | meaning |\n", "|---|---|---|\n", *rows()]
    return before + BEGIN + "\n" + "".join(table) + "\n" + END + after


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/settings.md does not show outbox/conf.py: run `make docs`")
