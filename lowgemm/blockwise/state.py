"""The state of one parameter tensor: codes and scales, or float32 for a small one; and checks of what users pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowgemm.blockwise import coding
from lowgemm.blockwise.codebook import as_codebook
from lowgemm.blockwise.coded import FLOATS, BlockwiseArray


class TensorState:
    """States of one tensor, all zero at first.

    Parameters
    ----------
    shape : tuple of int
    wide : bool
        Whether they are float32 rather than codes.
    blocksize : int
    books : sequence of (str, str)
        Name and code book of each.

    Examples
    --------
    >>> state = TensorState((10, 30), False, 256, (("m", "dynamic"),))
    >>> print(state.nbytes, state.decoded()["m"].shape)
    308 (10, 30)
    """

    def __init__(
        self, shape: tuple[int, ...], wide: bool, blocksize: int, books: Sequence[tuple[str, str]]
    ) -> None:
        self.shape, self.wide, self.blocksize = shape, wide, blocksize
        self.names = [name for name, _ in books]
        self.books = [as_codebook(book) for _, book in books]
        size = int(np.prod(shape, dtype=np.int64))
        if wide:
            self.values = [np.zeros(size, dtype=np.float32) for _ in books]
            self.scales = []
        else:
            self.values = [np.full(size, book.zero_code, dtype=np.uint8) for book in self.books]
            self.scales = [np.zeros(-(-size // blocksize), dtype=np.float32) for _ in books]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (*self.values, *self.scales))

    def decoded_flat(self) -> list[np.ndarray]:
        """Each state as float32 vector."""
        if self.wide:
            return self.values
        return [
            coding.dequantize_blockwise(BlockwiseArray(v, s, self.blocksize, book, v.shape))
            for v, s, book in zip(self.values, self.scales, self.books, strict=True)
        ]

    def decoded(self) -> dict[str, np.ndarray]:
        """Name of each state to a float32 array of the tensor's shape."""
        flat = self.decoded_flat()
        return {name: v.reshape(self.shape).copy() for name, v in zip(self.names, flat, strict=True)}

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by the names that files use."""
        if self.wide:
            return {f"{name}": v.reshape(self.shape) for name, v in zip(self.names, self.values, strict=True)}
        found = {}
        for name, v, s in zip(self.names, self.values, self.scales, strict=True):
            found[f"{name}/codes"], found[f"{name}/scales"] = v.reshape(self.shape), s
        return found

    def checked(self, index: int, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Our arrays out of a state dictionary; ValueError if one is missing or not as it should be."""
        found = {}
        for key, own in self.arrays().items():
            name, got = f"{index}/{key}", state.get(f"{index}/{key}")
            if not isinstance(got, np.ndarray):
                raise ValueError(f"state: expected an entry {name!r} ({own.dtype}, shape {own.shape})")
            if got.dtype != own.dtype or got.shape != own.shape:
                raise ValueError(
                    f"state: expected {name!r} of {own.dtype}, shape {own.shape}, got {got.dtype}, shape {got.shape}"
                )
            if got.dtype == np.float32 and not np.isfinite(got).all():
                raise ValueError(f"state: expected finite numbers in {name!r}")
            unsigned = key.endswith("/scales") or (
                self.wide and self.books[self.names.index(key)].values.min() >= 0
            )
            if unsigned and (got < 0).any():
                raise ValueError(f"state: expected no negative numbers in {name!r}")
            found[key] = got
        return found

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy arrays that were `checked`."""
        for key, own in self.arrays().items():
            own[...] = arrays[key]


def check_parameters(params: Any) -> list[np.ndarray]:
    """`params` as a list of arrays that can be changed in place and do not overlap."""
    if isinstance(params, np.ndarray):
        params = [params]
    if not isinstance(params, Sequence) or isinstance(params, (str, bytes)):
        raise TypeError(f"params: expected an array or a sequence of arrays, got {type(params).__name__}")
    if not params:
        raise ValueError("params: expected at least one array")
    for i, p in enumerate(params):
        if not isinstance(p, np.ndarray) or isinstance(p, np.ma.MaskedArray):
            raise TypeError(f"params[{i}]: expected a NumPy array, got {type(p).__name__}")
        if p.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
            raise TypeError(f"params[{i}]: expected float32 or float16, got {p.dtype.str}")
        if not p.flags.writeable:
            raise ValueError(f"params[{i}]: expected a writable array")
    for i, p in enumerate(params):
        for j in range(i):
            if np.may_share_memory(p, params[j]) and np.shares_memory(p, params[j]):
                raise ValueError(f"params[{i}]: expected no overlap with params[{j}]")
    return list(params)


def gradient_of(g: Any, p: np.ndarray, index: int) -> np.ndarray | None:
    """A gradient as float32 vector in C order that does not overlap the parameter."""
    if g is None:
        return None
    if not isinstance(g, np.ndarray) or g.dtype.newbyteorder("=") not in FLOATS:
        got = getattr(g, "dtype", type(g).__name__)
        raise TypeError(f"grads[{index}]: expected an array of float32, float64 or float16, got {got}")
    if g.shape != p.shape:
        raise ValueError(f"grads[{index}]: expected shape {p.shape}, got {g.shape}")
    with np.errstate(over="ignore"):  # refused as infinity
        flat = np.ascontiguousarray(g, dtype=np.float32).reshape(-1)
    return flat.copy() if not flat.flags.aligned or np.may_share_memory(flat, p) else flat
