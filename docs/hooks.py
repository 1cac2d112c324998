"""MkDocs hooks: the order of the pages, and links from a page to a file of the repository."""

from __future__ import annotations

import pathlib
import re
from typing import Any

#: The pages by group: the user's first, the engine's after. A page that is not there (yet) is left out.
GROUPS = {
    "Start": [
        ("Overview", "index.md"),
        ("Tutorial", "tutorial.md"),
        ("Glossary", "glossary.md"),
    ],
    "User's guide": [
        ("Quantization", "quantization.md"),
        ("Output", "output.md"),
        ("Convolutions", "convolution.md"),
        ("Networks", "networks.md"),
        ("ONNX models", "onnx.md"),
        ("Block-wise formats", "blockwise.md"),
        ("Arrays of other libraries", "interop.md"),
        ("Inside compiled code", "embedding.md"),
        ("Threads and machines", "scaling.md"),
        ("Performance", "performance.md"),
        ("Reliability", "reliability.md"),
        ("Platforms", "platforms.md"),
    ],
    "How it works": [
        ("Low-precision arithmetic", "arithmetic.md"),
        ("Packing", "packing.md"),
        ("Kernels", "kernels.md"),
        ("Blocking", "blocking.md"),
    ],
    "Extending it": [
        ("The code, room by room", "rooms.md"),
        ("Adding a stage", "stages.md"),
        ("Adding a kernel", "porting.md"),
    ],
    "Records": [
        ("Accuracy of networks", "network_accuracy.md"),
        ("Lab diary", "diary.md"),
    ],
    "API reference": [
        ("lowgemm", "api/index.md"),
        ("lowgemm.quantization", "api/quantization.md"),
        ("lowgemm.nn", "api/nn.md"),
        ("lowgemm.onnx_run", "api/onnx_run.md"),
        ("lowgemm.blockwise", "api/blockwise.md"),
        ("lowgemm.fixedpoint", "api/fixedpoint.md"),
        ("lowgemm.compat", "api/compat.md"),
        ("lowgemm.dask", "api/dask.md"),
        ("lowgemm.kernels", "api/kernels.md"),
    ],
}


def on_config(config: Any) -> Any:
    """Make the navigation."""
    docs = pathlib.Path(config["docs_dir"])
    there = {group: [{t: p} for t, p in pages if (docs / p).exists()] for group, pages in GROUPS.items()}
    config["nav"] = [{group: pages} for group, pages in there.items() if pages]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files beside docs/ work in a checkout, not on the site: leave their text, and the path as
    code.

    A page of `docs/api/` links with ``../`` to the guides, which are on the site.
    """
    if "/" in page.file.src_uri:
        return markdown
    return re.sub(
        r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)",
        lambda m: m[1] if m[2] in m[1] else f"{m[1]} (`{m[2]}`)",
        markdown,
    )
