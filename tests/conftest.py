"""The server of the run, and the fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outbox import groups
from tests.support import server

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.failing",
    "tests.support.pgbouncer",
    "tests.support.project",
    "tests.support.wheel",
    "tests.support.witness",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Each process of a run in several starts a server of its own."""
    server.stop_own()


def pytest_unconfigure() -> None:
    server.stop_own()


@pytest.fixture(autouse=True)
def _groups_of_the_project(request: pytest.FixtureRequest) -> Iterator[None]:
    """A group that a test declares is forgotten at its end, and those of other test files are not seen."""
    collected = {item.module.__name__ for item in request.session.items} - {request.module.__name__}

    def is_of_the_project(group: groups.ConsumerGroup) -> bool:
        return (group.declared_at or "").partition(":")[0] not in collected

    with groups.isolated(keep=is_of_the_project):
        yield
