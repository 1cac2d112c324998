"""`gemm` on Dask arrays: matrices in chunks, over threads, processes or machines, with the bits of one `gemm`
call.

    chunks of lhs ---------\\
                            gemm -> int32 partial product -> exact sum over depth -> output stages, once
    chunks of rhs -> pack --/

A chunk of the rhs is a task of its own that packs it. A worker that needs the chunk gets it sent and keeps it
packed, so it is packed once on each worker that uses it. Needs the package ``dask`` (``pip install
lowgemm[dask]``).

Next file to open: `requantize.py`, what happens to the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import lowgemm
from lowgemm.checks.arguments import as_num_threads, as_zero_point
from lowgemm.checks.values import INT32_MAX, INT32_MIN, choice
from lowgemm.engine.overflow_check import largest_distance, leading_bias
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.output.base import Stage, items_of
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages import Custom

try:
    import dask.array as da
    from dask.base import normalize_token, tokenize
    from dask.highlevelgraph import HighLevelGraph
    from dask.sizeof import sizeof
except ImportError:
    raise ImportError("lowgemm.dask needs the package dask: pip install lowgemm[dask]") from None

__all__ = ["gemm"]

#: Depth chunks that one task multiplies and adds up. Their 8-bit chunks are a quarter of the size of the
#: int32 sums that would travel between workers if each product were a task of its own (measured in
#: docs/scaling.md).
FAN_IN = 8

sizeof.register(PackedRhs)(lambda w: w.nbytes)
normalize_token.register(PackedRhs)(lambda w: ("PackedRhs", normalize_token(w.to_array())))


def gemm(
    lhs: ArrayLike,
    rhs: ArrayLike | PackedRhs,
    *,
    lhs_zero_point: ArrayLike = 0,
    rhs_zero_point: ArrayLike = 0,
    output: Stage | Sequence[Stage] | None = None,
    overflow: str = "raise",
    num_threads: int = 1,
) -> da.Array:
    """Multiply matrices in chunks, lazily, with the bits of one `lowgemm.gemm` call whatever the chunks.

    Parameters
    ----------
    lhs : dask.array.Array or array_like of uint8 or int8, shape (m, depth)
        Chunked along any dimension.
    rhs : dask.array.Array, PackedRhs or array_like of uint8 or int8, shape (depth, n)
        Chunked along any dimension. Where the depth chunks differ, both are split at the other's borders. A
        `PackedRhs` is one chunk and stays packed, so the depth of `lhs` is not split either; a worker in
        another process gets the plain matrix and packs it once.
    lhs_zero_point, rhs_zero_point, output
        As in `lowgemm.gemm`; held in memory as they are. `output` takes no `lowgemm.Custom` stage, which may
        depend on the row and column.
    overflow : {"raise", "wrap"}
        "raise" adds partial products up in int64 and raises OverflowError from ``compute()`` if a sum, or a
        sum and the biases that `output` begins with, does not fit int32 (or if a chunk's own sums might not;
        chunks of a depth up to 33,025 without zero points always fit). "wrap" gives sums modulo 2**32. The
        default is not that of `lowgemm.gemm`: matrices that need chunks are deep.
    num_threads : int
        Threads of each chunk's product. Dask runs many of them at once, so the default is 1.

    Returns
    -------
    dask.array.Array, shape (m, n)
        Row chunks of `lhs`, column chunks of `rhs`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.
    OverflowError
        From ``compute()``, with ``overflow="raise"``.

    Examples
    --------
    >>> import numpy as np, lowgemm.dask, dask.array as da
    >>> lhs = da.from_array(np.full((4, 6), 200, np.uint8), chunks=(2, 3))
    >>> rhs = da.from_array(np.full((6, 2), -100, np.int8), chunks=(2, 2))
    >>> lowgemm.dask.gemm(lhs, rhs, lhs_zero_point=100).compute(scheduler="synchronous")[0]
    array([-60000, -60000], dtype=int32)
    """
    a, b = _operand(lhs, "lhs"), _packed(rhs) if isinstance(rhs, PackedRhs) else _operand(rhs, "rhs")
    (m, depth), (rhs_depth, n) = a.shape, b.shape
    if depth != rhs_depth:
        raise ValueError(f"rhs: expected depth {depth} to match lhs, got {rhs_depth}")
    row_zero = as_zero_point(lhs_zero_point, "lhs_zero_point", m, "lhs row")
    col_zero = as_zero_point(rhs_zero_point, "rhs_zero_point", n, "rhs column")
    stages, dtype = check_pipeline(output, m, n)
    if any(isinstance(stage, Custom) for stage in stages):
        raise ValueError("output: a Custom stage may depend on row and column, which chunks do not know")
    overflow = choice(overflow, "overflow", ("wrap", "raise"))
    threads = as_num_threads(num_threads)

    whole = isinstance(b, PackedRhs)
    if whole:
        a = a.rechunk({1: -1})
        rows, depths, cols = a.chunks[0], a.chunks[1], (n,)
    else:
        a, b = _same_depth_chunks(a, b)
        rows, depths, cols = a.chunks[0], a.chunks[1], b.chunks[1]
    name = "lowgemm-" + tokenize(
        a.name,
        b if whole else b.name,
        row_zero,
        col_zero,
        [(type(s).__name__, items_of(s)) for s in stages],
        overflow,
        threads,
    )
    graph: dict[Any, Any] = {}
    packed, partial, added = f"pack-{name}", f"partial-{name}", f"add-{name}"
    for k in range(len(depths)):
        for j in range(len(cols)):
            graph[packed, k, j] = b if whole else (lowgemm.pack_rhs, (b.name, k, j))
    for i, row_at in _blocks(rows):
        for j, col_at in _blocks(cols):
            keys: list[Any] = []
            for g in range(0, len(depths), FAN_IN):
                ks = range(g, min(g + FAN_IN, len(depths)))
                key = (partial, i, j, g)
                graph[key] = (
                    _partial, [(a.name, i, k) for k in ks], [(packed, k, j) for k in ks],
                    _part(row_zero, row_at), _part(col_zero, col_at), overflow, threads,
                )  # fmt: skip
                keys.append(key)
            level = 0
            while len(keys) > FAN_IN:
                groups = [keys[at : at + FAN_IN] for at in range(0, len(keys), FAN_IN)]
                keys = []
                for g, group in enumerate(groups):
                    key = (added, i, j, level, g)
                    graph[key] = (_add, group, overflow)
                    keys.append(key)
                level += 1
            own_stages = tuple(_stage_part(stage, row_at, col_at) for stage in stages)
            graph[name, i, j] = (_finish, keys, overflow, _Stages(own_stages))
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[a] if whole else [a, b])
    return da.Array(layers, name, chunks=(rows, cols), dtype=dtype)


@dataclasses.dataclass(frozen=True)
class _Stages:
    """Output stages of a chunk, as one thing that Dask does not look into."""

    stages: tuple[Any, ...]


def _operand(value: Any, name: str) -> da.Array:
    if not isinstance(value, da.Array):
        array = lowgemm.checks.arguments.as_operand(value, name)  # type: ignore[attr-defined]
        value = da.from_array(array, chunks=-1) if array.ndim == 2 else array
    if value.dtype != np.uint8 and value.dtype != np.int8:
        raise TypeError(f"{name}: expected dtype uint8 or int8, got {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"{name}: expected a matrix, got {value.ndim} dimensions")
    if any(np.isnan(size) for size in value.shape):
        raise ValueError(f"{name}: expected known chunk sizes (call compute_chunk_sizes first)")
    return value


def _packed(rhs: PackedRhs) -> PackedRhs:
    if rhs.ndim != 2:
        raise ValueError(f"rhs: expected a matrix, got a PackedRhs of {rhs.ndim} dimensions")
    return rhs


def _same_depth_chunks(a: da.Array, b: da.Array) -> tuple[da.Array, da.Array]:
    """Both with the depth split at the borders of either."""
    if a.chunks[1] == b.chunks[0]:
        return a, b
    if a.shape[1] == 0:  # Dask's `rechunk` may leave the chunks of an empty array as they are
        return (
            da.zeros(a.shape, dtype=a.dtype, chunks=(a.chunks[0], (0,))),
            da.zeros(b.shape, dtype=b.dtype, chunks=((0,), b.chunks[1])),
        )
    ends = sorted({*np.cumsum(a.chunks[1]).tolist(), *np.cumsum(b.chunks[0]).tolist()})
    sizes = tuple(np.diff([0, *ends]).tolist())
    return a.rechunk({1: sizes}), b.rechunk({0: sizes})


def _blocks(sizes: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    start = 0
    for i, size in enumerate(sizes):
        yield i, slice(start, start + size)
        start += size


def _part(value: Any, at: slice) -> Any:
    return value[at] if isinstance(value, np.ndarray) and value.ndim == 1 else value


def _stage_part(stage: Any, rows: slice, cols: slice) -> Any:
    """A stage for one chunk of the result: its vectors cut to the chunk's rows or columns."""
    at = (rows, cols)
    cut = {f: _part(getattr(stage, f), at[stage.axis_of_field(f)]) for f in stage.channel_fields}
    cut = {f: v for f, v in cut.items() if v is not getattr(stage, f)}
    return dataclasses.replace(stage, **cut) if cut else stage


