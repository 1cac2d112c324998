"""Golden cases of `tests/data/blockwise`; its README defines them."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from lowgemm.blockwise import codebooks

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "blockwise"


@functools.cache
def manifest() -> dict[str, Any]:
    """The manifest."""
    return json.loads((FOLDER / "manifest.json").read_text())


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as z:
        return {key: z[key] for key in z.files}


def made(name: str) -> np.ndarray:
    """The table of this name in `codebooks.npz`, made from its definition."""
    kind, *rest = name.split("_")
    if kind in ("nf4", "fp4", "af4"):
        return {"nf4": codebooks.normal_float4, "fp4": codebooks.float4, "af4": codebooks.abnormal_float4}[
            kind
        ]()
    if kind == "fp":
        (sign, exponent, _), bits = rest[0].replace("e", " ").replace("m", " ").split(" "), int(rest[1][4:])
        return codebooks.floating(bits, int(exponent), sign == "s")
    signed = rest.pop(0) == "signed"
    if kind == "dynamic":
        options = {}
        for word in rest:
            if word.startswith("bits"):
                options["bits"] = int(word[4:])
            else:
                options["exponent_levels"] = int(word[3:])
        return codebooks.dynamic_tree(signed, **options)
    assert kind == "linear"
    bits = next((int(word[4:]) for word in rest if word.startswith("bits")), 8)
    return codebooks.linear(signed, bits, "nozero" not in rest)


def digest(values: np.ndarray) -> str:
    """What the manifest holds of long float32 results."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()
