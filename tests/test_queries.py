"""The SQL files: every statement by name, described, used, and nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from django.db import connection

import outbox
from outbox.sql import statement

PACKAGE = Path(outbox.__file__).parent
MODULES = [path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts]
SQL = re.compile(r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|CREATE|TRUNCATE|COPY|LOCK)\s")
PREPARABLE = re.compile(r"(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s")
FRAGMENTS = {"changes/snapshot.py": ["SELECT "]}
"""The condition of a capture is an expression already; here it becomes a subquery."""


def blocks(files="sql/*.sql"):
    """Name, comment and SQL text of each statement of some files."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob(files)))
    for block in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, *lines = block.splitlines()
        comment = [line for line in lines if line.startswith("--")]
        yield name, " ".join(comment), [line for line in lines if line and line not in comment]


def strings(path):
    """Every string literal of a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


LITERALS = {text for path in MODULES for text in strings(path)}


@pytest.mark.parametrize("files", ["sql/*.sql", "changes/trigger.sql"])
def test_names_are_unique(files):
    """A name stands for one statement."""
    names = [name for name, _, _ in blocks(files)]

    assert names
    assert sorted(names) == sorted(set(names))


def test_every_statement_is_described():
    """A sentence says which lock is taken and which index is used; it is not sent to the server."""
    for name, comment, lines in blocks():
        assert comment.rstrip().endswith("."), name
        assert lines, name
        assert statement(name) == "\n".join(lines)


def test_every_statement_is_used():
    """A statement that no module names is dead."""
    assert [name for name, _, _ in blocks() if name not in LITERALS] == []


def test_parameters_have_names():
    """No positional parameter, and beside others no percent sign that a driver takes for one."""
    for name, _, lines in blocks():
        text = "\n".join(lines)
        rest = re.sub(r"%\(\w+\)s|%%", "", text)

        assert "%s" not in rest, name
        assert "%" not in rest or rest == text, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_hold_no_sql(path):
    """Statements stand in the SQL files, where they can be read beside each other."""
    found = [text for text in strings(path) if SQL.match(text)]

    assert found == FRAGMENTS.get(path.relative_to(PACKAGE).as_posix(), [])


def test_an_unknown_name_is_an_error():
    """A typing error shows at once."""
    with pytest.raises(KeyError, match="apend_message"):
        statement("apend_message")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "name", [name for name, _, lines in blocks() if PREPARABLE.match(lines[0])]
)
def test_a_server_can_tell_the_types_of_all_parameters(name):
    """Also when parameters are sent apart from the text, as psycopg 3 does when it is told to."""
    numbers = {}

    def numbered(match):
        return f"${numbers.setdefault(match[1], len(numbers) + 1)}"

    text = re.sub(r"%\((\w+)\)s", numbered, statement(name))
    with connection.cursor() as cursor:
        cursor.execute(f"PREPARE tried AS {text}")
        cursor.execute("DEALLOCATE tried")
