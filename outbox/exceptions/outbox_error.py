"""The base of all errors."""

from __future__ import annotations

from typing import Any


class OutboxError(Exception):
    """The outbox could not do what was asked."""

    def __init__(self, message: str | None = None, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        super().__init__(message or (type(self).__doc__ or "").strip().format(**values))
