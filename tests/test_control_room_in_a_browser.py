"""The control room in a real browser."""

from __future__ import annotations

import re
import shlex
import signal

import pytest
from django.contrib.auth.models import Permission, User

import outbox
from outbox.models import Cursor, OperatorAction, ParkedMessage
from outbox.operations import pauses
from tests.shop.models import Effect, Fault
from tests.support.amounts import amount
from tests.support.harness import backend, execute, insert
from tests.support.processes import manage, wait_until
from tests.support.publishing import publish, publish_order, publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = amount(600, 100_000)
GROUPS = ("doomed", "desks", "ledger", "shipping")
"""One with a failing handler, one whose worker is killed, a paused one, and one that is well."""
ADMIN = "/admin/outbox/"
LOOK = ("view_group", "view_message", "view_parkedmessage", "view_operatoraction")
ACT = ("operate_group", "redrive_message", "discard_message", "end_session")
PASSWORD = "correct horse"
FOCUSED = "const it = document.activeElement; return [it, it.innerText, it.id]"


def person(name, permissions):
    """A user of the admin with some permissions."""
    user = User.objects.create_user(name, password=PASSWORD, is_staff=True)
    for each in permissions:
        found = Permission.objects.get(content_type__app_label="outbox", codename=each)
        user.user_permissions.add(found)


