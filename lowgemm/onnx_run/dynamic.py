"""Dynamic models: ``DynamicQuantizeLinear -> ConvInteger or MatMulInteger -> Cast -> Mul (-> Add)`` as two
steps of lowgemm's.

A model that was quantized dynamically brings each product back to float32 at once, by float nodes of their
own. Here product, scale and bias become one node: ConvIntegerToFloat of domain `lowgemm`, or
`com.microsoft`'s MatMulIntegerToFloat. Every float operation stays where it is, so no bit changes.

| pattern | becomes |
|---|---|
| ConvInteger -> Cast -> Mul by (a scale times a scale) (-> Add a bias) | ConvIntegerToFloat |
| ConvInteger -> Add floor(bias / scale) -> Cast -> Mul | the same, `floored`: the form that older tools write |
| MatMulInteger -> Cast -> Mul (-> Add a bias) | MatMulIntegerToFloat |

When the program is made, a ConvIntegerToFloat becomes ConvSums and Scaled (`split`): the sums stay int32 with
the channels last in memory, and the chain of float operators behind them (`chains.py`) begins with the scale
and the bias. So no pass of its own makes float32 of them. So does a MatMulIntegerToFloat
that a chain may follow (`split_products`). Where the chain ends in a DynamicQuantizeLinear, it
notes the range, and QuantizeInRange quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.compat import onnx_passes
from lowgemm.compat.onnx_passes import PIECE
from lowgemm.engine import parts
from lowgemm.engine.parts import PASS
from lowgemm.gemm import gemm
from lowgemm.jit.memory import load_f32, load_i64, offset, pointer_at, store_8, store_32
from lowgemm.jit.routine import routine
from lowgemm.onnx_run import chain_code, convolution, operators, products, strided, turned, views
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.engines import attributes_of, copy_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, clear, scale_by, unless_refused

#: The domain of operators that lowgemm alone has.
OWN = "lowgemm"
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
_FLOAT = 1  # onnx.TensorProto.FLOAT


def as_own(node: Any) -> Any:
    """A copy of a node of the standard, as the operator of that name that is lowgemm's."""
    own = copy_of(node)
    own.domain = OWN
    return own


# ---- finding the patterns: `r` is a `rewrite.Rewriter` -----------------------------------------------------
def _only_reader(r: Any, name: str, op: str) -> Any:
    """The node that reads a value, if it is one, of this kind, and no one else sees the value."""
    readers = r.readers.get(name, [])
    if len(readers) != 1 or name in r.visible or readers[0].domain or readers[0].op_type != op:
        return None
    return readers[0]


def _other(node: Any, name: str) -> str:
    """The other operand of an operator of two."""
    return node.input[1] if node.input[0] == name else node.input[0]


def _made_by(r: Any, name: str, op: str) -> Any:
    """The node that makes a value, if it is the standard's operator `op`, else None."""
    node = r.makers.get(name)
    return node if node is not None and node.op_type == op and not node.domain else None


def constant_of(r: Any, name: str) -> np.ndarray | None:
    """The constant behind a name; Reshape and the like of constants count as such."""
    if name in r.constants:
        return r.constants[name]
    node = r.makers.get(name)
    if node is None or (node.domain, node.op_type) not in views.OPERATORS:
        return None
    given = [constant_of(r, n) if n else None for n in node.input]
    if any(v is None and n for v, n in zip(given, node.input, strict=True)):
        return None
    try:
        return views.OPERATORS[node.domain, node.op_type](None, *given, **attributes_of(node))
    except (TypeError, ValueError):
        return None


def _along(value: np.ndarray | None, axes: int, axis: int, count: int) -> bool:
    """Whether a float32 constant is a number, or one for each index of an axis of a result of `axes` axes."""
    if value is None or value.dtype != np.float32 or value.ndim > axes:
        return False
    shape = (1,) * (axes - value.ndim) + value.shape
    return value.size == 1 or shape == tuple(count if i == axis else 1 for i in range(axes))


