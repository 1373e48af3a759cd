"""A pytest plugin with two fixtures, found by pytest through the package's entry point."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture
def outbox_isolated_groups() -> Iterator[None]:
    """Forget after the test the consumer groups and handlers that it declared."""
    from .testing import isolated_groups

    with isolated_groups():
        yield
