"""When failed messages are tried again: the option `retry=` of a consumer group."""

from __future__ import annotations

import dataclasses
import datetime
import random

from .conf import is_number
from .exceptions import InvalidGroup


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """When a failed message is tried again, and when its group gives up on it.

    By default nine tries within two to four minutes: 0.5 to 1 s, 1 to 2 s and so on before each
    further one, 64 to 128 s before the last. The range of the message waits meanwhile.

    Raises InvalidGroup for a value out of its range.
    """

    max_attempts: int = 9
    """Tries in all before the group gives up; 0 for no limit."""
    base: float = 1.0
    """Seconds before the second try."""
    factor: float = 2.0
    """By how much each further delay grows."""
    max_delay: float = 300.0
    """Seconds that no delay exceeds."""
    jitter: bool = True
    """Draw each delay evenly between half its value and its value."""
    max_seconds: float | None = None
    """Seconds since the first failure after which the group gives up; None for no limit."""

    def __post_init__(self) -> None:
        limit = self.max_seconds
        allowed = {
            "max_attempts": (is_number(self.max_attempts, 0, whole=True), "a whole number from 0"),
            "base": (is_number(self.base, 0), "seconds from 0 on"),
            "factor": (is_number(self.factor, 1, 1000), "a number from 1 to 1000"),
            "max_delay": (is_number(self.max_delay, 0), "seconds from 0 on"),
            "max_seconds": (limit is None or is_number(limit, 0), "seconds from 0 on, or None"),
        }
        for option, (is_allowed, what) in allowed.items():
            if not is_allowed:
                raise InvalidGroup(f"Retry: {option}={getattr(self, option)!r}; use {what}.")

    def delay(self, attempts: int) -> float:
        """Return the seconds to wait after `attempts` failed tries (1 or more)."""
        exponent = min(attempts - 1, 64)
        delay = min(self.max_delay, self.base * self.factor**exponent)
        return random.uniform(delay / 2, delay) if self.jitter else delay

    def is_exhausted(self, attempts: int, failing_for: datetime.timedelta) -> bool:
        """Return whether the group gives up after `attempts` failed tries over `failing_for`."""
        if self.max_attempts and attempts >= self.max_attempts:
            return True
        return self.max_seconds is not None and failing_for.total_seconds() >= self.max_seconds


def default_retry(delivery: str) -> Retry:
    """Return the Retry of a group that is declared without one.

    With "at_least_once", whose handlers call other systems, twelve tries within nine to 19 minutes.
    """
    return Retry(max_attempts=12) if delivery == "at_least_once" else Retry()
