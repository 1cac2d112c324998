"""What the operators of one model share: settings, and weights that were packed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
        self._packed: dict[tuple[int, Any], Any] = {}
        self._alone: list[Any] = []

    def add_constants(self, arrays: Any) -> None:
        """Declare arrays that no run changes."""
        for a in arrays:
            if isinstance(a, np.ndarray) and a.dtype in (np.uint8, np.int8):
                a.flags.writeable = False
                self._constants[id(a)] = a

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed weights held."""
        return sum(p.nbytes for p in (*self._packed.values(), *self._alone))

    @property
    def packed_count(self) -> int:
        """Number of weights that were packed."""
        return len(self._packed) + len(self._alone)

    def rhs(self, b: Any, transposed: bool = False) -> np.ndarray | PackedRhs:
        """The right-hand side of a product, packed if it is a constant."""
        if isinstance(b, PackedRhs):
            return b
        key = (id(b), -1 - transposed)
        if self._constants.get(id(b)) is not b or b.ndim < 2:
            return b.T if transposed else b
        if key not in self._packed:
            self._packed[key] = pack_rhs(b.T if transposed else b)
        return self._packed[key]  # type: ignore[return-value]

    def filters(self, w: Any, group: int) -> PackedFilters:
        """A convolution's filters, packed; kept if they are a constant."""
        if isinstance(w, PackedFilters):
            return w
        key = (id(w), group)
        if self._constants.get(id(w)) is not w:
            return PackedFilters(w, group)
        if key not in self._packed:
            self._packed[key] = PackedFilters(w, group)
        return self._packed[key]  # type: ignore[return-value]

    def blocks(self, b: np.ndarray, *others: Any, make: Callable[[], Any]) -> Any:
        """Weights that `make` packs from `b` and other constants; kept if `b` is one."""
        key = id(b), tuple(id(o) for o in others)
        if self._constants.get(id(b)) is not b:
            return make()
        if key not in self._packed:
            self._packed[key] = make()
        return self._packed[key]

    def packed_alone(self, w: np.ndarray) -> Packed | None:
        """Let go of a constant that was packed in one way, and hold the packed form alone; None if it was
        not.
        """
        keys = [key for key in self._packed if key[0] == id(w)]
        if len(keys) != 1 or self._constants.pop(id(w), None) is None:
            return None
        # another array may get its identity
        self._alone.append(self._packed.pop(keys[0]))
        return Packed(self._alone[-1], keys[0][1] == -2)


class Packed(NamedTuple):
    """A weight in its packed form alone, and whether that is the transposed one's."""

    form: Any
    transposed: bool

    def plain(self) -> np.ndarray:
        """The weight as the model has it."""
        w = self.form.to_array()
        return w.T if self.transposed else w
