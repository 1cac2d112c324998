"""The documentation site builds without a warning, says all that is public, and works in a real browser."""

from __future__ import annotations

import html.parser
import importlib
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
from browsing import chromium, keep_picture, no_complaints, open_page, serve
from patience import PATIENCE

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ("mkdocs", "material", "mkdocstrings_handlers")
PUBLIC = [
    "lowgemm", "lowgemm.quantization", "lowgemm.nn", "lowgemm.blockwise", "lowgemm.fixedpoint",
    "lowgemm.compat.gemmlowp", "lowgemm.compat.onnx", "lowgemm.dask", "lowgemm.onnx_run", "lowgemm.kernels",
]  # fmt: skip
FILE = re.compile(r"`((?:lowgemm|kernels|tests|examples|docs|asv_bench)/[\w/.-]+\.\w+)`")
pytestmark = pytest.mark.docs


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[k] for k in ("id", "name") if attributes.get(k)}
        self.links += [attributes[k] for k in ("href", "src") if attributes.get(k)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra 'docs' is not installed ({', '.join(missing)})")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[pathlib.Path, Page]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Page()
        found[path].feed(path.read_text())
    return found


def test_links_lead_somewhere(site, pages):
    assert len(pages) > 10
    broken = []
    for path, page in pages.items():
        for link in page.links if path.name != "404.html" else []:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc or link.startswith("data:"):
                continue
            target = path if not url.path else (path.parent / urllib.parse.unquote(url.path)).resolve()
            if target.is_dir():
                target = target / "index.html"
            known = pages[target].ids if target in pages else {url.fragment}
            # fragments that begin with "__" are made by the theme's script
            lost = (
                url.fragment
                and not url.fragment.startswith("__")
                and urllib.parse.unquote(url.fragment) not in known
            )
            if not target.exists() or lost:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken


def test_every_page_is_in_the_navigation(site, pages):
    """A page that docs/hooks.py does not list is built, but nobody finds it."""
    start = pages[site / "index.html"].links
    linked = {(site / urllib.parse.urlsplit(link).path).resolve() for link in start}
    lost = [p for p in (ROOT / "docs").rglob("*.md") if page_of(site, p).parent not in linked | {site}]
    assert not lost, lost


def test_files_that_pages_name_are_there():
    pages = [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "lowgemm" / "kernels" / "README.md",
        ROOT / "asv_bench" / "README.md",
    ]
    named = [(page, name) for page in pages for name in FILE.findall(page.read_text())]
    assert len(named) > 30
    lost = [(str(page.relative_to(ROOT)), name) for page, name in named if not (ROOT / name).exists()]
    assert not lost, lost


def page_of(site: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    name = source.relative_to(ROOT / "docs").with_suffix("")
    return site / (name.parent if name.name == "index" else name) / "index.html"


def public_names(module) -> list[str]:
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    return [n for n in getattr(module, "__all__", own) if not n.startswith("_")]


@pytest.mark.parametrize("module", PUBLIC)
def test_reference_has_every_public_name(pages, module):
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.skip(str(error))
    ids = set().union(*(page.ids for path, page in pages.items() if "api" in path.parts))
    lost = []
    for name in public_names(found):
        value = getattr(found, name)
        where = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        names = {f"{module}.{name}", where, value.__name__ if inspect.ismodule(value) else where}
        if not names & ids:
            lost.append(name)
    assert not lost, lost


@pytest.mark.browser
def test_every_page_in_a_browser(site, pages):
    """No page logs an error, every picture has its pixels, and headings that the navigation names are
    there.
    """
    with serve(site) as address, chromium() as browser:
        for path in sorted(pages):
            if path.name == "404.html":
                continue
            where = path.parent.relative_to(site)
            open_page(browser, address + f"{where}/" * (where != pathlib.Path()))
            assert browser.execute_script("return document.querySelectorAll('article h1').length") == 1, where
            pictures = browser.execute_script(
                "return [...document.images].map(i => [i.src, i.complete && i.naturalWidth > 0])"
            )
            assert all(drawn for _, drawn in pictures), pictures
            keep_picture(browser, f"docs-{where}".replace("/", "-"))
            no_complaints(browser)


#: What sticks out of the page's width and cannot be scrolled to: tables and code scroll by themselves.
STICKING_OUT = """
const width = document.documentElement.clientWidth;
const found = document.documentElement.scrollWidth > width ? ["the page itself"] : [];
for (const e of document.querySelectorAll("article *")) {
  const box = e.getBoundingClientRect();
  if ((box.right > width + 1 || box.left < -1) && !e.closest(".md-typeset__scrollwrap, pre"))
    found.push(e.tagName + " " + e.textContent.trim().slice(0, 40));
}
return found;
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1366, 390], ids=["laptop", "phone"])
def test_nothing_is_cut(site, pages, width):
    """At a laptop's and at a phone's width."""
    with serve(site) as address, chromium() as browser:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for path in sorted(pages):
            where = path.parent.relative_to(site)
            if path.name == "404.html":
                continue
            open_page(browser, address + f"{where}/" * (where != pathlib.Path()))
            assert browser.execute_script("return window.innerWidth") == width
            assert not browser.execute_script(STICKING_OUT), where
            keep_picture(browser, f"docs-{width}-{where}".replace("/", "-"))
