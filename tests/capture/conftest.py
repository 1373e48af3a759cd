import pytest
from django.db import connections

import outbox
from outbox import groups
from tests.contracts.harness import Background


@pytest.fixture
def declare_group():
    """Declare a consumer group for one test."""
    declared = []

    def declare(name, *channels, **options):
        declared.append(name)
        return outbox.ConsumerGroup(name, channels=channels, **options)

    yield declare
    for name in declared:
        groups._registry.pop(name, None)


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
        thread.join(30)
