"""Follows a page of the documentation literally: its files are written, its commands are run.

A block of Python or HTML that begins with `# path` is a file, one with `# path, at its end` is
appended to it. Of a console block each line with `$ ` is run by the shell; the lines below it are
what it must write, where `…` stands for any text. A block with ` skip` behind its language is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import CommandError, call_command

BLOCK = re.compile(r"^```(\w+)( skip)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# (\S+\.\w+)(, at its end)?\n")


class Reader:
    """Somebody who does what a page says, in an empty folder with an empty database."""

    def __init__(self, folder: Path, database: dict[str, Any], package: Path | None = None) -> None:
        self.folder = folder
        self.database = database
        self.package = package

    def follow(self, text: str) -> list[tuple[str, str]]:
        """Do what the blocks say; return the commands with what they wrote.

        Raises AssertionError for a command that writes something else than the page shows.
        """
        done = []
        for language, is_skipped, block in BLOCK.findall(text):
            if is_skipped:
                continue
            if language == "console":
                for command, shown in commands(block):
                    written = self.run(command)
                    assert self.fits(shown, written), f"$ {command}\n{written}\nis not\n{shown}"
                    done.append((command, written))
            elif file := FILE.match(block):
                self.write(file[1], block[file.end() :], is_appended=bool(file[2]))
        return done

    def fits(self, shown: str, written: str) -> bool:
        """Tell whether a command wrote what the page shows."""
        return fits(shown, written)

    def write(self, path: str, text: str, *, is_appended: bool) -> None:
        """Write or extend a file."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if is_appended:
            text = file.read_text(encoding="utf-8") + text
        file.write_text(text, encoding="utf-8")

    def run(self, command: str) -> str:
        """Run a command in the folder, with this Python and this server; return what it wrote."""
        server = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "PASSWORD": "PGPASSWORD"}
        variables = {
            variable: str(self.database[name])
            for name, variable in server.items()
            if self.database.get(name)
        }
        programs = Path(sys.executable).parent
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        given = {name: text for name, text in os.environ.items() if not name.startswith("DJANGO")}
        given |= {"PYTHONPATH": str(self.package)} if self.package else {}
        completed = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env={**given, **variables, "PATH": path, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,
        )
        return completed.stdout


class Operator(Reader):
    """Somebody who runs the management commands of a page on the test database, in this process.

    What the page shows is compared without its numbers: counts, positions, times and process ids are
    those of another database. Other programs, and commands that serve until they are stopped, are not
    run.
    """

    SERVING = re.compile(r"--follow|\bexporter\b|\bconsume\b")

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        super().__init__(folder, {})
        self.names = {**names, "web-1": socket.gethostname()}
        """Names and positions in the page -> what they are here."""
        self.code: int | None = None
        """The exit code of the last command; None: it was not run."""

    def run(self, command: str) -> str:
        """Run a command of `manage.py`, or `echo $?`; return what it wrote."""
        if command == "echo $?":
            return f"{self.code}\n"
        if "manage.py" not in command.split()[0] or self.SERVING.search(command):
            self.code = None
            return ""
        for in_the_page, here in self.names.items():
            command = command.replace(in_the_page, here)
        _, name, *arguments = shlex.split(command)
        output, self.code = StringIO(), 0
        try:
            with contextlib.chdir(self.folder):
                call_command(name, *arguments, stdout=output, stderr=output, no_color=True)
        except CommandError as error:
            output.write(f"CommandError: {error}\n")
            self.code = error.returncode
        return output.getvalue()

    def fits(self, shown: str, written: str) -> bool:
        """Tell whether a command wrote what the page shows, but for the numbers."""
        if self.code is None:
            return True
        for in_the_page, here in self.names.items():
            written = written.replace(here, in_the_page)
        return self.code in (0, 3) and fits(without_numbers(shown), without_numbers(written))


def without_numbers(text: str) -> str:
    """Return the text with `#` for each number or time; lines that go on become one again."""
    lines = re.sub(r"\n {9,}(?=\S)(?! *[\d-]+ )", " ", text)
    return re.sub(r"(?:(?<=\s)[-+])?\d(?:[\d.,:T+-]*\d)?", "#", lines)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output that is shown."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield re.sub(r"\s+#\s.*$", "", command), shown


def fits(shown: str, written: str) -> bool:
    """Tell whether the lines shown are written, one after the other; nothing shown fits all."""
    patterns = [
        r"\s+".join(re.escape(word).replace("…", ".*") for word in line.split())
        for line in shown.splitlines()
    ]
    whole = r"(?:.*\n)*?".join(rf"[ \t]*{pattern}[ \t]*\n" for pattern in patterns)
    return re.search(whole, written.rstrip("\n") + "\n") is not None
