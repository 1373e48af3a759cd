"""A pytest plugin with one fixture, found by pytest through the package's entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Published


@pytest.fixture
def outbox_published(db: None) -> Published:
    """What was published since the test asked for this fixture; see `outbox.testing.published`."""
    from .testing import published

    messages = published()
    messages.restart()
    return messages
