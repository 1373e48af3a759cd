"""The server of the run, and the fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outbox.testing import isolated_groups
from tests.support.server import OWN_SERVER

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.failing",
    "tests.support.pgbouncer",
    "tests.support.project",
    "tests.support.witness",
]


def pytest_unconfigure() -> None:
    OWN_SERVER.stop()


@pytest.fixture(autouse=True)
def _groups_of_the_project() -> Iterator[None]:
    """A group that a test declares is forgotten at its end."""
    with isolated_groups():
        yield
