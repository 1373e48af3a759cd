"""Other Django projects that use the outbox, each in a folder and a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests.support.forks import Forks
from tests.support.processes import ROOT, open_session

_WARM = Forks()


class Project:
    """A project whose settings are the given ones; its commands run in processes of their own."""

    def __init__(self, folder: Path, databases: dict[str, Any], **settings: Any) -> None:
        self.folder = folder
        given = {
            "SECRET_KEY": "x",
            "INSTALLED_APPS": ["pgtrigger", "outbox"],
            "USE_TZ": True,
            "DATABASES": databases,
            **settings,
        }
        self.write("settings.py", "".join(f"{name} = {value!r}\n" for name, value in given.items()))

    def write(self, path: str, text: str) -> None:
        """Write a file of the project; its folders become packages."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.parent != self.folder:
            (file.parent / "__init__.py").touch()
        file.write_text(text, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Return the variables by which Python finds the project and the outbox."""
        return {
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
        }

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the project until it ends, whatever its exit code."""
        if arguments[:2] == ("-m", "django") or arguments[0] == "-c":
            return _WARM.complete(
                self.folder, list(arguments), {**os.environ, **self.environment()}
            )
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def manage(self, *arguments: str, code: int = 0) -> str:
        """Run a management command that must end with `code`; return what it wrote."""
        done = self.python("-m", "django", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run(self, code: str) -> str:
        """Run a snippet after `django.setup()`, which must succeed; return what it wrote."""
        done = self.python("-c", f"import django; django.setup()\n{code}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def empty_database(transactional_db: None) -> Iterator[dict[str, Any]]:
    """The entry of DATABASES of a new database, which is dropped afterwards."""
    entry = {
        name: connection.settings_dict[name]
        for name in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    }
    name = f"{connection.settings_dict['NAME']}_of_a_project"
    session = open_session(connection.settings_dict)
    with session.cursor() as cursor:
        cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        cursor.execute(f'CREATE DATABASE "{name}"')
    yield {**entry, "NAME": name}
    with session.cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    session.close()
