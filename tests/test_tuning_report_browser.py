"""The report in a real browser, without a network: it renders, tells what a point is, is silent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from tuning_search import search

from tvmconv.tuning import report

pytest.importorskip("selenium", reason="the browser is driven by selenium, which is not installed")

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with the report of two layers; it cannot reach any network."""
    place = tmp_path_factory.mktemp("report") / "report.html"
    report.write(place, [*search(60), *search(20, shape=(1, 8, 8, 8, 16))])
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1280,1000", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={place.parent / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        driver.set_page_load_timeout(200)
        driver.get(place.as_uri())
        yield driver
        assert driver.get_log("browser") == []  # no error, no warning, by any of the tests
    finally:
        driver.quit()


def shown(browser: Any) -> str:
    """The text of the tooltip, empty where it is hidden."""
    return str(browser.find_element(By.CLASS_NAME, "tip").text)


def test_it_renders(browser: Any) -> None:
    assert browser.title == "Tuning report"
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg.course, svg.bars')]"
        ".map((svg) => [svg.getBBox().width, svg.getBoundingClientRect().height])"
    )
    assert len(sizes) == 2 * 2 + 2 * 3
    assert all(width > 100 and height > 20 for width, height in sizes)
    wide = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(wide)
    assert shown(browser) == ""


def test_a_point_under_the_pointer_says_what_it_is(browser: Any) -> None:
    chart = browser.find_element(By.CSS_SELECTOR, "svg.course")
    for index, expected in ((0, "trial 1, the default"), (7, "failed: timeout: no answer")):
        point = chart.find_element(By.CSS_SELECTOR, f'[data-i="{index}"]')
        ActionChains(browser).move_to_element(point).perform()
        assert expected in shown(browser)
        assert "registers" in shown(browser)
        box = browser.find_element(By.CLASS_NAME, "tip").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1280
    # The same candidate is ringed in the chart over time.
    other = browser.find_elements(By.CSS_SELECTOR, "svg.course")[1]
    ring = other.find_element(By.CLASS_NAME, "ring")
    mark = other.find_element(By.CSS_SELECTOR, '[data-i="7"]')
    assert ring.get_attribute("cx") == mark.get_attribute("data-x")
    heading = browser.find_element(By.TAG_NAME, "h1")
    ActionChains(browser).move_to_element(heading).perform()
    assert shown(browser) == ""


def test_the_keyboard_goes_from_candidate_to_candidate(browser: Any) -> None:
    chart = browser.find_element(By.CSS_SELECTOR, "svg.course")
    browser.execute_script("arguments[0].focus()", chart)
    press = ActionChains(browser)
    press.send_keys(Keys.HOME).send_keys(Keys.ARROW_RIGHT).send_keys(Keys.ARROW_RIGHT).perform()
    assert shown(browser).startswith("trial 3,")
    spoken = browser.find_element(By.CSS_SELECTOR, '[role="status"]')
    assert spoken.get_attribute("textContent").startswith("trial 3,")
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert shown(browser) == ""


def test_light_and_dark(browser: Any) -> None:
    def colours() -> list[str]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return list(browser.execute_script(script))

    before = colours()
    browser.find_element(By.TAG_NAME, "button").click()
    after = colours()
    assert set(before).isdisjoint(after)
    browser.find_element(By.TAG_NAME, "button").click()
    assert colours() == before


def test_a_narrow_screen(browser: Any) -> None:
    size = browser.get_window_size()
    browser.set_window_size(520, 900)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.set_window_size(size["width"], size["height"])
