"""Django projects in processes that start warm: Django and the driver are imported, nothing of the
outbox is. Run as a program: a line of JSON on stdin names a process, a line on stdout its exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

OUTPUT = "output.txt"
WARM = ("django.core.management", "django.db.models", "django.forms", "msgspec", "pgtrigger")


class Forks:
    """The program below, as a context: `run` starts a process in the folder of a project."""

    def __enter__(self) -> Forks:
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exc: Any) -> None:
        self._program.communicate(timeout=60)

    def run(self, folder: Path, arguments: list[str] | str) -> tuple[int, str]:
        """Run a command of `manage.py`, or code; return its exit code and what it wrote."""
        assert self._program.stdin and self._program.stdout
        print(json.dumps([str(folder), arguments]), file=self._program.stdin, flush=True)
        code = int(self._program.stdout.readline())
        return code, (folder / OUTPUT).read_text(encoding="utf-8")


def _become(folder: str, arguments: list[str] | str) -> int:
    with open(f"{folder}/{OUTPUT}", "w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    try:
        if isinstance(arguments, str):
            exec(compile(arguments, "<code>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = ["manage.py", *arguments]
            runpy.run_module("django", run_name="__main__")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Fork a process for each line of stdin, one after the other."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    for name in (*WARM, "psycopg", "psycopg2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        if not (child := os.fork()):
            code = 1
            try:
                code = _become(*json.loads(line))
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