def _factors(r: Any, name: str, a: str) -> tuple[str, str] | None:
    """Names of the scales of which a scale is the product, that of `a` first."""
    node, quantizer = _made_by(r, name, "Mul"), _made_by(r, a, "DynamicQuantizeLinear")
    if quantizer is None or quantizer.output[0] != a:
        return _constant_factors(r, name, node)
    if node is None:
        return None
    scale = quantizer.output[1]
    return (scale, _other(node, scale)) if scale in node.input else None


def _constant_factors(r: Any, name: str, node: Any) -> tuple[str, str] | None:
    """The same where data come as bytes with a constant scale: rows of a quantized table, say."""
    if node is None:
        found = constant_of(r, name)
        one = np.float32(1)  # times it nothing changes
        return None if found is None or found.dtype != one.dtype else (r.constant(f"{name}_one", one), name)
    held = [constant_of(r, n) for n in node.input]
    for value, first, other in zip(held, node.input, reversed(node.input), strict=True):
        if value is not None and value.dtype == np.float32 and value.size == 1 and value.ndim < 2:
            return first, other
    return None


def _floored(r: Any, name: str, factors: tuple[str, str]) -> np.ndarray | None:
    """The bias behind ``Reshape(Cast(Floor(Div(bias, scale))))``."""
    node = _made_by(r, name, "Reshape")
    sizes = None if node is None else constant_of(r, node.input[1])
    for op in ("Cast", "Floor", "Div"):
        node = None if node is None else _made_by(r, node.input[0], op)
        if op == "Cast" and node is not None and [a.i for a in node.attribute if a.name == "to"] != [6]:
            return None
    scale = None if node is None else _made_by(r, node.input[1], "Mul")
    if scale is None or set(scale.input) != set(factors) or sizes is None:
        return None
    bias = constant_of(r, node.input[0])
    if bias is None or [n for n in sizes.reshape(-1) if n != 1] not in ([-1], [bias.size]):
        return None
    return bias.reshape(tuple(-1 if n != 1 else 1 for n in sizes.reshape(-1)))


def to_float(r: Any, node: Any) -> bool:
    """Rewrite a ConvInteger or a MatMulInteger whose result goes back to float32."""
    a, b = node.input[:2]
    zeros = [node.input[i] if len(node.input) > i else "" for i in (2, 3)]
    weights = r.constants.get(b)
    conv = node.op_type == "ConvInteger"
    if conv and weights is None:
        return False
    # of a product only the last axis is certain
    count = 0 if weights is None else weights.shape[0 if conv else -1]
    axes, axis = (weights.ndim, 1) if conv else (1, 0)
    chain, name = [], node.output[0]
    adding = _only_reader(r, name, "Add") if conv else None
    if adding is not None:
        chain, name = [adding], adding.output[0]
    cast = _only_reader(r, name, "Cast")
    if cast is None or [x.i for x in cast.attribute if x.name == "to"] != [_FLOAT]:
        return False
    scaling = _only_reader(r, cast.output[0], "Mul")
    factors = None if scaling is None else _factors(r, _other(scaling, cast.output[0]), a)
    if factors is None:
        return False
    held = constant_of(r, factors[1])
    quantizer = _made_by(r, b, "DynamicQuantizeLinear")
    of_b = quantizer is not None and list(quantizer.output[:2]) == [b, factors[1]]
    if not of_b and not _along(held, axes, axis, count):
        return False
    chain += [cast, scaling]
    output, bias = scaling.output[0], None
    if adding is not None:
        bias = _floored(r, _other(adding, node.output[0]), factors)
        if not _along(bias, axes, axis, count):
            return False
    else:
        more = _only_reader(r, output, "Add")
        found = None if more is None else constant_of(r, _other(more, output))
        if found is not None and found.size == count and _along(found, axes, axis, count):
            bias, output = found, more.output[0]
            chain.append(more)
    scale_name = factors[1] if held is None else r.constant(f"{output}_scale", held.reshape(-1))
    bias_name = "" if bias is None else r.constant(f"{output}_bias", np.ascontiguousarray(bias.reshape(-1)))
    if conv:
        from onnx import helper

        attributes = [*node.attribute, helper.make_attribute("floored", int(adding is not None))]
        inputs = [a, b, *zeros, factors[0], scale_name, bias_name]
        r.replace(node, chain, "ConvIntegerToFloat", OWN, inputs, output, attributes)
    else:
        r.replace(
            node,
            chain,
            "MatMulIntegerToFloat",
            DOMAIN,
            [a, b, factors[0], scale_name, *zeros, bias_name],
            output,
            [],
        )
    return True