@pytest.fixture
def trouble(start_command, connect):
    """A project in which four things went wrong, one after the other, while workers run."""
    Fault.objects.create(group="doomed")
    workers = {name: start_command("consume", name) for name in GROUPS}
    publish_orders(MESSAGES // 2)
    publish_order(10**6, note="fragile")
    publish_order(10**6 + 1, note="fragile")
    wait_until(lambda: ParkedMessage.objects.filter(group="doomed").count() == 2, 300)
    wait_until(lambda: Effect.objects.filter(group="desks").count() == MESSAGES // 2 + 2, 300)
    pauses.pause("ledger", reason="a deploy of last week")
    workers["desks"].send_signal(signal.SIGKILL)
    workers["desks"].wait()
    stuck = connect()
    execute(stuck, "BEGIN")
    insert(stuck)
    publish_orders(range(MESSAGES // 2, MESSAGES))
    return backend(stuck)


def test_a_person_finds_each_cause_and_cures_it_on_the_pages(
    browser, live_server, start_command, trouble
):
    """Every step is a link or a button of the page before; a worker is started by the command that the
    page shows. Then each group has handled every message once, and `outbox audit` agrees."""
    person("ann", LOOK + ACT)
    browser.log_in(live_server.url, "ann", PASSWORD)
    browser.click("Consumer groups")
    browser.reload_until(lambda page: "The horizon is held back" in page.text())
    browser.picture("control-room-groups")
    first = {name: browser.row(name) for name in GROUPS}

    assert "stopped" in first["desks"]
    assert "paused" in first["ledger"]
    assert f"pid {trouble}" in browser.text()

    # The stuck publisher: the page names its session.
    browser.click("End this session")
    assert "idle in transaction" in browser.text() or "transaction since" in browser.text()
    browser.confirm("forgotten in a shell")
    browser.reload_until(lambda page: "The horizon is held back" not in page.text())

    # The killed worker: the page of the group shows the command.
    browser.click("desks")
    assert "None is connected." in browser.text()
    command = re.search(r"Way out: manage\.py (consume \S+)", browser.text())
    start_command(*shlex.split(command[1]))
    browser.reload_until(lambda page: "None is connected." not in page.text())
    browser.click("Consumer groups")

    # The paused group: the reason stands in its last actions.
    browser.click("ledger")
    assert "a deploy of last week" in browser.text()
    browser.click("Resume")
    browser.confirm("the deploy is done")
    browser.click("Consumer groups")

    # The failing handler: the traceback of a parked message says why; one is given up, one is tried
    # again after the handler was mended.
    browser.click("doomed")
    browser.picture("control-room-group")
    browser.click("Broken")
    position = ParkedMessage.objects.filter(group="doomed").earliest("position").position
    browser.click(str(position))
    assert "raise Broken" in browser.text()
    browser.click("Discard")
    browser.confirm("the order was cancelled")
    Fault.objects.all().delete()
    browser.click("Parked messages")
    browser.click("doomed")
    browser.click("Redrive all")
    browser.confirm("the handler is mended")
    assert "1 handled" in browser.text()

    browser.click("Consumer groups")
    browser.reload_until(
        lambda page: all(" ok " in f" {page.row(name)} " for name in GROUPS), timeout=600
    )
    audited = {name: manage("outbox", "audit", name) for name in GROUPS}
    handled = {name: set(positions(name)) for name in GROUPS}

    assert {name: done.returncode for name, done in audited.items()} == dict.fromkeys(GROUPS, 0), (
        audited
    )
    assert {name: len(found) for name, found in handled.items()} == {
        name: MESSAGES + 2 - (name == "doomed") for name in GROUPS
    }
    assert handled["shipping"] - handled["doomed"] == {position}
    assert sum(len(positions(name)) for name in GROUPS) == sum(map(len, handled.values()))
    assert set(OperatorAction.objects.values_list("actor", "action")) >= {
        ("ann", "end session"),
        ("ann", "resume"),
        ("ann", "discard"),
        ("ann", "redrive"),
    }


def positions(group):
    return list(Effect.objects.filter(group=group).values_list("position", flat=True))


def test_a_person_without_permissions_sees_no_button(browser, live_server, script):
    """Neither on the pages nor behind the addresses: they answer 403."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"a": ValueError("no")}
    publish("a", "b")
    made.drain()
    person("bob", LOOK)
    browser.log_in(live_server.url, "bob", PASSWORD)
    buttons = []
    for page in ("group/", "group/scripted/change/", "parkedmessage/?group=scripted"):
        browser.driver.get(f"{live_server.url}{ADMIN}{page}")
        found = browser.driver.find_elements("css selector", "#ob-live .ob-button")
        buttons += [each.text for each in found]
    browser.driver.get(f"{live_server.url}{ADMIN}group/scripted/do/pause/")

    assert buttons == ["Look"]
    assert "403 Forbidden" in browser.text()


@pytest.fixture
def parked(script):
    """A group with parked messages of several errors and keys."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"a": ValueError("no such order"), "b": KeyError("customer")}
    made.positions = publish("a", "a", "b", "c")
    made.drain()
    pauses.pause("scripted", reason="maintenance of the shop")
    publish("d")
    return made


PAGES = (
    "group/",
    "group/?live=on",
    "group/scripted/change/",
    "group/scripted/do/reset/",
    "group/scripted/do/reset/?way=to_earliest",
    "group/scripted/do/redrive/?all=on",
    "message/?channel=trouble",
    "message/{position}/change/",
    "message/segments/",
    "parkedmessage/",
    "parkedmessage/?group=scripted",
    "parkedmessage/{parked}/change/",
    "operatoraction/",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_narrow_screen_and_is_accessible(browser, live_server, parked, scheme):
    """At 320 pixels no page is wider than the screen, and axe-core finds nothing serious where it can
    be had, in light and in dark colours."""
    User.objects.create_superuser("ann", password=PASSWORD)
    browser.log_in(live_server.url, "ann", PASSWORD)
    browser.prefer(scheme)
    browser.resize(320, 800)
    row = ParkedMessage.objects.earliest("position")
    widths, serious = {}, {}
    for page in PAGES:
        address = page.format(position=row.position, parked=row.pk)
        browser.driver.get(f"{live_server.url}{ADMIN}{address}")
        widths[page] = browser.width()
        serious[page] = browser.serious()

    assert {page: width for page, width in widths.items() if width > 320} == {}
    assert {page: found for page, found in serious.items() if found} == {}


def test_a_group_is_paused_with_the_keyboard_alone(browser, live_server, script):
    """Tab reaches the group, the button, the reason and the confirmation, in the order of the page,
    and what has the focus shows it."""
    from selenium.webdriver.common.keys import Keys

    script().drain()
    User.objects.create_superuser("ann", password=PASSWORD)
    browser.log_in(live_server.url, "ann", PASSWORD)
    browser.driver.get(f"{live_server.url}{ADMIN}group/")
    outlines = []

    def tab_to(text):
        for _ in range(80):
            browser.driver.switch_to.active_element.send_keys(Keys.TAB)
            focused, *names = browser.driver.execute_script(FOCUSED)
            if text in names:
                outlines.append(focused.value_of_css_property("outline-style"))
                return focused
        raise AssertionError(f"Tab does not reach {text}")

    def enter(text):
        browser.leave_by(lambda: tab_to(text).send_keys(Keys.ENTER))

    enter("scripted")
    enter("Pause")
    tab_to("id_reason").send_keys("maintenance")
    enter("Confirm: Pause: scripted")

    assert Cursor.objects.get(group="scripted").paused_until is not None
    assert OperatorAction.objects.get().actor == "ann"
    assert "none" not in outlines
