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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowgemm.compat import onnx_passes
from lowgemm.gemm import gemm
from lowgemm.onnx_run import convolution, operators, turned, views
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.state import State

#: The domain of operators that lowgemm alone has.
OWN = "lowgemm"
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
_FLOAT = 1  # onnx.TensorProto.FLOAT


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
    """Whether a float32 constant is one number, or one for each index of an axis of a result of `axes` axes."""
    if value is None or value.dtype != np.float32 or value.ndim > axes:
        return False
    shape = (1,) * (axes - value.ndim) + value.shape
    return value.size == 1 or shape == tuple(count if i == axis else 1 for i in range(axes))


def _factors(r: Any, name: str, a: str) -> tuple[str, str] | None:
    """Names of the scales of which a scale is the product, that of `a` first."""
    node, quantizer = _made_by(r, name, "Mul"), _made_by(r, a, "DynamicQuantizeLinear")
    if node is None or quantizer is None or quantizer.output[0] != a:
        return None
    scale = quantizer.output[1]
    return (scale, _other(node, scale)) if scale in node.input else None


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
    """What is added to the sums, int32, and what to the scaled numbers, float32: minus 0 changes no number."""
    ints, floats = np.zeros(count, np.int32), np.full(count, -0.0, np.float32)
    if bias is not None and floored:
        with np.errstate(over="ignore", invalid="ignore"):  # a range so small that the bias passes int32
            ints[:] = np.floor(bias / scale).astype(np.int32)
    elif bias is not None:
        floats[:] = bias
    return ints, floats


def _given_later(constants: Sequence[Any], *places: int) -> Callable[[Sequence[Any]], bool]:
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


def prepared_conv(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """ConvIntegerToFloat with constant filters."""
    _, w, _, w_zero, _, w_scale, bias = constants
    if w is None or w.dtype not in _BYTES or w_scale is None:
        return None
    how = operators.convolution_attributes(attributes)
    filters = state.filters(w, how.get("group", 1))
    made = {
        dtype: convolution.Convolution(filters, dtype, (None, w_zero), how, num_threads=state.num_threads)
        for dtype in _BYTES
    }
    count, floored, given_later = w.shape[0], attributes.get("floored", 0), _given_later(constants, 3, 6)
    scales = np.broadcast_to(w_scale.reshape(-1), (count,)).astype(np.float32)
    ints, floats = _whole_bias(bias, scales, 0, count)
    call = turned.scaled_second.ctypes

    def run(*inputs: Any) -> Any:
        x, _, x_zero, _, x_scale = inputs[:5]
        if x.dtype not in made or x_zero is None or x_zero.size != 1 or x_zero.dtype != x.dtype:
            return NotImplemented
        if given_later(inputs):
            return NotImplemented
        sums = np.moveaxis(made[x.dtype].run(x, int(x_zero.reshape(()))), 1, -1)
        scale = x_scale.reshape(()) * scales
        whole, more = _whole_bias(bias, scale, 1, count) if floored else (ints, floats)
        y = np.empty((sums.shape[0], count, *sums.shape[1:-1]), np.float32)
        if y.size:
            sums = np.ascontiguousarray(sums)
            addresses = (v.ctypes.data for v in (sums, y, whole, scale, more))
            call(*addresses, y.shape[0], y.size // (y.shape[0] * count), count)
        return y

    return run


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
    right, ints, call = state.rhs(b), np.zeros(count, np.int32), turned.scaled_rows.ctypes

    def run(a: np.ndarray, a_scale: np.ndarray, a_zero: int) -> np.ndarray:
        rows = a.reshape(-1, a.shape[-1])
        sums = gemm(rows, right, lhs_zero_point=a_zero, rhs_zero_point=zero, num_threads=state.num_threads)
        scale = a_scale.reshape(()) * scales
        at = sums.ctypes.data
        call(at, at, ints.ctypes.data, scale.ctypes.data, floats.ctypes.data, rows.shape[0], count)
        return sums.view(np.float32).reshape(*a.shape[:-1], count)

    return run


def prepared_product(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """MatMulIntegerToFloat with a constant right-hand side."""
    _, b, _, b_scale, *more = [*constants, None, None, None]
    product, given_later = _float_product(state, b, b_scale, more[1], more[2]), _given_later(constants, 5, 6)
    if product is None:
        return None

    def run(*inputs: Any) -> Any:
        a, _, a_scale = inputs[:3]
        a_zero = inputs[4] if len(inputs) > 4 else None
        fits = a.dtype in _BYTES and a.ndim > 1 and a_scale.size == 1 and a_scale.dtype == np.float32
        if (
            not fits
            or (a_zero is not None and (a_zero.size != 1 or a_zero.dtype != a.dtype))
            or given_later(inputs)
        ):
            return NotImplemented
        return product(a, a_scale, 0 if a_zero is None else int(a_zero.reshape(())))

    return run


def quantized(x: np.ndarray, last: bool) -> Any:
    """DynamicQuantizeLinear of float32, its result with the channels last in memory if `last`; NotImplemented
    if it is not for this.
    """
    if x.dtype != np.float32 or not x.size:
        return NotImplemented
    real, whole = np.zeros(3, np.float32), np.zeros(2, np.int32)
    turn = last and x.ndim > 2 and x.shape[1] > 1 and x.flags.c_contiguous
    y = turned.empty_last(x.shape, np.uint8) if turn else onnx_passes.empty_like(x, np.uint8)
    if y is None:
        return NotImplemented
    at, to, scale, zero = (v.ctypes.data for v in (x, y, real, whole))
    onnx_passes.dynamic_scale.ctypes(at, scale, zero, x.size)
    point = int(whole[0])
    if point < 0:
        return NotImplemented
    if turn:
        images, channels = x.shape[:2]
        turned.quantized_last.ctypes(
            at, to, scale, point, images, channels, x.size // (images * channels), 0, 255
        )
    else:
        onnx_passes.quantize.ctypes(at, to, scale, zero, 1, 1, x.size, 0, 255, 1)
    return y, real[:1].reshape(()), np.array(point, np.uint8)


def prepared_quantizer(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """DynamicQuantizeLinear."""
    return lambda x: quantized(x, last)


def prepared_float_product(
    state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool
) -> Any:
    """DynamicQuantizeMatMul with a constant right-hand side."""
    _, b, b_scale, *more = [*constants, None, None]
    product, given_later = _float_product(state, b, b_scale, *more[:2]), _given_later(constants, 3, 4)
    if product is None:
        return None

    def run(*inputs: Any) -> Any:
        a = inputs[0]
        found = NotImplemented if a.ndim < 2 or given_later(inputs) else quantized(a, False)
        return found if found is NotImplemented else product(found[0], found[1], int(found[2]))

    return run


#: Operators that lowgemm alone has.
OPERATORS = {(OWN, "ConvIntegerToFloat"): conv_integer_to_float}
#: How its nodes are prepared, as in `prepare.py`.
MAKERS = {
    (OWN, "ConvIntegerToFloat"): prepared_conv,
    (DOMAIN, "MatMulIntegerToFloat"): prepared_product,
    (DOMAIN, "DynamicQuantizeMatMul"): prepared_float_product,
    ("", "DynamicQuantizeLinear"): prepared_quantizer,
}
