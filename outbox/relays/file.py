"""A file as a destination: a line of JSON for each record. The example of a sink.

The resume point is the last line; a line that a dead relay left unfinished is cut off. A lock on
the file refuses a second relay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from typing import IO

from .sink import Origin, Record, position_in, too_large, unavailable

TAIL = 1 << 20
"""Bytes from the end in which the last line is looked for, at first."""


class File:
    """Writes records to the file `path`, each as a JSON object in a line of its own.

    `max_bytes`: of one payload; a larger one is refused. None for no limit.
    """

    most_together: int | None = None

    def __init__(self, path: str, *, max_bytes: int | None = None) -> None:
        self.to = path
        self.max_bytes = max_bytes
        self._file: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"File({self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return the position in the last line, if that is of this origin."""
        for line in self._last_lines():
            attributes = json.loads(line)["attributes"]
            if "outboxtest" not in attributes:
                return position_in(attributes, origin)
        return None

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Append the records and wait until the disk has them."""
        lines: list[bytes] = []
        refusal = None
        for index, record in enumerate(records):
            if self.max_bytes is not None and len(record.data) > self.max_bytes:
                refusal = too_large(index, len(record.data), self.max_bytes, "max_bytes")
                break
            lines.append(_line(record))
        try:
            file = self._open()
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise unavailable(error) from error
        if refusal is not None:
            raise refusal

    def close(self) -> None:
        """Close the file, which gives up its lock."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        if self._file is None:
            file = open(self.to, "ab+", buffering=0)  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(_end_of_lines(file))
            except BlockingIOError as error:
                file.close()
                raise unavailable(f"another process writes to {self.to}") from error
            self._file = file
        return self._file

    def _last_lines(self) -> list[bytes]:
        """Return some lines from the end, the last one first."""
        try:
            file = self._open()
            size, wanted = file.seek(0, os.SEEK_END), TAIL
            while True:
                file.seek(max(0, size - wanted))
                lines = file.read().splitlines()
                if len(lines) > 1 or wanted >= size:
                    return lines[: 0 if wanted < size else None : -1]
                wanted *= 2
        except OSError as error:
            raise unavailable(error) from error


def _end_of_lines(file: IO[bytes]) -> int:
    """Return where the last finished line ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - TAIL)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _line(record: Record) -> bytes:
    fields = {
        "id": record.id,
        "to": record.to,
        "key": record.key,
        "attributes": record.attributes,
        "headers": record.headers,
    }
    head = json.dumps(fields)[:-1].encode()
    return head + b', "data": ' + record.data.replace(b"\n", b" ") + b"}\n"
