"""The demo's other processes: `manage.py` commands that end with it, also on Ctrl-C."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

MANAGE = Path(__file__).with_name("manage.py")
PATIENCE = 15  # seconds to finish a batch after SIGTERM


class CrewError(Exception):
    """A process of the crew failed; the message ends with what it wrote last."""


class Crew:
    """Starts processes by name; on leaving the `with` block none of them runs any more."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.logs = tempfile.TemporaryDirectory(prefix="flights-")
        return self

    def start(self, name: str, *command: str) -> None:
        """Start `manage.py command…` out of reach of the terminal's Ctrl-C; the demo ends it."""
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, MANAGE, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, name: str, *command: str) -> None:
        """Start a command and wait until it has done its work."""
        self.start(name, *command)
        self.processes[name].wait()
        self.check()

    def kill(self, name: str) -> None:
        """End a process with SIGKILL: it has no chance to finish anything."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def check(self) -> None:
        """Raise CrewError if a process failed."""
        for name, process in self.processes.items():
            if process.poll():
                lines = self.log(name).read_text(errors="replace").splitlines()
                last = "\n".join(lines[-15:])
                raise CrewError(f"{name} ended with code {process.returncode}:\n{last}")

    def running(self, names: list[str]) -> bool:
        return any(self.processes[name].poll() is None for name in names)

    def log(self, name: str) -> Path:
        return Path(self.logs.name, f"{name}.log")

    def dismiss(self) -> None:
        """Let every process finish what it has in hand and end; kill those that do not."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __exit__(self, *_: object) -> None:
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.dismiss()
        self.logs.cleanup()
        signal.signal(signal.SIGINT, impatient)
