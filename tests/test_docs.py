"""The documentation site builds without a warning, and its internal links lead somewhere."""

from __future__ import annotations

import html.parser
import importlib.util
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ("mkdocs", "material", "mkdocstrings_handlers")


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[k] for k in ("id", "name") if attributes.get(k)}
        self.links += [attributes[k] for k in ("href", "src") if attributes.get(k)]


@pytest.mark.docs
def test_site_builds_and_links_lead_somewhere(tmp_path):
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra 'docs' is not installed ({', '.join(missing)})")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {}
    for path in tmp_path.rglob("*.html"):
        pages[path] = Page()
        pages[path].feed(path.read_text())
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
                broken.append(f"{path.relative_to(tmp_path)}: {link}")
    assert not broken, broken
