"""What the operators of one model share: settings, and weights that were packed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run.convolution import PackedFilters


class NotOurs(Exception):
    """The element types or attributes are not lowgemm's to evaluate."""


class State(NotCopied):
    """Settings and packed weights of one model.

    An array is packed once if it is one of the model's own constants: those are held here, so that their
    identity lasts, and made read-only. Anything else, such as an initializer that a caller overrides, is
    packed anew by each product.

    Attributes
    ----------
    rounding : str
        "onnx" or "onnx_reference".
    num_threads : int or None
        For every product.
    tables : dict
        Results of operators of one byte for all 256.
    """

    instead = "copy the Model"

    def __init__(self, rounding: str = "onnx", num_threads: int | None = None) -> None:
        self.rounding, self.num_threads = rounding, num_threads
        self.tables: dict[Any, np.ndarray] = {}
        self._constants: dict[int, np.ndarray] = {}
        self._packed: dict[tuple[int, int], PackedRhs | PackedFilters] = {}

    def add_constants(self, arrays: Any) -> None:
        """Declare arrays that no run changes."""
        for a in arrays:
            if isinstance(a, np.ndarray) and a.dtype in (np.uint8, np.int8):
                a.flags.writeable = False
                self._constants[id(a)] = a

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed weights held."""
        return sum(p.nbytes for p in self._packed.values())

    @property
    def packed_count(self) -> int:
        """Number of weights that were packed."""
        return len(self._packed)

    def rhs(self, b: np.ndarray, transposed: bool = False) -> np.ndarray | PackedRhs:
        """The right-hand side of a product, packed if it is a constant."""
        key = (id(b), -1 - transposed)
        if self._constants.get(id(b)) is not b or b.ndim < 2:
            return b.T if transposed else b
        if key not in self._packed:
            self._packed[key] = pack_rhs(b.T if transposed else b)
        return self._packed[key]  # type: ignore[return-value]

    def filters(self, w: np.ndarray, group: int) -> PackedFilters:
        """A convolution's filters, packed; kept if they are a constant."""
        key = (id(w), group)
        if self._constants.get(id(w)) is not w:
            return PackedFilters(w, group)
        if key not in self._packed:
            self._packed[key] = PackedFilters(w, group)
        return self._packed[key]  # type: ignore[return-value]
