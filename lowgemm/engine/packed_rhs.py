"""A right-hand side that is packed once and multiplied many times."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.engine import packing
from lowgemm.jit.pages import weights_empty
from lowgemm.kernels import Kernel, by_name, selected


class PackedRhs:
    """Packed right-hand side, made by `pack_rhs`.

    Attributes
    ----------
    shape : tuple of int
        Shape (..., depth, n) of the matrix that was packed.
    dtype : dtype
        uint8 or int8.
    kernel : str
        Name of the kernel whose layout this is. A product that uses another kernel repacks it first.
    nbytes : int
        Size of the panels and sums.

    Notes
    -----
    ``lhs @ packed`` and ``np.matmul(lhs, packed)`` are ``gemm(lhs, packed)``. Nothing else is arithmetic
    here: `to_array` gives the plain matrix. To keep a packed matrix in a file, use `pickle`, or save the
    plain matrix with `numpy.save` and pack it after loading: panels have the layout of one kernel, so a
    pickle holds the plain matrix too, and packs it for the machine that loads it.
    """

    #: Panels have no strides; what is keyed by an operand's strides finds this.
    strides = None

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, kernel: Kernel) -> None:
        self.shape, self.dtype = tuple(int(s) for s in shape), np.dtype(dtype)
        self.kernel = kernel.name
        depth, n = self.shape[-2:]
        self.distinct_rhs = math.prod(self.shape[:-2])  # Python's integers: a product of sizes can pass 2**63
        panels = -(-n // kernel.lanes)
        self.rhs_bytes = panels * kernel.lanes * packing.padded_depth_bytes(kernel, depth)
        size = self.distinct_rhs * self.rhs_bytes
        self.panels = weights_empty(size + kernel.over_read)[:size]
        self.sums = np.empty((self.distinct_rhs, panels * kernel.lanes), dtype=np.int32)
        #: Both addresses: what a planned call on several threads hands on.
        self.panels_address, self.sums_address = self.panels.ctypes.data, self.sums.ctypes.data

    @property
    def ndim(self) -> int:
        """Number of dimensions of the packed matrix."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.panels.nbytes + self.sums.nbytes

    def __repr__(self) -> str:
        return f"PackedRhs(shape={self.shape}, dtype={self.dtype}, kernel={self.kernel!r})"

    @property
    def T(self) -> PackedRhs:
        """The transposed matrix, packed. Unlike an array's `T` this is a copy, and costs as much as
        `pack_rhs`.

        Raises
        ------
        ValueError
            If this is a stack of matrices: see `mT`.

        Examples
        --------
        >>> import numpy as np, lowgemm
        >>> packed = lowgemm.pack_rhs(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
        >>> packed.T.shape
        (3, 2)
        """
        if self.ndim != 2:
            raise ValueError(
                f"T: expected one matrix, got a stack of shape {self.shape}; .mT transposes each matrix"
            )
        return self.mT

    @property
    def mT(self) -> PackedRhs:
        """Each matrix transposed, packed. This is a copy, and costs as much as `pack_rhs`."""
        return packed_by(self.to_array().swapaxes(-1, -2), by_name(self.kernel))

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(
            "a PackedRhs is a packed right operand and no array; .to_array() gives the matrix back, pickle "
            "saves it"
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        """NumPy asks this for ``array @ packed`` and all other arithmetic with arrays."""
        lhs = inputs[0]
        if ufunc is np.matmul and method == "__call__" and not isinstance(lhs, PackedRhs) and not named:
            return self.__rmatmul__(lhs)  # type: ignore[attr-defined]
        raise TypeError(
            f"np.{ufunc.__name__}: a PackedRhs is the right operand of a product, lhs @ packed or gemm(lhs, "
            "packed), and takes part "
            "in no other arithmetic; .to_array() gives the matrix back"
        )

    def __matmul__(self, other: Any) -> NoReturn:
        raise TypeError(
            "a PackedRhs is packed as the right operand: write lhs @ packed, or gemm(packed.to_array(), "
            "other)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A pickle carries the plain matrix: it is half of the panels' size for 16-bit layouts, and is right
        # on a machine with another kernel.
        return {"matrix": self.to_array()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(pack_rhs(state["matrix"]).__dict__)

    def batch_strides(self) -> tuple[tuple[int, ...], int]:
        """Byte strides of the leading dimensions in the panels, and from one matrix's column sums to the
        next.
        """
        strides, step = [], self.rhs_bytes
        for size in reversed(self.shape[:-2]):
            strides.append(step)
            step *= size
        return tuple(reversed(strides)), self.sums.strides[0]

    def to_array(self) -> np.ndarray:
        """Unpack to the matrix that was packed.

        Examples
        --------
        >>> import numpy as np, lowgemm
        >>> rhs = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
        >>> bool((lowgemm.pack_rhs(rhs).to_array() == rhs).all())
        True
        """
        kernel = by_name(self.kernel)
        depth, n = self.shape[-2:]
        unsigned = self.dtype.kind == "u"
        stored = {"u8": np.uint8, "s8": np.int8, "s16": np.int16}[kernel.rhs_type]
        _, shift = packing.element_map(kernel, "rhs", "u" if unsigned else "i")
        lanes, kr = kernel.lanes, kernel.kr
        padded = packing.padded_depth_bytes(kernel, depth) // kernel.element_bytes
        x = self.panels.view(stored).reshape(self.distinct_rhs, -(-n // lanes), padded // kr, lanes, kr)
        x = x.transpose(0, 2, 4, 1, 3).reshape(self.distinct_rhs, padded, -(-n // lanes) * lanes)[
            :, :depth, :n
        ]
        return (x.astype(np.int16) + np.int16(shift)).astype(self.dtype).reshape(self.shape)


def pack_rhs(rhs: ArrayLike) -> PackedRhs:
    """Pack the right-hand side of `gemm` once, for many products.

    Parameters
    ----------
    rhs : array_like of uint8 or int8, shape (..., depth, n) or (depth,)
        Any strides. A vector is packed as a matrix of one column, and `gemm` drops that axis again only for
        arrays: pass ``rhs[:, None]`` to be explicit.

    Returns
    -------
    PackedRhs
        Accepted by `gemm` in place of `rhs`; ``lhs @ packed`` is ``gemm(lhs, packed)``. Pickle saves it, as
        the plain matrix, which is packed anew where it is loaded.

    Raises
    ------
    TypeError
        If `rhs` is not uint8 or int8.
    ValueError
        If it has no dimension.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> w = lowgemm.pack_rhs(np.array([[1, -2], [3, 4]], dtype=np.int8))
    >>> lowgemm.gemm(np.array([[10, 20]], dtype=np.uint8), w)
    array([[70, 60]], dtype=int32)
    """
    from lowgemm.checks.arguments import as_operand

    a = as_operand(rhs, "rhs")
    if a.ndim == 1:
        a = a[:, None]
    return packed_by(a, selected())


def repacked(w: PackedRhs, kernel: Kernel) -> PackedRhs:
    """The same matrix in the layout of `kernel`."""
    if w.kernel == kernel.name:
        return w
    return packed_by(w.to_array(), kernel)


def packed_by(a: np.ndarray, kernel: Kernel) -> PackedRhs:
    """A matrix, or a stack of them, packed for a kernel."""
    w = PackedRhs(a.shape, a.dtype, kernel)
    depth, n = a.shape[-2:]
    if a.size == 0 and n == 0:
        return w
    flip, _ = packing.element_map(kernel, "rhs", a.dtype.kind)
    panel_bytes = packing.padded_depth_bytes(kernel, depth) * kernel.lanes
    routine = packing.pack_routine(kernel, "rhs", a.strides[-2] == 1)
    for number, index in enumerate(np.ndindex(a.shape[:-2])):
        m = a[index]
        routine.ctypes(
            m.ctypes.data, m.strides[1], m.strides[0], n, depth, flip,
            w.panels_address + number * w.rhs_bytes, panel_bytes, w.sums_address + number * w.sums.strides[0],
        )  # fmt: skip
    return w
