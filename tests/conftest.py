"""The server of the run, and the fixtures of all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest

from outbox import groups
from tests.support import server

# Where Python may write no bytecode, each of the many processes would compile what it imports.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.browser",
    "tests.support.failing",
    "tests.support.flushing",
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


_of_the_apps: set[str] = set()
"""Names of the groups that the project declares, without those of test files."""


def pytest_sessionstart() -> None:
    # A shell starts jobs in the background with SIGINT ignored, and the tests' processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _of_the_apps.update(group.name for group in groups.all_groups())


@pytest.fixture
def groups_of_the_apps() -> Iterator[None]:
    """The test sees the groups of the project alone, whatever other test files declare."""
    with groups.isolated(keep=lambda group: group.name in _of_the_apps):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape the lone surrogates that some tests print: a process cannot report them to another one."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _groups_of_the_project(request: pytest.FixtureRequest) -> Iterator[None]:
    """A group that a test declares is forgotten at its end, and those of other test files are not seen."""
    collected = {item.module.__name__ for item in request.session.items} - {request.module.__name__}

    def is_of_the_project(group: groups.ConsumerGroup) -> bool:
        return (group.declared_at or "").partition(":")[0] not in collected

    with groups.isolated(keep=is_of_the_project):
        yield
