"""Output: tables for people, JSON for programs; data to stdout, narration to stderr."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.core.management.base import OutputWrapper
from django.core.management.color import Style

from ...sql import zoned

UNLIMITED = 10**9
"""Columns of an output that is no terminal: nothing is cut there."""
NARROWEST = 12
"""Characters that are left of a column in any case."""

_CONTROLS = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_CONTROL = re.compile(_CONTROLS)
"""Control characters of terminals, and those that turn the direction of a text."""
_COLOURED_OR_CONTROL = re.compile(rf"(\x1b\[[0-9;]+m[a-z]+ *\x1b\[0m)|{_CONTROLS}")

GOOD = ("ok",)
BAD = ("failing", "stalled", "stopped", "invalid", "fail")


class Printer:
    """Where a verb writes to. `as_json`: whether the caller asked for JSON."""

    def __init__(
        self, stdout: OutputWrapper, stderr: OutputWrapper, style: Style, as_json: bool
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.style = style
        self.as_json = as_json

    @property
    def width(self) -> int:
        """Columns that a table should fit into; its last and first column are cut for that."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else UNLIMITED

    def clear(self) -> None:
        """Empty the screen, if there is one."""
        if self.stdout.isatty():
            self.stdout.write("\x1b[2J\x1b[H", ending="")

    def json(self, value: Any) -> None:
        """Write one JSON document, on one line."""
        text = json.dumps(value, default=_plain, ensure_ascii=False)
        self.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    def flush(self) -> None:
        """Hand on what was written, as when a program reads it while it is written."""
        self.stdout.flush()

    def close(self) -> None:
        """Hand on what is left; drop it when its reader, such as `head`, has gone."""
        for stream in (self.stdout, self.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def line(self, text: str = "") -> None:
        """Write a line for people to stdout."""
        self.stdout.write(visible(text))

    def note(self, text: str) -> None:
        """Write a line of narration to stderr."""
        self.stderr.write(text, lambda line: line)

    def block(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write labelled texts, one below the other; empty ones are left out."""
        shown = [(label, text) for label, text in pairs if text]
        width = max(len(label) for label, _ in shown)
        for label, text in shown:
            lines = textwrap.wrap(text, max(NARROWEST, min(self.width, 10_000) - width - 2))
            for name, line in zip([label, *[""] * len(lines)], lines, strict=False):
                self.line(f"{name:<{width}}  {line}")

    def table(self, header: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows below a header of column names; "<NAME" sets a column to the left."""
        names = header.split()
        left = [name.startswith("<") for name in names]
        titles = [name.lstrip("<") for name in names]
        cells = [[_text(value) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= self.width else " "
        for column in (-1, 0):
            surplus = sum(widths) + len(gap) * (len(widths) - 1) - self.width
            if surplus > 0 and left[column]:
                widths[column] = min(widths[column], max(NARROWEST, widths[column] - surplus))
        for line in [titles, *cells]:
            padded = [
                _cut(cell, width).ljust(width) if is_left else cell.rjust(width)
                for cell, width, is_left in zip(line, widths, left, strict=True)
            ]
            self.line(gap.join(map(self._coloured, padded)).rstrip())

    def status(self, word: str) -> str:
        """Return a status in its colour."""
        return self._coloured(word)

    def _coloured(self, cell: str) -> str:
        colour = self._colour(cell.strip())
        return colour(cell) if colour else cell

    def _colour(self, word: str) -> Callable[[str], str] | None:
        if word in GOOD:
            return self.style.SUCCESS
        if word in BAD:
            return self.style.ERROR
        return self.style.WARNING if word in FAIR else None


FAIR = ("undeclared", "behind", "replaying", "paused", "warn")


def visible(text: str) -> str:
    """Return a line with its control characters as escapes, but with the colours of statuses.

    A terminal would obey those of a key, a payload or an error that somebody published.
    """
    return _COLOURED_OR_CONTROL.sub(
        lambda found: found[1] or found[0].encode("unicode_escape").decode(), text
    )


def ago(time: datetime.datetime | None) -> str:
    """Return the age of a time, in one unit."""
    if time is None:
        return "never"
    now = datetime.datetime.now(datetime.UTC)
    seconds = max(0.0, (now - zoned(time)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def at_least(number: int, is_lower_bound: bool) -> str:
    """Return a count, with a plus sign when there may be more."""
    return f"{number}+" if is_lower_bound else str(number)


def slots(first: int, last: int) -> str:
    """Return a range of slots."""
    return f"{first}-{last}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return (
        _CONTROL.sub(
            lambda found: found[0].encode("unicode_escape").decode(), " ".join(str(value).split())
        )
        or "-"
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime.datetime):
        return zoned(value).isoformat()
    return str(value)
