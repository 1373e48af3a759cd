"""The known name that a wrong one is probably meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is probably meant to be, None without one.

    Case, spaces and punctuation do not count.
    """
    simple = {_simplified(each): each for each in known}
    found = difflib.get_close_matches(_simplified(str(name)), simple, n=1, cutoff=0.75)
    return simple[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean …?" with the nearest known name, "" without one."""
    found = nearest(name, known)
    return f" Did you mean {found!r}?" if found else ""


def _simplified(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold() or name
