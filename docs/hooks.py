"""MkDocs hooks: the order of the pages, and links from a page to a file of the repository."""

from __future__ import annotations

import pathlib
import re
from typing import Any

#: In the order of the data flow. A page that is not there (yet) is left out.
PAGES = [
    ("Start", "index.md"),
    ("Tutorial", "tutorial.md"),
    ("Low-precision arithmetic", "arithmetic.md"),
    ("Packing", "packing.md"),
    ("Kernels", "kernels.md"),
    ("Blocking", "blocking.md"),
    ("Output", "output.md"),
    ("Adding a stage", "stages.md"),
    ("Quantization", "quantization.md"),
    ("Block-wise formats", "blockwise.md"),
    ("Networks", "networks.md"),
    ("ONNX models", "onnx.md"),
    ("Arrays of other libraries", "interop.md"),
    ("Inside compiled code", "embedding.md"),
    ("Beyond one machine", "scaling.md"),
    ("Reliability", "reliability.md"),
    ("Performance", "performance.md"),
    ("Adding a kernel", "porting.md"),
    ("Glossary", "glossary.md"),
    ("API reference", "api/index.md"),
    ("lowgemm.quantization", "api/quantization.md"),
    ("lowgemm.nn", "api/nn.md"),
    ("lowgemm.blockwise", "api/blockwise.md"),
    ("lowgemm.fixedpoint", "api/fixedpoint.md"),
    ("lowgemm.compat", "api/compat.md"),
    ("lowgemm.dask", "api/dask.md"),
    ("lowgemm.onnx_run", "api/onnx_run.md"),
    ("lowgemm.kernels", "api/kernels.md"),
]


def on_config(config: Any) -> Any:
    """Make the navigation."""
    docs = pathlib.Path(config["docs_dir"])
    config["nav"] = [{title: page} for title, page in PAGES if (docs / page).exists()]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files beside docs/ work in a checkout, not on the site: leave their text, and the path as code."""
    return re.sub(
        r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)",
        lambda m: m[1] if m[2] in m[1] else f"{m[1]} (`{m[2]}`)",
        markdown,
    )