def _partial(
    lhs: list[np.ndarray], rhs: list[PackedRhs], lhs_zero: Any, rhs_zero: Any, overflow: str, threads: int
) -> np.ndarray:
    """Sum of the products of some depth chunks: int32 if it certainly fits (or may wrap), else int64."""
    zeros = {"lhs_zero_point": lhs_zero, "rhs_zero_point": rhs_zero, "num_threads": threads}
    worst = sum(a.shape[1] for a in lhs)
    for dtype, zero in ((lhs[0].dtype, lhs_zero), (rhs[0].dtype, rhs_zero)):
        worst *= largest_distance(np.iinfo(dtype).min, np.iinfo(dtype).max, zero)
    if overflow == "wrap" or worst <= INT32_MAX or len(lhs) == 1:
        total = lowgemm.gemm(lhs[0], rhs[0], overflow=overflow, **zeros)
        for a, b in zip(lhs[1:], rhs[1:], strict=True):
            lowgemm.gemm(a, b, out=total, accumulate=True, **zeros)
        return total
    wide = np.zeros((lhs[0].shape[0], rhs[0].shape[1]), np.int64)
    for a, b in zip(lhs, rhs, strict=True):
        wide += lowgemm.gemm(a, b, overflow=overflow, **zeros)
    return wide


def _add(parts: list[np.ndarray], overflow: str) -> np.ndarray:
    """Sum of partial products. It never changes its inputs: Dask may need them again when a worker dies."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0].astype(np.int64 if overflow == "raise" else np.int32)  # a copy
    for part in parts[1:]:
        total += part
    return total


def _require_int32(sums: np.ndarray) -> None:
    if sums.size and (int(sums.min()) < INT32_MIN or int(sums.max()) > INT32_MAX):
        raise OverflowError("lhs, rhs: a sum passes the int32 range (overflow='wrap' gives it modulo 2**32)")


def _finish(parts: list[np.ndarray], overflow: str, output: _Stages) -> np.ndarray:
    total = _add(parts, overflow)
    if overflow == "raise":
        _require_int32(total)
        bias = leading_bias(output.stages)
        if bias is not None:
            _require_int32(total.astype(np.int64) + bias)
    total = total.astype(np.int32, copy=False)
    return lowgemm.requantize(total, list(output.stages)) if output.stages else total
