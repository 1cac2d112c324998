"""The picture of docs/blockwise.md: values of the code books over their index, into docs/img/codebooks.png.

python docs/plots/codebooks.py
"""

from __future__ import annotations

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lowgemm.blockwise import as_codebook


def main() -> None:
    """Draw and save."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), constrained_layout=True)
    for name, style in (("dynamic", "-"), ("linear", "--"), ("fp8_e4m3", ":")):
        axes[0].plot(as_codebook(name).values, style, label=name)
    axes[0].set(title="signed 8-bit codes", xlabel="code", ylabel="value")
    for name, style in (("dynamic_unsigned", "-"), ("linear_unsigned", "--")):
        axes[1].semilogy(as_codebook(name).values, style, label=name)
    axes[1].set(title="unsigned 8-bit codes, log scale", xlabel="code")
    for name, mark in (("nf4", "o"), ("fp4", "s"), ("int4", "^")):
        axes[2].plot(np.sort(as_codebook(name).values), mark, label=name, markersize=4)
    axes[2].set(title="4-bit codes, values in order", xlabel="rank")
    for a in axes:
        a.legend()
        a.grid(alpha=0.3)
    figure.savefig(pathlib.Path(__file__).parents[1] / "img" / "codebooks.png", dpi=110)


if __name__ == "__main__":
    main()
