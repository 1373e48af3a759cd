"""What a check of the doctor finds."""

from __future__ import annotations

import dataclasses
from typing import Literal

Level = Literal["ok", "warn", "fail"]
Answer = tuple[Level, str, str]
"""A level, what was found, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    """"fail" means that a promise of the log is broken; "warn" that it may become late or slow."""
    detail: str
    fix: str
    """What to do; empty when all is well."""
