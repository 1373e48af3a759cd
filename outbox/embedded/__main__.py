"""python -m outbox.embedded: a PostgreSQL server around a command, or until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from . import EmbeddedError, Server


def main(arguments: Sequence[str]) -> int:
    """Run a command with DATABASE_URL naming a server, or wait for Ctrl-C; return an exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m outbox.embedded",
        description="Start PostgreSQL, run a command with DATABASE_URL set, stop the server.",
        usage="%(prog)s [--data DIR] [--durable] [-- COMMAND...]",
    )
    parser.add_argument("--data", metavar="DIR", help="keep the data in this folder")
    parser.add_argument("--durable", action="store_true", help="flush each commit to disk")
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    try:
        with Server(options.data, durable=options.durable) as server:
            return _run_until_done(command, server.url)
    except (EmbeddedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run_until_done(command: Sequence[str], url: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not command:
        print(url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        return 0
    with subprocess.Popen(command, env={**os.environ, "DATABASE_URL": url}) as process:
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal interrupts the command too
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
