"""A folder served on loopback, and a headless Chromium to look at it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from patience import PATIENCE
from programs import need

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[str]:
    """Address of the folder, while the context is open."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _started(webdriver: Any, options: Any) -> Any:
    """A browser under control. Selenium waits half a minute for it, which a busy machine may need longer
    than: three tries.
    """
    from selenium.common.exceptions import WebDriverException

    for left in (2, 1, 0):
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        try:
            return webdriver.Chrome(options=options, service=service)
        except WebDriverException:
            if not left:
                raise


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser that keeps its console's log; skips the test, and says why, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="in a browser: selenium is not installed")
    need(
        "in a browser",
        ["chromium", *ARGUMENTS, "--dump-dom", "about:blank"],
        ["chromedriver", "--version"],
        packages="chromium chromium-driver",
    )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = _started(webdriver, options)
    found.set_page_load_timeout(PATIENCE)
    found.set_script_timeout(PATIENCE)
    try:
        yield found
    finally:
        found.quit()


def open_page(browser: Any, url: str) -> None:
    """Load it anew, with an empty log."""
    browser.get("about:blank")  # else only the part behind `#` changes and nothing is loaded
    browser.get_log("browser")
    browser.get(url)


def no_complaints(browser: Any) -> None:
    """The page has logged neither a warning nor an error (a file that is not found is an error)."""
    logged = [e for e in browser.get_log("browser") if e["level"] in ("WARNING", "SEVERE")]
    assert not logged, logged


def keep_picture(browser: Any, name: str) -> None:
    """Screenshot into the folder that PICTURES names, to be looked at."""
    with contextlib.suppress(KeyError):
        browser.save_screenshot(os.path.join(os.environ["PICTURES"], name + ".png"))
