"""Addition of two tensors of different scales, and the residual block that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import as_array, choice
from lowgemm.nn import reference, routines
from lowgemm.nn.layer import Layer, tensor_qparams
from lowgemm.nn.program import Place, Program
from lowgemm.nn.reference import ADD_SHIFT
from lowgemm.quantization import QParams, quantize_multiplier


class QuantizedAdd:
    """``a + b`` in integers: both rescaled to a common scale, added, and rescaled to the result's.

    Parameters
    ----------
    a_qparams, b_qparams, output_qparams : QParams
        8 bits, one scale each.
    activation : {"none", "relu"}
        Done by a narrower bound of the result.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    TensorFlow Lite's 8-bit addition: ``(q - zero) << 20`` times ``scale / (2 * max(scales))`` for both, the
    sum times ``2 * max(scales) / (2**20 * output scale)``, each by a Q0.31 multiplier with gemmlowp's two
    roundings. Two 8-bit operands have 65,536 pairs, so the sums are a table, made here.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> add = QuantizedAdd(QParams(0.5), QParams(0.25, 4), QParams(1.0))
    >>> add(np.array([2, 3], np.int8), np.array([8, 127], np.int8))  # 1 + 1, 1.5 + 30.75
    array([ 2, 32], dtype=int8)
    """

    def __init__(
        self, a_qparams: QParams, b_qparams: QParams, output_qparams: QParams, *, activation: str = "none"
    ) -> None:
        self.a_qparams = tensor_qparams(a_qparams, "a_qparams")
        self.b_qparams = tensor_qparams(b_qparams, "b_qparams")
        self.output_qparams = tensor_qparams(output_qparams, "output_qparams")
        self.activation = activation = choice(activation, "activation", ("none", "relu"))
        a, b, o = (float(p.scale) for p in (self.a_qparams, self.b_qparams, self.output_qparams))
        common = 2 * max(a, b)
        self.factors = tuple(
            quantize_multiplier(s) for s in (a / common, b / common, common / (2**ADD_SHIFT * o))
        )
        self.zeros = tuple(int(p.zero_point) for p in (self.a_qparams, self.b_qparams, self.output_qparams))
        self.low, self.high = self.output_qparams.qmin, self.output_qparams.qmax
        if activation == "relu":
            self.low = max(self.low, self.zeros[2])
        left = np.arange(256, dtype=np.uint8).view(self.a_qparams.dtype)
        right = np.arange(256, dtype=np.uint8).view(self.b_qparams.dtype)
        self.table = self._sum(left[:, None], right[None, :]).ravel()

    def __repr__(self) -> str:
        dtypes = f"{self.a_qparams.dtype}, {self.b_qparams.dtype} -> {self.output_qparams.dtype}"
        return f"{type(self).__name__}(activation={self.activation!r}, {dtypes})"

    def _sum(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = reference.add(a, b, self.zeros, self.factors, self.low, self.high)
        return y.astype(self.output_qparams.dtype)

    def checked(self, a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Both as arrays that fit."""
        a = as_array(a, "a", "an array of integers", self.a_qparams.dtype)
        b = as_array(b, "b", "an array of integers", self.b_qparams.dtype)
        for name, value, p in (("a", a, self.a_qparams), ("b", b, self.b_qparams)):
            if value.dtype != p.dtype:
                raise TypeError(f"{name}: expected {p.dtype} ({name}_qparams), got {value.dtype}")
        if a.shape != b.shape:
            raise ValueError(f"b: expected shape {a.shape} like a, got {b.shape}")
        return a, b

    def __call__(self, a: ArrayLike, b: ArrayLike) -> np.ndarray:
        """Add.

        Parameters
        ----------
        a, b : array_like of one shape
            Of the dtypes of `a_qparams` and `b_qparams`.

        Returns
        -------
        ndarray of ``output_qparams.dtype``

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        a, b = self.checked(a, b)
        index = a.view(np.uint8).astype(np.uint16)
        index <<= 8
        index |= b.view(np.uint8)
        return self.table.take(index)

    def reference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The definition."""
        return self._sum(a, b)


class QuantizedResidual(Layer):
    """``x + branch(x)``.

    Parameters
    ----------
    branch : sequence of Layer
        Keeps the shape and gives 8-bit integers.
    output_qparams : QParams
        Of the sum; 8 bits, one scale.
    activation : {"none", "relu"}
        After the sum.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.nn import QuantizedLinear
    >>> from lowgemm.quantization import QParams
    >>> p = QParams(0.5)
    >>> branch = QuantizedLinear(np.array([[2]], np.int8), None, p, QParams(1.0), p)
    >>> QuantizedResidual([branch], p)(np.array([[5], [-7]], np.int8)).ravel()
    array([ 15, -21], dtype=int8)
    """

    kind = "residual"

    def __init__(self, branch: Sequence[Layer], output_qparams: QParams, *, activation: str = "none") -> None:
        from lowgemm.nn.sequential import check_chain

        self.branch = check_chain(branch, "branch")
        last = self.branch[-1].output_qparams
        if last is None:
            raise ValueError("branch: expected integers from its last layer, which gives float32")
        self.input_qparams = self.branch[0].input_qparams
        self.add = QuantizedAdd(self.input_qparams, last, output_qparams, activation=activation)
        self.output_qparams = self.add.output_qparams
        self.activation = self.add.activation

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for every layer."""
        through = shape
        for layer in self.branch:
            through = layer.output_shape(through)
        if through != shape:
            raise ValueError(f"x: expected a branch that keeps the shape {shape}, got {through}")
        return shape

    def maccs(self, shape: tuple[int, ...]) -> int:
        """As for every layer."""
        total = 0
        for layer in self.branch:
            total += layer.maccs(shape)
            shape = layer.output_shape(shape)
        return total

    @property
    def parameter_bytes(self) -> int:
        """As for every layer."""
        return sum(layer.parameter_bytes for layer in self.branch)

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        last = program.take_last()
        y = program.chain(self.branch, x, shape)
        to = program.result(x.size, last)
        params = routines.add.record(table=program.keep(self.add.table.view(np.uint8)), count=x.size)
        program.op(routines.add, params, x, to, y)
        if y != x:
            program.release(y)
        return to

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        y = x
        for layer in self.branch:
            y = layer.forward(y)
        return self.add(x, y)

    def reference(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        y = x
        for layer in self.branch:
            y = layer.reference(y)
        return self.add.reference(x, y)

    def state(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"branch": self.branch, "output_qparams": self.output_qparams, "activation": self.activation}
