"""`python -m lowgemm explain MxKxN`: kernel, tile, blocking and threads of a product."""

from __future__ import annotations

import argparse

import numpy as np

import lowgemm
from lowgemm.cli.shapes import parse_product


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "shape", type=parse_product, help="MxKxN, such as 1024x512x1024; N is a cube, BxMxKxN a batch"
    )
    parser.add_argument("--lhs", choices=["uint8", "int8"], default="uint8")
    parser.add_argument("--rhs", choices=["uint8", "int8"], default="int8")
    parser.add_argument("--threads", type=int, default=None)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    *batch, m, k, n = args.shape
    lhs, rhs = np.zeros((*batch, m, k), args.lhs), np.zeros((*batch, k, n), args.rhs)
    print(lowgemm.explain(lhs, rhs, num_threads=args.threads))
    return 0
