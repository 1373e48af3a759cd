"""The control room in a real browser: Debian's chromium, headless, by selenium (extra "browser")."""

from __future__ import annotations

import os
import shutil

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

import outbox
from outbox.models import Cursor, OperatorAction
from tests.support.publishing import publish

webdriver = pytest.importorskip("selenium.webdriver", reason="the extra browser is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here"),
]


@pytest.fixture
def browser(live_server):
    """A browser of 320 pixels' width in which a superuser is logged in."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 320, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    driver.get(f"{live_server.url}/admin/login/")
    name = settings.SESSION_COOKIE_NAME
    driver.add_cookie({"name": name, "value": client.cookies[name].value})
    yield driver
    driver.quit()


def click(browser, text):
    browser.find_element(
        "xpath", f"//a[contains(., '{text}')] | //button[contains(., '{text}')]"
    ).click()


def test_a_group_is_paused_by_clicks_on_a_narrow_screen(browser, live_server, script):
    """From the list to the group, the plan, the reason and the confirmation; no page is wider than the
    screen, and axe-core finds nothing serious where its file is given (OUTBOX_TEST_AXE)."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"a": ValueError("no")}
    publish("a", "b")
    made.drain()
    serious, widths = [], []

    def look():
        widths.append(browser.execute_script("return document.documentElement.scrollWidth"))
        if file := os.environ.get("OUTBOX_TEST_AXE"):
            with open(file, encoding="utf-8") as source:
                browser.execute_script(source.read())
            found = browser.execute_async_script("axe.run('#content-main').then(arguments[0])")
            serious.extend(
                (each["id"], each["nodes"][0]["html"])
                for each in found["violations"]
                if each["impact"] in ("serious", "critical")
            )

    browser.get(f"{live_server.url}/admin/outbox/group/")
    look()
    click(browser, "scripted")
    look()
    click(browser, "Pause")
    look()
    browser.find_element("id", "id_reason").send_keys("maintenance")
    click(browser, "Confirm")
    look()

    assert Cursor.objects.get(group="scripted").paused_until is not None
    assert OperatorAction.objects.get().actor == "ann"
    assert max(widths) <= 320
    assert serious == []
