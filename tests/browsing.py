"""A headless browser for the tests of pages; the fixtures `browser` and `look` open it."""

import shutil
from contextlib import contextmanager

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_S = 60
COLOURS = """(function () {
  let ground = document.querySelector(arguments[0]);
  const ink = getComputedStyle(ground).color;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return [ink, getComputedStyle(ground).backgroundColor];
}).apply(null, arguments)"""
"""Colours of the first element that fits a selector, and of the background behind it."""

chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (chromium and driver), reason="needs Debian's chromium and chromium-driver, which are not installed"
)


@contextmanager
def opened(profile):
    """A browser with an empty profile."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium, from the extra `test`")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait_until(condition):
    """Wait for a condition; a busy machine may take long."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(None, PATIENCE_S, 0.05).until(lambda _: condition())


def js(browser, code, *arguments):
    return browser.execute_script(f"return {code}", *arguments)


def pick(browser, selector):
    """Click; at once, since a page that scrolls smoothly is still moving when the click comes."""
    element = browser.find_element("css selector", selector)
    js(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def take(browser, name, value):
    """Take an option of a list."""
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("name", name)).select_by_value(value)
