"""The server of the run, and raw connections to its database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from tests.server import OWN_SERVER
from tests.support import driver, open_session


def pytest_unconfigure() -> None:
    OWN_SERVER.stop()


@pytest.fixture
def connect(transactional_db: None) -> Iterator[Callable[[], Any]]:
    """Open a new connection of the bare driver to the test database, in autocommit mode."""
    opened = []

    def open_connection() -> Any:
        opened.append(open_session(connection.settings_dict))
        return opened[-1]

    yield open_connection
    for session in opened:
        with contextlib.suppress(driver.Error):
            session.close()
