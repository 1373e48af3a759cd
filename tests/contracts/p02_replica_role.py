"""Promise 2 with session_replication_role = replica, in which bulk loaders and subscriptions write."""

import pytest

from outbox.models import Message
from outbox.testing import drain
from tests.support.harness import (
    DRIVER_ERROR,
    all_floors,
    copy_in,
    execute,
    horizon,
    insert,
    last_position,
    stored,
    value,
)

pytestmark = pytest.mark.django_db(transaction=True)

COLUMNS = "(channel, key, type, payload, headers)"
VALUES = "VALUES ('orders', '1', 'OrderPlaced', '{\"order_id\": 1}', '{}')"


@pytest.fixture
def session(connect):
    return connect()


@pytest.fixture
def loader(connect):
    """A session in the role replica; only a superuser may choose it."""
    a_session = connect()
    if value(a_session, "SHOW is_superuser") != "on":
        pytest.skip("only a superuser can set session_replication_role")
    for trigger in ("take_floor", "check_positions_and_notify"):
        name = value(
            a_session,
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'outbox_message'::regclass AND tgname LIKE %s",
            f"%{trigger}%",
        )
        execute(a_session, f"ALTER TABLE ONLY outbox_message ENABLE ALWAYS TRIGGER {name}")
    execute(a_session, "SET session_replication_role = replica")
    return a_session


WAYS = {
    "insert": lambda session: execute(session, f"INSERT INTO outbox_message {COLUMNS} {VALUES}"),
    "copy": lambda session: copy_in(
        session,
        f"COPY outbox_message {COLUMNS} FROM STDIN",
        'orders\t1\tOrderPlaced\t{"order_id": 1}\t{}\n',
    ),
    "insert into a segment": lambda session: execute(
        session, f"INSERT INTO outbox_message_1 {COLUMNS} {VALUES}"
    ),
    "copy into a segment": lambda session: copy_in(
        session,
        f"COPY outbox_message_1 {COLUMNS} FROM STDIN",
        'orders\t1\tOrderPlaced\t{"order_id": 1}\t{}\n',
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_who_draws_positions_in_this_role_holds_a_floor(session, loader, way):
    """A later message that commits first does not let a reader pass the open one."""
    execute(loader, "BEGIN")
    WAYS[way](loader)
    later = insert(session)
    handled_before = drain("billing")
    seen = horizon(session)
    execute(loader, "COMMIT")

    assert handled_before == 0
    assert seen < later - 1
    assert drain("billing") == 2


def test_rows_of_a_subscription_keep_their_positions(session, loader):
    """In this role rows come in at the positions that they have, as a logical upgrade brings them."""
    [position] = [insert(session)]
    apart = position + 1000
    for table, at in (("outbox_message", apart), ("outbox_message_1", apart + 5)):
        execute(
            loader,
            f"INSERT INTO {table} (position, channel, type, payload, headers)"
            f" VALUES ({at}, 'orders', 'OrderPlaced', '{{}}', '{{}}')",
        )

    assert stored() == [position, apart, apart + 5]
    assert all_floors(session) == []


def test_other_roles_still_cannot_choose_a_position(session):
    """The position check stands in the roles origin and local."""
    for role in ("origin", "local"):
        execute(session, f"SET session_replication_role = {role}")
        for table in ("outbox_message", "outbox_message_1"):
            with pytest.raises(DRIVER_ERROR):
                execute(
                    session,
                    f"INSERT INTO {table} (position, channel, type, payload, headers)"
                    f" VALUES ({last_position(session) + 9}, 'orders', 'A', '{{}}', '{{}}')",
                )

    assert not Message.objects.exists()
