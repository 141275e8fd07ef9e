"""The page in a headless Chromium: what a person does with it, and what he sees."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PHONE = 360


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a person does with the page, and what he sees."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1200, dark=False, forced=False):
        """As if in a window so many pixels wide; a phone's where it is narrow. `forced`: in a reader's own colours."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        # What fades in is not there yet.
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        own = {"name": "forced-colors", "value": "active" if forced else "none"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, calm, own]})
        self.driver.get_log("performance")
        self.driver.get(url)

    def until(self, condition):
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def introduced(self):
        self.until(lambda: self.all("#example-list button"))

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        """As they are, not as the style sheet writes them."""
        return [element.get_property("textContent") for element in self.all(selector)]

    def shown(self, selector):
        return any(element.is_displayed() for element in self.all(selector))

    def ask(self, text):
        self.one("#question").clear()
        self.one("#question").send_keys(text, Keys.ENTER)

    def press(self, selector, key=Keys.ENTER):
        self.one(selector).send_keys(key)

    def problems(self):
        """What is said to be wrong, with the form or with a run."""
        return [element.text for element in self.all("#problem, .problem-text") if element.is_displayed()]

    def problem(self):
        self.until(self.problems)
        return self.problems()[0]

    def said(self):
        """What a screen reader was told last."""
        return self.texts("#status p")

    def focused(self):
        return self.driver.switch_to.active_element

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def scrolls_sideways(self):
        return self.js("return document.documentElement.scrollWidth > innerWidth")


def answered(page, answers=1):
    """Waits for so many answers."""
    page.until(lambda: sum(answer.is_displayed() for answer in page.all(".answer")) == answers)
