"""MLflow's own page in a real browser, on a sweep that was exported."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from analysis.collect import collect
from analysis.mlflow_export import export, quiet
from tests.journals import GREEDY, Sweep
from tests.mlflow_server import served
from tests.test_browser import CHROMIUM, DRIVER, browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

quiet()
__all__ = ["browser"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over the file that the export wrote, as `make mlflow-ui` starts it."""
    folder = tmp_path_factory.mktemp("mlflow")
    grid = {"learning_rate": [1e-4, 5e-4], "temperature": [0.3, 0.7, 1.2]}
    sweep = Sweep(folder / "runs", "demo", grid, range(4), (GREEDY,), steps=(0, 5, 10)).write(2)
    collect(sweep.root, folder / "results.duckdb")
    export(folder / "results.duckdb", "demo", f"sqlite:///{folder / 'mlflow.db'}")
    with served(folder) as found:
        yield found


def shown(browser: Chrome, url: str, *texts: str) -> str:
    """The page's text once all of `texts` are on it; a picture of it where MLFLOW_PICTURES names a folder."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.set_window_size(1500, 1000)
    browser.get(url)

    def text(b: Chrome) -> str:
        return b.find_element("tag name", "body").text

    try:
        WebDriverWait(browser, 120).until(lambda b: all(t in text(b) for t in texts))
    finally:
        if folder := os.environ.get("MLFLOW_PICTURES"):
            browser.save_screenshot(str(Path(folder) / f"{texts[0]}.png"))
    return text(browser)


def test_the_page_shows_configs_and_their_curves_and_asks_nobody_else(browser: Chrome, address: str) -> None:
    """A child's page draws its curves; its name is our run id."""
    from mlflow import MlflowClient

    name = "temperature=0.7, learning_rate=0.0001"
    client = MlflowClient(address)
    [config] = client.search_runs(["1"], f"attributes.run_name = '{name}'")
    table = shown(browser, f"{address}/#/experiments/1/runs?compareRunsMode=TABLE", name)
    assert "demo" in table
    run = shown(browser, f"{address}/#/experiments/1/runs/{config.info.run_id}", "learning_rate", "0.0001")
    assert "eval/arithmetic-num_samples_2/accuracy/mean" in run
    shown(browser, f"{address}/#/experiments/1/runs/{config.info.run_id}/artifacts", "curves.parquet", "config.json")
    [seed, *_] = client.search_runs(["1"], "tags.`emsweep.seed` = '3'")
    shown(browser, f"{address}/#/experiments/1/runs/{seed.info.run_id}/model-metrics", "accuracy", "entropy")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {u for u in urls if u.startswith("http") and not u.startswith(address)} == set()
