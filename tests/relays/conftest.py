import pytest

from tests.relays.destinations import ALL, NotToBeHad


@pytest.fixture(params=sorted(ALL))
def destination(request, tmp_path):
    """A real server on loopback, empty; the test is skipped with the reason where there is none."""
    try:
        made = ALL[request.param](tmp_path / request.param)
        made.command()
    except NotToBeHad as error:
        pytest.skip(str(error))
    try:
        made.start()
        yield made
    finally:
        made.stop()
