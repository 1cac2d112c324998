"""The state of one parameter tensor: codes and scales, or float32 for a small one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.blockwise import coding
from lowgemm.blockwise.codebook import as_codebook
from lowgemm.blockwise.coded import BlockwiseArray

#: Most steps that a loaded state may have counted. It is more than any training has, and int64 can count on
#: from it.
MOST_STEPS = 2**62


class StateKind(NamedTuple):
    """One thing that an optimizer remembers of each element: its name and its code book.

    `squares` says whether it sums up squares. The step takes roots of these, so they are never negative, even
    if the book has a sign.

    Examples
    --------
    >>> StateKind("m", "dynamic").squares
    False
    """

    name: str
    book: str
    squares: bool = False


class TensorState:
    """States of one tensor, all zero at first.

    Parameters
    ----------
    shape : tuple of int
    wide : bool
        Whether they are float32 rather than codes.
    blocksize : int
    kinds : sequence of StateKind

    Examples
    --------
    >>> state = TensorState((10, 30), False, 256, (StateKind("m", "dynamic"),))
    >>> print(state.nbytes, state.decoded()["m"].shape)
    308 (10, 30)
    """

    def __init__(
        self, shape: tuple[int, ...], wide: bool, blocksize: int, kinds: Sequence[StateKind]
    ) -> None:
        self.shape, self.wide, self.blocksize, self.kinds = shape, wide, blocksize, tuple(kinds)
        self.books = [as_codebook(kind.book) for kind in kinds]
        size = int(np.prod(shape, dtype=np.int64))
        if wide:
            self.values = [np.zeros(size, dtype=np.float32) for _ in kinds]
            self.scales = []
        else:
            self.values = [np.full(size, book.zero_code, dtype=np.uint8) for book in self.books]
            self.scales = [np.zeros(-(-size // blocksize), dtype=np.float32) for _ in kinds]

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
        return {k.name: v.reshape(self.shape).copy() for k, v in zip(self.kinds, flat, strict=True)}

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by the names that files use."""
        if self.wide:
            return {k.name: v.reshape(self.shape) for k, v in zip(self.kinds, self.values, strict=True)}
        found = {}
        for k, v, s in zip(self.kinds, self.values, self.scales, strict=True):
            found[f"{k.name}/codes"], found[f"{k.name}/scales"] = v.reshape(self.shape), s
        return found

    def checked(self, index: int, state: Mapping[str, Any]) -> TensorState:
        """A state like this one out of a state dictionary; ValueError if something is missing or wrong.

        The dictionary may have codes where this state is float32, and the other way round: it is coded or
        decoded then.
        """
        wide = f"{index}/{self.kinds[0].name}" in state
        if not wide and f"{index}/{self.kinds[0].name}/codes" not in state:
            wide = self.wide  # for the message
        given = TensorState(self.shape, wide, self.blocksize, self.kinds)
        for key, own in given.arrays().items():
            name, got = f"{index}/{key}", state.get(f"{index}/{key}")
            if not isinstance(got, np.ndarray):
                raise ValueError(f"state: expected an entry {name!r} ({own.dtype}, shape {own.shape})")
            if got.dtype != own.dtype or got.shape != own.shape:
                raise ValueError(
                    f"state: expected {name!r} of {own.dtype}, shape {own.shape}, got {got.dtype}, shape "
                    f"{got.shape}"
                )
            if got.dtype == np.float32 and not np.isfinite(got).all():
                raise ValueError(f"state: expected finite numbers in {name!r}")
            if key.endswith("/scales") and (got < 0).any():
                raise ValueError(f"state: expected no negative numbers in {name!r}")
            own[...] = got
        flat = given.decoded_flat()
        for kind, values in zip(self.kinds, flat, strict=True):
            if kind.squares and (values < 0).any():
                raise ValueError(
                    f"state: expected no negative numbers in '{index}/{kind.name}': a mean or sum of squares"
                )
        return given if wide == self.wide else self._like_this(flat)

    def _like_this(self, flat: Sequence[np.ndarray]) -> TensorState:
        """A state in the form of this one that holds these values, rounded to codes if it has codes."""
        new = TensorState(self.shape, self.wide, self.blocksize, self.kinds)
        for i, values in enumerate(flat):
            if self.wide:
                new.values[i][...] = values
            elif values.size:
                q = coding.quantize_blockwise(values, self.books[i], blocksize=self.blocksize)
                new.values[i][...], new.scales[i][...] = q.codes, q.scales
        return new

    def put(self, other: TensorState) -> None:
        """Copy a state that was `checked`."""
        for own, new in zip((*self.values, *self.scales), (*other.values, *other.scales), strict=True):
            own[...] = new
