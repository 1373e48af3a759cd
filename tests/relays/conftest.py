import contextlib

import pytest

from tests.relays.destinations import ALL, NotToBeHad


@pytest.fixture(scope="session")
def _servers():
    """The destinations that tests have used, by their names; each is stopped when the run ends."""
    with contextlib.ExitStack() as ends:
        servers = {}

        def keep(name, server):
            servers[name] = server
            ends.callback(server.stop)

        yield servers, keep


@pytest.fixture(params=sorted(ALL))
def destination(request, _servers, tmp_path_factory):
    """A real server on loopback, empty; the test is skipped with the reason where there is none."""
    servers, keep = _servers
    if made := servers.get(request.param):
        made.empty()
        return made
    try:
        made = ALL[request.param](tmp_path_factory.mktemp(request.param))
        made.command()
    except NotToBeHad as error:
        pytest.skip(str(error))
    keep(request.param, made)
    made.start()
    return made
