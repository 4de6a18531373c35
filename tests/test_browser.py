"""The report's page in a real browser, opened from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from analysis.collect import collect
from analysis.report import build_report
from tests.journals import Sweep
from tests.ports import free_port

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),  # one browser for all of them
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    Sweep(folder / "runs").write()
    collect(folder / "runs", folder / "results.duckdb")
    return build_report(folder / "results.duckdb", "demo", folder / "report").html


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER, port=free_port()))
    yield driver
    driver.quit()


def column(browser: Chrome, heading: str) -> list[str]:
    return browser.execute_script(
        "const at = [...document.querySelectorAll('#configs th')].findIndex(th => th.innerText.trim() === arguments[0]);"
        "return [...document.querySelectorAll('#configs tbody tr')].map(row => row.cells[at].innerText)",
        heading,
    )


def click(browser: Chrome, heading: str) -> str:
    return browser.execute_script(
        "const th = [...document.querySelectorAll('#configs th')].find(th => th.innerText.trim() === arguments[0]);"
        "th.querySelector('button').click(); return th.ariaSort",
        heading,
    )


def test_the_page_opens_without_errors_or_requests(browser: Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    assert browser.title == "demo"
    assert len(browser.find_elements("css selector", ".findings li")) == 3
    assert len(browser.find_elements("css selector", ".doubts li")) >= 4
    assert len(browser.find_elements("css selector", "figure svg")) == 8
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [r["request"]["url"] for r in sent if r["documentURL"] == page.as_uri()]  # not those of the empty tab before
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_a_heading_sorts_and_sorts_back(browser: Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    assert click(browser, "sd") == "descending"
    values = [float(x) for x in column(browser, "sd")]
    assert values == sorted(values, reverse=True)
    assert click(browser, "sd") == "ascending"
    assert [float(x) for x in column(browser, "sd")] == sorted(values)
    assert click(browser, "prompt_name") == "ascending"
    assert column(browser, "prompt_name") == sorted(column(browser, "prompt_name"))
    assert len(browser.find_elements("css selector", "th[aria-sort]")) == 1


def test_a_dark_scheme_changes_page_and_figures(browser: Chrome, page: Path) -> None:
    browser.get(page.as_uri())

    def colours(scheme: str) -> list[str]:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return browser.execute_script(
            "const text = document.querySelector('figure svg text');"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]"
        )

    assert colours("light") == ["rgb(255, 255, 255)", "rgb(107, 114, 128)"]
    assert colours("dark") == ["rgb(22, 24, 28)", "rgb(154, 161, 172)"]


def test_the_page_fits_a_narrow_window(browser: Chrome, page: Path) -> None:
    browser.set_window_size(520, 900)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
