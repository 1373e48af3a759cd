"""Fixtures of all tests: raw sessions, threads, processes, gates, groups of a single test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction

import outbox
from outbox.testing import isolated_groups
from tests.support.harness import Background, Gate
from tests.support.processes import driver, open_session, start_manage


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


@pytest.fixture
def in_atomic(request, db):
    """The test is an atomic() block of the code, inside the block of the test case; a test with
    real commits makes its own."""
    if request.node.get_closest_marker("django_db").kwargs.get("transaction"):
        yield
        return
    with transaction.atomic():
        yield


@pytest.fixture
def other_alias(transactional_db):
    """Another alias of the test database, with a connection of its own."""
    default = connections["default"]
    connections["other"] = type(default)({**default.settings_dict}, alias="other")
    yield "other"
    connections["other"].close()
    del connections["other"]


@pytest.fixture
def background():
    """Start a function in a thread with its own connections; it does not outlive the test."""
    threads = []

    def start(function, *arguments):
        threads.append(Background(function, *arguments))
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(120)


@pytest.fixture
def start_command(connect):
    """Start a management command in a process of its own; it does not outlive the test."""
    processes = []

    def start(*arguments):
        processes.append(start_manage(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def close_gate(connect, background):
    """Close the gate of a name; all gates are open again when the test ends, before its threads are
    awaited."""
    gates = []

    def close(name):
        gates.append(Gate(connect(), name))
        return gates[-1]

    yield close
    for gate in gates:
        gate.open()


@pytest.fixture
def declare_group():
    """Declare a consumer group for one test."""
    with isolated_groups():
        yield lambda name, *channels, **options: outbox.ConsumerGroup(name, channels, **options)
