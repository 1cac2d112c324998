"""The tracked results, published by asv and opened in a real browser."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
from browsing import chromium, keep_picture, no_complaints, open_page, serve
from patience import PATIENCE
from programs import need

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUITE = ROOT / "asv_bench"
RESULTS = SUITE / "results"
RATIO, GMACS = "gemm.Cubes.track_time_ratio_to_float32", "gemm.Cubes.track_gmacs"


def results() -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*/*-*.json"))]


def load_offline():
    spec = importlib.util.spec_from_file_location("asv_bench_offline", SUITE / "offline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_cover_eight_commits_and_name_no_place():
    found = results()
    assert len({r["commit_hash"] for r in found}) >= 8
    machines = {r["params"]["machine"] for r in found}
    assert machines == {p.parent.name for p in RESULTS.glob("*/machine.json")}
    for path in RESULTS.rglob("*.json"):
        text = path.read_text()
        if path.name == "benchmarks.json":  # the code of the benchmarks; `/proc/...` is Linux's
            text = text.replace("/proc/", "")
        for prefix in ("/home", "/work", "/root", "/tmp", "/usr", "/opt", "C:\\\\", "://"):
            assert prefix not in text, (path.name, prefix)


def test_results_are_of_the_listed_version_of_the_benchmark():
    """asv leaves out results of another version of a benchmark's code: then the history must be run again."""
    now = {name: b["version"] for name, b in json.loads((RESULTS / "benchmarks.json").read_text()).items()
           if isinstance(b, dict)}  # fmt: skip
    for r in results():
        version = dict(zip(r["result_columns"], r["results"][RATIO], strict=False))["version"]
        assert version == now[RATIO], r["commit_hash"]


# ---------------------------------------------------------------- in the browser


