"""The sizes and names that CONTRIBUTING promises."""

from __future__ import annotations

import ast
import tomllib

import outbox
from tests.support.processes import ROOT

PACKAGE = ROOT / "outbox"
MODULE, FUNCTION, SQL, FILES, LAYER = 300, 45, 250, 22, 8


def modules():
    """The modules of the package but its migrations, by their paths in it."""
    paths = (path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths
    }


def test_no_module_has_more_than_300_lines():
    """A module is read from top to bottom."""
    sizes = {name: len(text.splitlines()) for name, text in modules().items()}

    assert {n: size for n, size in sizes.items() if size > MODULE} == {}


def test_no_function_has_more_than_45_lines():
    """Decorators not counted, docstrings counted."""
    long = {
        f"{name}:{node.name}": size
        for name, text in modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    }

    assert long == {}


def test_no_sql_file_has_more_than_250_lines():
    """The statements and the functions of the migrations alike."""
    sizes = {
        p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.sql")
    }

    assert {name: size for name, size in sizes.items() if size > SQL} == {}


def test_few_files_lie_beside_the_root():
    """What belongs to one owner lies in its folder."""
    files = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]

    assert len(files) <= FILES


def test_no_name_is_module_and_export_at_once():
    """`import outbox.capture as m` would give the function."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}

    assert names & set(outbox.__all__) == set()


def test_a_layer_of_the_imports_has_at_most_eight_names_and_nothing_is_ignored():
    """The contracts of import-linter stay readable, and hold without exceptions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = [layer for each in contracts for layer in each.get("layers", [])]

    assert [layer for layer in layers if len(layer.split(":")) > LAYER] == []
    assert not any("ignore_imports" in each for each in contracts)
