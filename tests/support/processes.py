"""Waiting for facts, and running other processes on the test database."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from django.db import connection
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.support.forks import Forks

driver = importlib.import_module("psycopg" if is_psycopg3 else "psycopg2")

DJANGO_OPTIONS = {"assume_role", "isolation_level", "pool", "server_side_binding"}
"""Options of DATABASES that Django keeps from the driver."""
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
MANAGE = ROOT / "tests" / "manage.py"


def wait_until(predicate: Callable[[], T], timeout: float = 120.0, message: str = "") -> T:
    """Call the predicate until what it returns is true, and return that; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        assert time.monotonic() < deadline, message or f"not within {timeout} s: {predicate}"
        time.sleep(0.005)
    return result


def open_session(entry: Mapping[str, Any]) -> Any:
    """Return a new connection of the bare driver, in autocommit mode, to an entry of DATABASES."""
    names = {
        "dbname": "NAME",
        "user": "USER",
        "password": "PASSWORD",
        "host": "HOST",
        "port": "PORT",
    }
    address = {argument: entry[name] for argument, name in names.items() if entry.get(name)}
    options = {k: v for k, v in entry.get("OPTIONS", {}).items() if k not in DJANGO_OPTIONS}
    session = driver.connect(**address, **options)
    session.autocommit = True
    return session


def environment(**variables: str) -> dict[str, str]:
    """Return the environment in which another Python process uses the test database."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "OUTBOX_TEST_DB": str(connection.settings_dict["NAME"]),
        "PYTHONPATH": str(ROOT),
        **variables,
    }


_warmed: list[Forks] = []


def _warm(wanted: dict[str, str]) -> Forks | None:
    """Return the program that has set Django up, None where `wanted` is not its environment.

    Its own is that of a test without variables, whichever test asks first.
    """
    if not _warmed:
        _warmed.append(Forks("setup", environment=_of_any_test(environment())))
    return _warmed[0] if _warmed[0].environment == _of_any_test(wanted) else None


def _of_any_test(variables: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in variables.items() if name != "PYTEST_CURRENT_TEST"}


def start_process(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python with the arguments on the test database; its output goes to pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


def run_process(
    *arguments: str | Path, is_warm: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the arguments on the test database until it ends, whatever its exit code.

    Django is set up already for a snippet or a command, unless its environment has its own variables,
    or the command starts itself again.
    """
    is_warm = is_warm and arguments[0] in ("-c", MANAGE) and "--processes" not in arguments
    if is_warm and (warm := _warm(environment(**variables))):
        return warm.complete(Path.cwd(), [str(each) for each in arguments], environment())
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment(**variables),
    )


def run_code(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python snippet on the test database, after `django.setup()`."""
    return run_process("-c", f"import django; django.setup()\n{code}", **variables)


def start_manage(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start a management command of the test project on the test database."""
    return start_process(MANAGE, *arguments, **variables)


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a management command of the test project on the test database until it ends."""
    return run_process(MANAGE, *arguments, **variables)
