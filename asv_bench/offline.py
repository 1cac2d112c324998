"""Make a published dashboard load nothing from the network.

Run as ``python asv_bench/offline.py [HTML_DIR]`` after ``asv publish``. asv's page names jQuery, flot and
Bootstrap by addresses of content networks; here those files come from ``npm install --prefix asv_bench``
instead. Where asv gives a file's hash and the copy has it, the hash stays in the page and the browser checks
it.
"""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re
import shutil
import sys

HERE = pathlib.Path(__file__).resolve().parent
#: asv's file: (package, its file). The npm packages of flot and stupidtable have no minified file of asv's
#: version.
FILES = {
    "jquery-3.3.1.min.js": ("jquery", "dist/jquery.min.js"),
    "jquery.flot.min.js": ("flot", "jquery.flot.js"),
    "jquery.flot.time.min.js": ("flot", "jquery.flot.time.js"),
    "jquery.flot.selection.min.js": ("flot", "jquery.flot.selection.js"),
    "jquery.flot.categories.min.js": ("flot", "jquery.flot.categories.js"),
    "jquery.flot.orderBars.js": ("flot-orderbars", "js/jquery.flot.orderBars.js"),
    "stupidtable.min.js": ("stupid-table-plugin", "stupidtable.min.js"),
    "md5.min.js": ("blueimp-md5", "js/md5.min.js"),
    "bootstrap.min.js": ("bootstrap", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": ("bootstrap", "dist/css/bootstrap.min.css"),
}
_ADDRESS = re.compile(r'(?P<attribute>src|href)="https://[^"]*/(?P<name>[^"/]+\.(?:js|css))"(?P<rest>[^>]*)')
_INTEGRITY = re.compile(r'\s*integrity="(?P<kind>sha\d+)-(?P<digest>[^"]+)"')


def missing(modules: pathlib.Path = HERE / "node_modules") -> list[str]:
    """Files that npm has not installed."""
    return [f"{p}/{f}" for p, f in FILES.values() if not (modules / p / f).is_file()]


def make_offline(html: pathlib.Path, modules: pathlib.Path = HERE / "node_modules") -> list[str]:
    """Change `html`/index.html; returns the names of the files whose hash the browser will still check.

    Raises
    ------
    ValueError
        If the page loads a file that is not known here (another version of asv).
    """
    checked = []

    def local(found: re.Match[str]) -> str:
        if found["name"] not in FILES:
            raise ValueError(f"index.html loads {found['name']}, which offline.py does not know")
        package, file = FILES[found["name"]]
        copy = pathlib.Path("vendor", package, file)
        (html / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(modules / package / file, html / copy)
        rest, given = found["rest"], _INTEGRITY.search(found["rest"])
        if given:
            digest = hashlib.new(given["kind"], (html / copy).read_bytes()).digest()
            if base64.b64encode(digest).decode() == given["digest"]:
                checked.append(found["name"])
            else:
                rest = _INTEGRITY.sub("", rest)
        return f'{found["attribute"]}="{copy.as_posix()}"{rest}'

    page = html / "index.html"
    page.write_text(_ADDRESS.sub(local, page.read_text()))
    fonts = modules / "bootstrap" / "dist" / "fonts"  # its style sheet refers to them
    shutil.copytree(fonts, html / "vendor" / "bootstrap" / "dist" / "fonts", dirs_exist_ok=True)
    return checked


if __name__ == "__main__":
    make_offline(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "html"))
