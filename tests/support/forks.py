"""Python processes that start warm, forked from a program that has imported the slow part already.

Run as a program: a line of JSON on stdin names a process, a line on stdout its exit code. With the
argument `setup` it has called `django.setup()`, too; without it nothing of the outbox is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OUTPUT = "output.txt"
WARM = ("django.core.management", "django.db.models", "django.forms", "msgspec", "pgtrigger")
LONGEST = 240
"""Seconds until a process that does not end is killed."""


class Forks:
    """The program below, started at the first use; it ends with this process, or with `close`."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.environment = environment
        self._options = options
        self._program: subprocess.Popen[str] | None = None

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the program."""
        if self._program is not None:
            program, self._program = self._program, None
            program.communicate(timeout=120)

    def run(self, folder: Path, arguments: list[str] | str) -> tuple[int, str]:
        """Run a command of `manage.py`, or code; return its exit code and what it wrote."""
        file = str(folder / OUTPUT)
        code = self._ask(folder, ["manage.py", *arguments], {}, [file, file], arguments)
        return code, (folder / OUTPUT).read_text(encoding="utf-8")

    def complete(
        self, folder: Path, arguments: list[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Do what Python does with `-c code`, `-m django …` or `manage.py …` in an environment."""
        is_code = arguments[0] == "-c"
        command = arguments[2 if arguments[0] == "-m" else 1 :]
        argv = ["-c", *command[1:]] if is_code else ["manage.py", *command]
        with TemporaryDirectory() as place:
            files = [f"{place}/stdout", f"{place}/stderr"]
            code = self._ask(folder, argv, environment, files, command[0] if is_code else command)
            texts = [Path(file).read_text(encoding="utf-8") for file in files]
        return subprocess.CompletedProcess([sys.executable, *arguments], code, *texts)

    def _ask(self, folder: Path, argv: list[str], environment: Any, files: Any, what: Any) -> int:
        if self._program is None:
            self._program = subprocess.Popen(
                [sys.executable, __file__, *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        program = self._program
        assert program.stdin and program.stdout
        request = [str(folder), argv, dict(environment), files, what]
        try:
            print(json.dumps(request), file=program.stdin, flush=True)
            if not select.select([program.stdout], [], [], LONGEST)[0]:
                raise subprocess.TimeoutExpired(argv, LONGEST)
            return int(program.stdout.readline())
        except BaseException:
            self._program = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            raise


def _become(folder: str, argv: list[str], environment: Any, files: list[str], what: Any) -> int:
    outputs = [
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in dict.fromkeys(files)
    ]
    for stream, descriptor in ((1, outputs[0]), (2, outputs[-1])):
        os.dup2(descriptor, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    if environment:
        os.environ.clear()
        os.environ.update(environment)
        paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:0] = [folder, *paths]
    else:
        sys.path.insert(0, folder)
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    sys.argv = argv
    random.seed()
    try:
        if isinstance(what, str):
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module("django", run_name="__main__")
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Fork a process for each line of stdin, one after the other."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    for name in (*WARM, "psycopg", "psycopg2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "setup" in sys.argv:
        importlib.import_module("django").setup()
    while line := sys.stdin.readline():
        if not (child := os.fork()):
            code = 1
            try:
                code = _become(*json.loads(line))
                atexit._run_exitfuncs()
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