def skip(reason: str) -> None:
    pytest.skip(f"dashboard in a browser: {reason}")


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> pathlib.Path:
    """The dashboard as `asv publish` makes it, loading nothing from the network."""
    pytest.importorskip("asv", reason="dashboard in a browser: asv is not installed")
    offline = load_offline()
    if offline.missing():
        skip("run `npm install --prefix asv_bench` first")
    need("dashboard in a browser", ["git", "--version"], packages="git")
    for r in results():
        if git("merge-base", "--is-ancestor", r["commit_hash"], "HEAD").returncode:
            skip("the commits of the results are not in this checkout (shallow, or no git)")
    folder = tmp_path_factory.mktemp("dashboard")
    config = json.loads((SUITE / "asv.conf.json").read_text())
    # a checkout of CI may have no branch of that name
    config |= {"repo": str(ROOT), "branches": ["HEAD"], "benchmark_dir": str(SUITE / "benchmarks")}
    config |= {"results_dir": str(RESULTS), "html_dir": str(folder / "html"), "env_dir": str(folder / "env")}
    (folder / "asv.conf.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "asv", "publish", "--config", str(folder / "asv.conf.json")]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        # the plug-in lies beside the tracked configuration
        env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(SUITE)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checked = offline.make_offline(folder / "html")
    # the browser itself compares these with the hashes that asv wrote: they are the files of the network
    assert {"jquery-3.3.1.min.js", "bootstrap.min.js", "bootstrap.min.css", "md5.min.js"} <= set(checked)
    return folder / "html"


@pytest.fixture(scope="module")
def address(html):
    with serve(html) as found:
        yield found


@pytest.fixture(scope="module")
def browser(address):
    with chromium() as found:
        yield found


#: Number of data points of the plot in an element, and how many of them have ink where they belong.
_DRAWN = """
const holder = $(arguments[0]), plot = holder.data('plot');
if (!plot) return null;
const canvas = plot.getCanvas(), scale = canvas.width / holder.width();
const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
const pixels = copy.getContext('2d', {willReadFrequently: true});
pixels.drawImage(canvas, 0, 0);
const colours = plot.getData().map(s => $.color.parse(s.color).toString().match(/\\d+/g).map(Number));
let points = 0, inked = 0;
for (const series of plot.getData()) for (const [x, y] of series.data) {
    if (y === null) continue;
    points++;
    const at = plot.pointOffset({x: x, y: y});
    const box = pixels.getImageData((at.left - 4) * scale, (at.top - 4) * scale, 9 * scale, 9 * scale).data;
    // any curve's colour: where curves meet, the last one drawn covers the others
    const hit = i => box[i + 3] > 100 && colours.some(
        ([r, g, b]) => Math.abs(box[i] - r) + Math.abs(box[i + 1] - g) + Math.abs(box[i + 2] - b) < 60);
    for (let i = 0; i < box.length; i += 4) if (hit(i)) { inked++; break; }
}
return {points: points, inked: inked, series: plot.getData().length};
"""


def drawn(browser, element: str, series: int = 1) -> dict:
    """What is drawn in an element, once it holds that many series (each is loaded by itself)."""
    from selenium.webdriver.support.ui import WebDriverWait

    def ready(b):
        found = b.execute_script(_DRAWN, element)
        return found if found and found["series"] >= series else None

    return WebDriverWait(browser, PATIENCE).until(ready)


@pytest.mark.browser
def test_grid_page_draws_one_machine_in_each_curve(browser, address):
    open_page(browser, address)
    for name in (RATIO, GMACS):
        found = drawn(browser, f"[id='summarygrid-{name}']")
        commits = {r["commit_hash"] for r in results() if r["params"]["machine"] == newest_machine(name)}
        assert found["points"] == found["inked"] == len(commits), (name, found)
    keep_picture(browser, "grid")
    no_complaints(browser)


MACHINES = sorted(p.parent.name for p in RESULTS.glob("*/machine.json"))


def newest_machine(name: str) -> str:
    """The machine of the newest commit that has a result; the commits of this repository lie on one line."""
    newest = max((r for r in results() if name in r["results"]), key=lambda r: r["date"])
    return newest["params"]["machine"]


#: The machines of the curves, and their number.
_OPENED = """
const plot = $('#main-graph').data('plot');
if (!plot || !plot.getData().length) return null;
const buttons = $('#graphdisplay-state-params .panel').first().find('.btn.active').toArray();
const active = buttons.map(b => b.textContent);
return {curves: plot.getData().length, machines: active, address: location.hash};
"""


@pytest.mark.browser
def test_a_graph_opens_with_one_machine_and_at_most_eight_curves(browser, address):
    from selenium.webdriver.support.ui import WebDriverWait

    names = {name for r in results() for name in r["results"]}
    for name in sorted(names):
        open_page(browser, f"{address}#{name}")
        WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(_OPENED))
        # each curve is loaded by itself: none may be missing or follow
        asked = (
            "return performance.getEntriesByType('resource').filter(e => e.name.includes('/graphs/')).length"
        )
        assert browser.execute_script(asked) == 1, name
        found = browser.execute_script(_OPENED)
        assert found["machines"] == [newest_machine(name)], (name, found)
        assert found["curves"] <= 8, (name, found)
    # the others are a click away, and stay when it shows all
    open_page(browser, f"{address}#{RATIO}")
    for machine in MACHINES:
        if machine != newest_machine(RATIO):
            press = (
                "$('#graphdisplay-state-params .btn')"
                ".filter((_, b) => b.textContent === arguments[0])[0].click()"
            )
            WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(_OPENED))
            browser.execute_script(press, machine)
    WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(_OPENED)["machines"] == MACHINES)
    no_complaints(browser)


@pytest.mark.browser
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", [RATIO, GMACS])
def test_graph_page_has_a_point_for_each_commit(browser, address, name, machine):
    stored = [
        r["results"][name] for r in results() if r["params"]["machine"] == machine and name in r["results"]
    ]
    kinds = math.prod(len(values) for values in stored[0][1])
    # asv draws at most eight curves unless the address says which
    chosen = zip(["p-n", "p-operands"], stored[0][1], strict=True)
    query = [("machine", machine), *((key, value) for key, values in chosen for value in values)]
    open_page(browser, f"{address}#{name}?{urllib.parse.urlencode(query)}")
    found = drawn(browser, "#main-graph", kinds)
    assert found["series"] == kinds
    assert found["points"] == found["inked"] == sum(v is not None and v == v for s in stored for v in s[0])
    assert found["points"] >= kinds * len(stored) > 0
    keep_picture(browser, f"{name}-{machine}")
    no_complaints(browser)


@pytest.mark.browser
def test_higher_is_better_is_never_called_a_regression(browser, address, html):
    open_page(browser, f"{address}#/regressions")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, PATIENCE).until(
        lambda b: b.execute_script("return $('#regressions-display').is(':visible')")
    )
    keep_picture(browser, "regressions")
    no_complaints(browser)
    rows = json.loads((html / "regressions.json").read_text())["regressions"]
    assert not [row[0] for row in rows if re.search("gmacs|share_of_peak|gbytes", row[0])]
    # a run that something disturbed does not belong into the tracked results: one was listed as 47.66 times
    # slower
    slower = {row[0]: after / before for row in rows for _, _, before, after in row[6]}
    assert not {name: factor for name, factor in slower.items() if factor > 2}
