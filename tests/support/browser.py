"""A real browser: Debian's chromium, headless, by selenium (extra "browser").

A test with it is skipped, with the reason, where either is missing. OUTBOX_TEST_AXE may name the file
`axe.min.js` of axe-core: then the pages are checked for accessibility too. OUTBOX_TEST_PICTURES may
name a folder: then pictures of pages are saved there, as docs/images has them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import wait_until

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
LINK_OR_BUTTON = "//*[@id='content']//*[self::a or self::button][contains(., '{0}')]"

ROW = """
const named = (row) => [...row.cells].some((cell) => cell.tagName == "TH" && cell.innerText.trim() == arguments[0]);
const row = [...document.querySelectorAll("tr")].find(named);
return row ? row.innerText.replace(/\\s+/g, " ") : "";
"""


class Browser:
    """A browser, and what a person does in it."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ARGUMENTS:
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.driver.set_page_load_timeout(120)
        self.resize(width, height)

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page a size in pixels, also one that is narrower than a window can be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """Prefer the colours "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, name: str) -> None:
        """Save a picture of the page, where OUTBOX_TEST_PICTURES names a folder."""
        if folder := os.environ.get("OUTBOX_TEST_PICTURES"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def log_in(self, site: str, name: str, password: str) -> None:
        """Log in to the admin by its form."""
        self.driver.delete_all_cookies()
        self.driver.get(f"{site}/admin/login/")
        self.fill("id_username", name)
        self.fill("id_password", password)
        self.leave_by(lambda: self.driver.find_element("css selector", "[type=submit]").click())

    def fill(self, name: str, text: str) -> None:
        """Write into the field with an id."""
        self.driver.find_element("id", name).send_keys(text)

    def click(self, text: str) -> None:
        """Click on the first link or button of the page's content that shows a text, and wait for the
        page that it leads to."""
        found = LINK_OR_BUTTON.format(text)
        self.leave_by(lambda: self.driver.find_element("xpath", found).click())

    def leave_by(self, act: Callable[[], object]) -> None:
        """Act on an element, and wait for the page that it leads to. The live view may exchange the
        element between the look and the act: then it is looked for again."""
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )

        page = self.driver.find_element("tag name", "html")

        def acted() -> bool:
            try:
                act()
            except (NoSuchElementException, StaleElementReferenceException):
                return False
            return True

        def gone() -> bool:
            try:
                page.is_enabled()
            except StaleElementReferenceException:
                return True
            return False

        wait_until(acted, 120)
        wait_until(gone, 120)
        wait_until(
            lambda: self.driver.execute_script("return document.readyState") == "complete", 120
        )

    def confirm(self, reason: str) -> None:
        """Give the reason for the plan that is shown, and confirm it."""
        self.fill("id_reason", reason)
        self.click("Confirm")

    def text(self) -> str:
        """Return what the page shows."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def row(self, name: str) -> str:
        """Return what the page shows in the table's row of a name; empty without such a row."""
        return str(self.driver.execute_script(ROW, name))

    def reload_until(self, shows: Callable[[Browser], Any], timeout: float = 120) -> None:
        """Load the page again until it shows something."""

        def look() -> bool:
            self.driver.refresh()
            return bool(shows(self))

        wait_until(lambda: shows(self) or look(), timeout)

    def width(self) -> int:
        """Return how wide the page is, in pixels."""
        return int(self.driver.execute_script("return document.documentElement.scrollWidth"))

    def serious(self) -> list[tuple[str, str]]:
        """Return what axe-core finds serious in the page: rule and element; empty without axe-core."""
        file = os.environ.get("OUTBOX_TEST_AXE")
        if not file:
            return []
        self.driver.execute_script(Path(file).read_text(encoding="utf-8"))
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        return [
            (each["id"], node["html"])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@pytest.fixture(scope="session")
def _shared_browser() -> Iterator[Browser]:
    """One browser for the run: it takes seconds to start."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("the extra browser is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here")
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(_shared_browser: Browser) -> Browser:
    """A browser of 1,280 pixels' width in which nobody is logged in."""
    _shared_browser.driver.get("about:blank")
    _shared_browser.resize(1280)
    _shared_browser.prefer("light")
    return _shared_browser