# ---- running them -----------------------------------------------------------------------------------------
def _whole_bias(
    bias: np.ndarray | None, scale: np.ndarray, floored: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is added to the sums, int32, and to the scaled numbers, float32; -0 changes no number."""
    ints, floats = np.zeros(count, np.int32), np.full(count, -0.0, np.float32)
    if bias is not None and floored:
        with np.errstate(over="ignore", invalid="ignore"):  # a range so small that the bias passes int32
            ints[:] = np.floor(bias / scale).astype(np.int32)
    elif bias is not None:
        floats[:] = bias
    return ints, floats


def given_later(constants: Sequence[Any], *places: int) -> Callable[[Sequence[Any]], bool]:
    """Whether inputs that are no constants come with the data after all; one that is left out is no constant
    either.
    """
    unsure = [i for i in places if i < len(constants) and constants[i] is None]
    return lambda inputs: any(inputs[i] is not None for i in unsure)


def conv_integer_to_float(
    state: State, x, w, x_zero, w_zero, x_scale, w_scale, bias=None, *, floored: int = 0, **attributes: Any
) -> np.ndarray:
    """ConvIntegerToFloat: ``float(ConvInteger(x, w)) * (x_scale * w_scale) + bias``; `floored`: see the
    module.
    """
    sums = operators.conv_integer(state, x, w, x_zero, w_zero, **attributes)
    scale = x_scale.reshape(()) * w_scale
    ints, floats = (
        v.reshape(-1, *(1,) * (sums.ndim - 2)) for v in _whole_bias(bias, scale, floored, sums.shape[1])
    )
    scale = scale.reshape(-1, *(1,) * (sums.ndim - 2))
    return (sums + ints).astype(np.float32) * scale + floats


def sums_of_conv(state: State, x, w, x_zero, w_zero, x_scale, w_scale, *bias: Any, **attributes: Any) -> Any:
    """ConvSums: the sums of a ConvIntegerToFloat, a floored bias added, and the scale of each channel."""
    sums = operators.conv_integer(state, x, w, x_zero, w_zero, **attributes)
    return _with_scale(sums, x_scale, w_scale, *bias)


def _with_scale(
    sums: np.ndarray, x_scale: Any, w_scale: Any, bias: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a convolution, the bias in whole steps added in place, and the scale of each channel."""
    around = (-1, *(1,) * (sums.ndim - 2))
    scale = x_scale.reshape(()) * w_scale.reshape(around)
    if bias is not None:
        sums += _whole_bias(bias.reshape(around), scale, 1, (sums.shape[1], *around[1:]))[0]
    return sums, scale


def prepared_sums(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """ConvSums with constant filters."""
    _, w, _, w_zero, _, w_scale, *bias = constants
    how = operators.convolution_attributes(attributes)
    filters = state.filters(w, how.get("group", 1))
    made = {
        dtype: convolution.Convolution(filters, dtype, (None, w_zero), how, num_threads=state.num_threads)
        for dtype in _BYTES
    }
    scales = np.ascontiguousarray(w_scale.reshape(-1, *(1,) * (w.ndim - 2)))
    later = given_later(constants, 3)

    def run(*inputs: Any) -> Any:
        x, x_zero, x_scale = inputs[0], inputs[2], inputs[4]
        if (
            x.dtype not in made
            or x_zero is None
            or x_zero.size != 1
            or x_zero.dtype != x.dtype
            or later(inputs)
        ):
            return NotImplemented
        sums = made[x.dtype].run(x, x_zero.item())
        return _with_scale(sums, x_scale, scales, *bias) if bias else (sums, x_scale.reshape(()) * scales)

    def record(recorder: Recorder, *inputs: Any) -> Any:
        x, x_zero, x_scale = inputs[0], inputs[2], inputs[4]
        if bias or x.dtype not in made or x_zero is None or later(inputs) or x_scale.size != 1:
            return None
        sums, scale = made[x.dtype].record(recorder, x, x_zero), np.empty(scales.shape, np.float32)
        if sums is None:
            return None
        recorder.kept.append(scales)
        at = recorder.at(x_scale), address(scales), recorder.at(scale)
        recorder.run(scale_by, at, scales.size)
        return sums, scale

    run.record = record  # type: ignore[attr-defined]
    return run


def split(node: Any, constants: Any) -> list[Any]:
    """A ConvIntegerToFloat as its sums, and the scaling and the bias of them, which a chain may begin with;
    or as it is.
    """
    from onnx import helper

    if node.op_type != "ConvIntegerToFloat":
        return [node]
    x, w, x_zero, w_zero, x_scale, w_scale, bias = node.input
    if any(n not in constants for n in (w, w_scale, bias) if n):
        return [node]
    attributes = {a.name: a for a in node.attribute}
    floored = attributes.pop("floored").i
    inputs, output = [x, w, x_zero, w_zero, x_scale, w_scale], node.output[0]
    sums, scale = f"{output} sums", f"{output} scale"
    own = helper.make_node(
        "ConvSums", [*inputs, *([bias] if floored else [])], [sums, scale], name=node.name, domain=OWN
    )
    own.attribute.extend(attributes.values())
    more = []
    if bias and not floored:
        more = [f"{output} bias"]
        constants[more[0]] = constants[bias].reshape(-1, *(1,) * (constants[w].ndim - 2))
    return [own, helper.make_node("Scaled", [sums, scale, *more], [output], name=node.name, domain=OWN)]


def scaled(state: State, sums: np.ndarray, scale: np.ndarray, bias: Any = None) -> np.ndarray:
    """Scaled: float32 of sums, by the definition."""
    y = sums.astype(np.float32) * scale
    return y if bias is None else y + bias


def _of_columns(value: Any, default: float, count: int) -> np.ndarray | None:
    """One float32 a column, of a constant; None if it is no such."""
    if value is None:
        return np.full(count, default, np.float32)
    if value.dtype != np.float32 or value.size not in (1, count) or max(value.shape, default=1) != value.size:
        return None
    return np.broadcast_to(value.reshape(-1), (count,)).astype(np.float32)


def _float_product(state: State, b: Any, b_scale: Any, b_zero: Any, bias: Any) -> Any:
    """A function of `a`, its scale and its zero point, for constants of the right-hand side."""
    if b is None or b.dtype not in _BYTES or b.ndim != 2 or b_scale is None:
        return None
    count = b.shape[1]
    scales, floats = _of_columns(b_scale, 1, count), _of_columns(bias, -0.0, count)
    zero: Any = 0
    if b_zero is not None:
        if (
            b_zero.dtype != b.dtype
            or b_zero.size not in (1, count)
            or max(b_zero.shape, default=1) != b_zero.size
        ):
            return None
        zero = int(b_zero.reshape(-1)[0]) if (b_zero == b_zero.reshape(-1)[:1]).all() else b_zero.reshape(-1)
    if scales is None or floats is None or not count:
        return None
    return _FloatProduct(state, b, scales, zero, floats)


def _record_columns(recorder: Recorder, value: Any, default: float, count: int) -> Any:
    """An array of one float32 a column that stands for a value, or is one; None if it is no such."""
    if value is None or recorder.is_constant(value):
        found = _of_columns(value, default, count)
        if found is not None:
            recorder.constant(found)
            recorder.kept.append(found)
        return found
    fits = value.size in (1, count) and max(value.shape, default=1) == value.size
    if value.dtype != np.float32 or not fits or not recorder.knows(value):
        return None
    y = np.empty(count, np.float32)
    recorder.keep(y)
    strided.run_copy(y, value.reshape(-1), recorder.at, recorder.run, 1)
    return y


def record_scaled(recorder: Recorder, sums: Any, a_scale: Any, b_scale: Any, bias: Any, threads: Any) -> Any:
    """Take down ``float(sums) * (a_scale * b_scale) + bias``, in the place of the sums, for scales of which the
    second and the bias are one number or one a column; NotImplemented if that cannot be.
    """
    if sums is NotImplemented or a_scale.size != 1 or a_scale.dtype != np.float32:
        return NotImplemented
    count = sums.shape[-1]
    scales, floats = (
        _record_columns(recorder, b_scale, 1, count),
        _record_columns(recorder, bias, -0.0, count),
    )
    if scales is None or floats is None:
        return NotImplemented
    at, held, own = recorder.at, recorder.held, np.empty(count, np.float32)
    ints = np.zeros(count, np.int32)
    recorder.keep(sums, own)
    recorder.run(scale_by, (at(a_scale), at(scales), at(own)), count)
    places, sizes = (at(sums), held(ints), at(own), at(floats)), (sums.size // count, count)
    turned.run_scaled_rows(*places, sizes, threads, recorder.run)
    return sums.view(np.float32)


class _FloatProduct:
    """A product with a constant right-hand side, back in float32: called with `a`, its scale and its zero
    point.
    """

    def __init__(
        self, state: State, b: np.ndarray, scales: np.ndarray, zero: Any, floats: np.ndarray
    ) -> None:
        self.state, self.right = state, state.rhs(b)
        self.scales, self.zero, self.floats = scales, zero, floats
        self.ints = np.zeros(scales.size, np.int32)

    def sums(self, a: np.ndarray, a_scale: np.ndarray, a_zero: int) -> tuple[np.ndarray, np.ndarray]:
        """The int32 sums of `a`, quantized with this scale and this zero point, and the scale of each column."""
        threads, rows = self.state.num_threads, products.as_rows(a)
        sums = gemm(rows, self.right, lhs_zero_point=a_zero, rhs_zero_point=self.zero, num_threads=threads)
        return sums.reshape(*a.shape[:-1], self.scales.size), a_scale.reshape(()) * self.scales

    def record_sums(
        self, recorder: Recorder, a: np.ndarray, a_scale: np.ndarray, a_zero: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Take them down; None if that cannot be."""
        zeros = a_zero, self.zero
        sums = products.product_of(recorder, a, self.right, zeros, None, self.state.num_threads)
        if sums is NotImplemented:
            return None
        scale = np.empty(self.scales.size, np.float32)
        at, held = recorder.at, recorder.held
        recorder.run(scale_by, (at(a_scale), held(self.scales), at(scale)), scale.size)
        recorder.keep(sums, scale)
        return sums, scale

    def __call__(self, a: np.ndarray, a_scale: np.ndarray, a_zero: int) -> np.ndarray:
        """The product in float32."""
        sums, scale = self.sums(a, a_scale, a_zero)
        places = address(sums), address(self.ints), address(scale), address(self.floats)
        sizes = sums.size // scale.size, scale.size
        turned.run_scaled_rows(*places, sizes, self.state.num_threads)
        return sums.view(np.float32)


def _record_product(
    state: State, recorder: Recorder, right: Any, a: Any, a_scale: Any, b_scale: Any, zeros: Any, bias: Any
) -> Any:
    """Take down a product of bytes and its way back to float32; NotImplemented if that cannot be."""
    for zero, operand in zip(zeros, (a, right), strict=True):
        if isinstance(zero, np.ndarray) and zero.dtype != operand.dtype:
            return NotImplemented
    points = [0 if z is None else z for z in zeros]
    sums = products.product_of(recorder, a, right, points, None, state.num_threads)
    return record_scaled(recorder, sums, a_scale, b_scale, bias, state.num_threads)


def prepared_product(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """MatMulIntegerToFloat; one by one only with a constant right-hand side."""
    _, b, _, b_scale, _, *more = [*constants, None, None, None]
    product, later = _float_product(state, b, b_scale, *more[:2]), given_later(constants, 1, 3, 5, 6)
    right = products.held_right(state, b)

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        a, given, a_scale, b_scale, a_zero, b_zero, bias = [*inputs, None, None, None][:7]
        if recorder is not None:
            rhs = given if right is None else right
            zeros = a_zero, b_zero
            return _record_product(state, recorder, rhs, a, a_scale, b_scale, zeros, bias)
        if product is None or a.dtype not in _BYTES or a.ndim < 2 or later(inputs):
            return NotImplemented
        if a_scale.size != 1 or a_scale.dtype != np.float32:
            return NotImplemented
        if a_zero is not None and (a_zero.size != 1 or a_zero.dtype != a.dtype):
            return NotImplemented
        return product(a, a_scale, 0 if a_zero is None else int(a_zero.reshape(())))

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return None if right is NotImplemented else run


def split_products(nodes: Sequence[Any], constants: Any, goes_on: Callable[[Any], bool]) -> list[Any]:
    """Nodes with each MatMulIntegerToFloat of dynamically quantized data and constants as its sums and their
    scaling, where a chain may go on: a node that reads the result and of which `goes_on` is true.
    """
    from onnx import helper

    scales = {n.output[1] for n in nodes if n.op_type == "DynamicQuantizeLinear" and len(n.output) > 1}
    going_on = {name for n in nodes if goes_on(n) for name in n.input}
    found: list[Any] = []
    for node in nodes:
        names = [*node.input, *[""] * 7][:7]
        given = [names[i] for i in (1, 3, 5, 6)]
        held = [constants.get(n) for n in given]
        if (
            node.op_type != "MatMulIntegerToFloat" or node.output[0] not in going_on or names[2] not in scales
            or any(n and v is None for n, v in zip(given, held, strict=True)) or not _fits_columns(*held)
        ):  # fmt: skip
            found.append(node)
            continue
        output, count, more = node.output[0], held[0].shape[1], []
        sums, scale = f"{output} sums", f"{output} scale"
        if held[3] is not None:
            more = [f"{output} bias"]
            constants[more[0]] = _of_columns(held[3], -0.0, count)
        own = helper.make_node("MatMulSums", names[:6], [sums, scale], name=node.name, domain=OWN)
        found += [own, helper.make_node("Scaled", [sums, scale, *more], [output], name=node.name, domain=OWN)]
    return found


def _fits_columns(b: Any, b_scale: Any, b_zero: Any, bias: Any) -> bool:
    """Whether a constant is a matrix of bytes, with scales, zero points and a bias for its columns."""
    if b is None or b.dtype not in _BYTES or b.ndim != 2 or b_scale is None or not b.shape[1]:
        return False
    points = None if b_zero is None else b_zero.astype(np.float32)
    columns = [_of_columns(v, 0, b.shape[1]) for v in (b_scale, points, bias)]
    return all(v is not None for v in columns) and (b_zero is None or b_zero.dtype == b.dtype)


def sums_of_product(state: State, a, b, a_scale, b_scale, a_zero=None, b_zero=None) -> Any:
    """MatMulSums: the sums of a MatMulIntegerToFloat, and the scale of each column."""
    sums = operators.matmul_integer(state, a, b, a_zero, b_zero)
    return sums, a_scale.reshape(()) * _of_columns(b_scale, 1, sums.shape[-1])


def prepared_product_sums(
    state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool
) -> Any:
    """MatMulSums, whose right-hand side is constant."""
    _, b, _, b_scale, _, b_zero = [*constants, None, None][:6]
    product = _float_product(state, b, b_scale, b_zero, None)

    def fits(a: Any, a_scale: Any, a_zero: Any) -> bool:
        is_one = a_scale.size == 1 and a_scale.dtype == np.float32
        return a.dtype in _BYTES and a.ndim > 1 and is_one and (a_zero is None or a_zero.dtype == a.dtype)

    def run(*inputs: Any) -> Any:
        a, _, a_scale, _, a_zero = inputs[:5]
        if not fits(a, a_scale, a_zero) or (a_zero is not None and a_zero.size != 1):
            return NotImplemented
        return product.sums(a, a_scale, 0 if a_zero is None else int(a_zero.reshape(())))

    def record(recorder: Recorder, *inputs: Any) -> Any:
        a, _, a_scale, _, a_zero = inputs[:5]
        if not fits(a, a_scale, a_zero):
            return None
        return product.record_sums(recorder, a, a_scale, 0 if a_zero is None else a_zero)

    run.record = record  # type: ignore[attr-defined]
    return run


#: What `quantize` does: it looks for the range, makes the scale of it, and quantizes the elements.
RANGE, SCALE, ELEMENTS = 1, 2, 4


@routine(PASS)
def quantize(args, first, end, worker):
    """DynamicQuantizeLinear of float32.

    Arguments: src, dst, ends, `step` bytes from one worker's ends to the next, how many there are, made,
    size, channels, pixels, last, what, zero. `ends` are the keys of the range (`onnx_passes.note_range`).
    `made` is float32: the scale, the limits from which the zero point is taken away, and the zero point,
    which is written to `zero` as a byte too. Pieces are those of `turned.turn` if `last`, else of `PIECE`
    elements.
    """
    src, dst, ends, step = pointer_at(args, 0), pointer_at(args, 1), pointer_at(args, 2), load_i64(args, 3)
    made, size, what = pointer_at(args, 5), load_i64(args, 6), load_i64(args, 10)
    m = numba.carray(made, (4,), np.float32)
    if what & RANGE:
        begin, stop = first * PIECE, min(end * PIECE, size)
        onnx_passes.note_range(offset(ends, worker * step), offset(src, 4 * begin), stop - begin)
    if what & SCALE:
        low, high = np.int64(0), np.int64(0)
        for i in range(load_i64(args, 4)):
            a, b = onnx_passes.range_of(offset(ends, i * step))
            low, high = min(low, np.int64(a)), max(high, np.int64(b))
        store_32(made, 0, low ^ ((low >> 31) & 0x7FFFFFFF))
        store_32(made, 1, high ^ ((high >> 31) & 0x7FFFFFFF))
        lowest, highest = load_f32(made, 0), load_f32(made, 1)
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            lowest, highest = onnx_passes.range_of_numbers(src, size)  # the keys of NaN are in the way
        scale, zero = onnx_passes.scale_of(lowest, highest)
        m[0], m[1], m[2], m[3] = scale, np.float32(-zero), np.float32(255 - zero), np.float32(zero)
        store_8(pointer_at(args, 11), 0, zero)
    if what & ELEMENTS:
        zero = np.int32(m[3])
        if load_i64(args, 9) != 0:
            sizes = load_i64(args, 7), load_i64(args, 8)
            turned.turn_over(turned.QUANTIZED, src, dst, made, np.int64(zero), *sizes, first, end)
            return
        begin, stop = first * PIECE, min(end * PIECE, size)
        src, dst = offset(src, 4 * begin), offset(dst, begin)
        onnx_passes.quantize_bytes(src, dst, stop - begin, m[0], zero, 0, 255)


def quantized(
    x: np.ndarray,
    last: bool,
    ends: np.ndarray | None = None,
    num_threads: int | None = 1,
    recorder: Recorder | None = None,
) -> Any:
    """DynamicQuantizeLinear of float32, its result with the channels last in memory if `last`; NotImplemented
    if it is not for this. `ends` are the keys of its range (`onnx_passes.note_range`), one row a worker that
    looked for it, if they are known. With a recorder this is taken down, and the result stands for what will
    come.
    """
    at: Any = address
    run, size = parts.run, x.size
    if x.dtype != np.float32 or not size:
        return NotImplemented
    channels, pixels, turn, pieces = 1, size, 0, -(-size // PIECE)
    if last and x.ndim > 2 and x.shape[1] > 1 and x.flags.c_contiguous:
        y, turn, channels = turned.empty_last(x.shape, np.uint8), 1, x.shape[1]
        pixels = size // (x.shape[0] * channels)
        pieces = turned.pieces_of(x.shape[0], channels, pixels)
    else:
        y = onnx_passes.empty_like(x, np.uint8)
        if y is None:
            return NotImplemented
    known, made, time = ends is not None, np.empty(4, np.float32), 0.3 * size
    zero = np.empty((), np.uint8)
    workers = 1 if num_threads == 1 else parts.workers_for(time, pieces, num_threads)
    if recorder is not None:
        at, run = recorder.at, recorder.run
        recorder.keep(y, made, zero)
    if not known:
        ends = np.zeros((workers, 2 * onnx_passes.LANES + chain_code.APART), np.int32)
        if recorder is not None:
            recorder.keep(ends)
            run(clear, (at(ends), ends.strides[0], onnx_passes.LANES), workers)
    what = SCALE | ELEMENTS

    def arguments() -> list[Any]:
        places = at(x), at(y), at(ends), ends.strides[0], len(ends), at(made)  # type: ignore[union-attr, arg-type]
        return [*places, size, channels, pixels, turn, what, at(zero)]

    if workers > 1 or (turn and not known):  # each for itself, since the pieces are not the same
        if not known:
            what = RANGE
            run(quantize, arguments(), -(-size // PIECE), workers, time)
        what = SCALE
        run(quantize, arguments(), 1)
        what = ELEMENTS
        run(quantize, arguments(), pieces, workers, time)
    else:
        what |= 0 if known else RANGE
        run(quantize, arguments(), pieces)
    return y, made[:1].reshape(()), zero


def prepared_quantizer(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """DynamicQuantizeLinear; a second input is the keys of the range, or None."""
    threads = state.num_threads

    def run(x: np.ndarray, ends: Any = None) -> Any:
        return quantized(x, last, ends, threads)

    def record(recorder: Recorder, x: np.ndarray, ends: Any = None) -> Any:
        found = quantized(x, last, ends, threads, recorder)
        return None if found is NotImplemented else found

    run.record = record  # type: ignore[attr-defined]
    return run


def quantize_in_range(state: State, x: np.ndarray, ends: Any) -> Any:
    """QuantizeInRange: DynamicQuantizeLinear of data whose range is known."""
    return operators.dynamic_quantize_linear(state, x)


def prepared_float_product(
    state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool
) -> Any:
    """DynamicQuantizeMatMul; one by one only with a constant right-hand side."""
    _, b, b_scale, *more = [*constants, None, None]
    product, later = _float_product(state, b, b_scale, *more[:2]), given_later(constants, 1, 2, 3, 4)
    right, threads = products.held_right(state, b), state.num_threads

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        a, given, b_scale, b_zero, bias = [*inputs, None, None][:5]
        if a.ndim < 2 or (recorder is None and (product is None or later(inputs))):
            return NotImplemented
        a = a if recorder is None else recorder.in_order(a)
        found = quantized(a, False, None, threads, recorder)
        if found is NotImplemented or recorder is None:
            return found if found is NotImplemented else product(found[0], found[1], int(found[2]))
        coded, scale, zero = found
        rhs = given if right is None else right
        return _record_product(state, recorder, rhs, coded, scale, b_scale, (zero, b_zero), bias)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return None if right is NotImplemented else run


#: Operators that lowgemm alone has.
OPERATORS = {
    (OWN, "ConvIntegerToFloat"): conv_integer_to_float,
    (OWN, "ConvSums"): sums_of_conv,
    (OWN, "MatMulSums"): sums_of_product,
    (OWN, "Scaled"): scaled,
    (OWN, "QuantizeInRange"): quantize_in_range,
}
#: How its nodes are prepared, as in `prepare.py`.
MAKERS = {
    (OWN, "ConvSums"): prepared_sums,
    (OWN, "MatMulSums"): prepared_product_sums,
    (OWN, "QuantizeInRange"): prepared_quantizer,
    (DOMAIN, "MatMulIntegerToFloat"): prepared_product,
    (DOMAIN, "DynamicQuantizeMatMul"): prepared_float_product,
    ("", "DynamicQuantizeLinear"): prepared_quantizer,
}
