"""The server of the run, and the fixtures of all tests."""

from __future__ import annotations

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
