"""Quantize-dequantize models as integer ones: ``DequantizeLinear -> Conv -> QuantizeLinear`` becomes
QLinearConv, and so on.

A model of this form states float arithmetic on values that are integers with scales. Engines run its
convolutions and products on the integers, as onnxruntime does; so does this. Only what is certain is
rewritten: scales and zero points must be constants, the operands 8-bit, a bias int32 in units of the
product's scale, and no sum may pass int32 (float sums do not wrap). Everything else stays as it is.

| pattern | becomes |
|---|---|
| DQ, DQ (, DQ bias) -> Conv (-> Relu) -> Q | QLinearConv |
| DQ, DQ -> MatMul (-> Relu) -> Q | QLinearMatMul |
| DQ, DQ -> MatMul | MatMulIntegerToFloat |
| DQ, DQ (, DQ bias) -> Gemm (-> Relu) (-> Q) | QGemm |
| DQ, DQ -> Add, Mul (-> Relu) -> Q | QLinearAdd, QLinearMul |
| DQ -> Sigmoid, LeakyRelu, GlobalAveragePool -> Q | QLinearSigmoid, QLinearLeakyRelu, QLinearGlobalAveragePool |
| DQ, DQ, ... -> Concat -> Q | QLinearConcat |
| DQ of weights of 4 or 2 bits -> MatMul, Gemm | MatMulNBits (`block_weights.py`) |
| DQ -> Reshape, Transpose, Squeeze, Unsqueeze, Flatten -> Q, of one scale and zero point | the same on integers |
| DQ -> Gather, Slice, Expand, Tile, Pad, MaxPool -> Q, likewise | the same on integers |

The sums and products of the fifth line round in another place than the floats do, so that one value in some
ten thousand moves by a step; onnxruntime's optimizer makes the same replacement. Products with weights of 4
or 2 bits stay floats, and are off by no more than float sums are. The last two lines change no value.

Products of dynamic models that go back to float32 are in `dynamic.py`.

A Relu is dropped where the zero point after it is its type's smallest value, because saturation does the
same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lowgemm.checks.values import INT32_MAX
from lowgemm.compat.onnx import dequantize_linear, quantize_linear
from lowgemm.onnx_run import block_weights, branches, dynamic
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.engines import LARGE, attributes_of, copy_of, graphs_of, read_outside
from lowgemm.onnx_run.folded import CHANCE

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
_DOMAINS = ("", "ai.onnx", DOMAIN)
#: Largest bias in units beside weights that are not known: half of int32, so 16,512 products have room.
UNKNOWN_BIAS = 2**30


#: Operators that may run on integers where nothing but the place of elements changes.
_MOVING = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice", "Expand", "Tile", "MaxPool",
)  # fmt: skip


#: Bytes up to which constants are compared by value.
_SMALL = 1 << 10


class Coded(NamedTuple):
    """A quantized tensor: names of integers, scale and zero point, and the constants behind them."""

    name: str
    scale_name: str
    zero_name: str
    scale: np.ndarray
    zero: np.ndarray
    axis: int


def _alike(*tensors: Coded) -> bool:
    """Whether all are bytes of one type with one positive scale each."""
    return len({t.zero.dtype for t in tensors}) == 1 and all(
        t.zero.dtype in _BYTES and t.scale.size == t.zero.size == 1 and float(t.scale.reshape(())) > 0
        for t in tensors
    )


class Rewriter:
    """Looks through one model and rewrites its graphs in place: its own, and branches of an If.

    Parameters
    ----------
    model : ModelProto
        The model, after `branches.lift`.
    held : dict of str to ndarray
        Initializers that were taken out of it. Large new ones come here too.
    table : collection
        Operators of lowgemm's: branches that hold any are rewritten.

    Attributes
    ----------
    graph : GraphProto
        The one that is looked through.
    constants : dict of str to ndarray
        Those of all graphs.
    """

    def __init__(
        self, model: Any, held: dict[str, np.ndarray] | None = None, table: branches.Table = ()
    ) -> None:
        from onnx import numpy_helper

        self.model, self.graph, self.held = model, model.graph, {} if held is None else held
        self._table, self._names = table, branches.Names(model, self.held)
        fed = {i.name for i in self.graph.input}
        own = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        # an initializer that is also an input may be overridden, so it is no constant
        self.constants = {n: v for n, v in (own | self.held).items() if n not in fed}
        self.counts: Counter[str] = Counter()
        self.index()

    def index(self) -> None:
        """Who makes and who reads each name."""
        self.makers = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[Any]] = {}
        self.visible = {o.name for o in self.graph.output}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for inner in graphs_of(node):
                self.visible.update(read_outside(inner))

    def _forget(self, node: Any) -> None:
        """Take a node out of the index."""
        for name in node.output:
            self.makers.pop(name, None)
        for name in node.input:
            self.readers[name] = [n for n in self.readers.get(name, ()) if n is not node]

    def _note(self, node: Any) -> None:
        """Put a node into it."""
        for name in node.output:
            self.makers[name] = node
        for name in node.input:
            self.readers.setdefault(name, []).append(node)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer of a name not in use."""
        from onnx import numpy_helper

        name = self._names.new(name)
        if value.nbytes > LARGE:
            self.held[name] = value
        else:
            self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        self.constants[name] = value
        return name

    def _coding(self, node: Any, tensor: str, default: np.dtype | None) -> Coded | None:
        """Constant scale and zero point of a (de)quantizing node."""
        attributes = {a.name: a.i for a in node.attribute}
        if attributes.get("block_size") or attributes.get("output_dtype") or attributes.get("precision"):
            return None
        scale = self.constants.get(node.input[1])
        zero_name = node.input[2] if len(node.input) > 2 else ""
        if scale is None or scale.dtype != np.float32 or scale.ndim > 1 or not np.isfinite(scale).all():
            return None
        if zero_name:
            zero = self.constants.get(zero_name)
        else:
            zero = None if default is None else np.zeros(scale.shape, default)
        # onnxruntime's tool writes a scale of shape (1,) beside a zero point of shape () for biases
        if zero is None or (zero.shape != scale.shape and not zero.size == scale.size == 1):
            return None
        if not zero_name:
            zero_name = self.constant(f"{node.output[0]}_zero_point", zero)
        return Coded(tensor, node.input[1], zero_name, scale, zero, attributes.get("axis", 1))

    def dequantized(self, name: str) -> Coded | None:
        """The integers behind a tensor, if it is dequantized from any."""
        node = self.makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.domain not in _DOMAINS:
            return None
        held = self.constants.get(node.input[0])
        return self._coding(node, node.input[0], None if held is None else held.dtype)

    def quantized(self, name: str) -> tuple[Coded | None, list[Any]]:
        """How a tensor is quantized, if that is all that happens to it, and the nodes in between and the
        quantizer.
        """
        chain: list[Any] = []
        for _ in range(2):
            readers = self.readers.get(name, [])
            if len(readers) != 1 or name in self.visible:
                return None, []
            node = readers[0]
            chain.append(node)
            if node.op_type == "QuantizeLinear" and node.domain in _DOMAINS and node.input[0] == name:
                coded = self._coding(node, node.output[0], np.dtype(np.uint8))
                if coded is None or coded.scale.size != 1 or coded.zero.dtype not in _BYTES:
                    return None, []
                if len(chain) == 2 and int(coded.zero.reshape(())) != np.iinfo(coded.zero.dtype).min:
                    return None, []
                return coded, chain
            if node.op_type != "Relu":
                return None, []
            name = node.output[0]
        return None, []

    def _bias(self, name: str, scale: np.ndarray) -> str | None:
        """Name of an int32 bias in units of `scale`; None if it is not that.

        The quantizer leaves a bias in float32 that is no initializer, such as one of half precision behind a
        Cast. onnxruntime rounds it to these units then, and so it is done here.
        """
        node = self.makers.get(name)
        real = self.constants.get(name)
        if real is not None and real.dtype == np.float32 and real.ndim == 1 and scale.size in (1, real.size):
            with np.errstate(all="ignore"):
                units = np.rint(real / scale.reshape(-1).astype(np.float32))
            if not (np.abs(units) < INT32_MAX).all():
                return None
            return self.constant(f"{name} rounded", units.astype(np.int32))
        if node is None or node.op_type != "DequantizeLinear":
            return None
        bias = self.constants.get(node.input[0])
        coded = self._coding(node, node.input[0], np.dtype(np.int32))
        if coded is None or bias is None or bias.dtype != np.int32 or coded.zero.any():
            return None
        # the quantizer multiplies in float32; another engine may have used float64
        fits = np.broadcast_shapes(coded.scale.shape, scale.shape) == scale.shape or scale.size == 1
        return node.input[0] if fits and np.allclose(coded.scale, scale, rtol=1e-6, atol=0) else None

    def _fits(self, a: Coded, b: Coded, bias: str, summed: Callable[[int], tuple[int, ...]]) -> bool:
        """Whether no sum can pass int32; `summed` says which axes of `b` are summed over, from how many it
        has.
        """
        extra = np.abs(self.constants[bias].astype(np.int64)).reshape(-1) if bias else np.zeros(1, np.int64)
        held = self.constants.get(b.name)
        if held is None:
            return int(extra.max(initial=0)) <= UNKNOWN_BIAS
        axes = summed(held.ndim)
        if held.ndim <= max(axes, default=0) or b.zero.size not in (1, held.shape[b.axis % held.ndim]):
            return False  # no such product
        shape = [1] * held.ndim
        if b.zero.size > 1:
            shape[b.axis] = -1
        info, zero = np.iinfo(a.zero.dtype), int(a.zero.reshape(()))
        # no difference of bytes passes 255, so most products need no look at the weights
        if (
            np.prod([held.shape[i] for i in axes], dtype=int) * 255**2 + int(extra.max(initial=0))
            <= INT32_MAX
        ):
            return True
        each = np.abs(held.astype(np.int16) - b.zero.astype(np.int16).reshape(shape)).sum(
            axes, dtype=np.int64
        )
        if bias and extra.shape != each.shape:
            extra = extra.max(initial=0)
        return int((max(zero - info.min, info.max - zero) * each + extra).max(initial=0)) <= INT32_MAX

    def _operands(self, node: Any, channel_axis: int | None) -> tuple[Coded, Coded] | None:
        """What both operands of a product are dequantized from, or None if it cannot run on integers; the
        second may have a scale for each index of `channel_axis`.
        """
        a, b = self.dequantized(node.input[0]), self.dequantized(node.input[1])
        if a is None or b is None or a.scale.size != 1:
            return None
        if a.zero.dtype not in _BYTES or b.zero.dtype not in _BYTES:
            return None
        if b.scale.size != 1:
            held = self.constants.get(b.name)
            if held is None or channel_axis is None or b.axis % held.ndim != channel_axis % held.ndim:
                return None
        return a, b

    def convolution(self, node: Any) -> bool:
        """Rewrite a Conv."""
        operands = self._operands(node, 0)
        coded, chain = self.quantized(node.output[0])
        if operands is None or coded is None:
            return False
        a, b = operands
        inputs = [
            a.name,
            a.scale_name,
            a.zero_name,
            b.name,
            b.scale_name,
            b.zero_name,
            coded.scale_name,
            coded.zero_name,
        ]
        bias = ""
        if len(node.input) > 2 and node.input[2]:
            found = self._bias(node.input[2], a.scale * b.scale)
            if found is None:
                return False
            bias = found
            inputs.append(bias)
        if not self._fits(a, b, bias, lambda ndim: tuple(range(1, ndim))):
            return False
        self.replace(node, chain, "QLinearConv", "", inputs, coded.name, list(node.attribute))
        return True

    def product(self, node: Any) -> bool:
        """Rewrite a MatMul."""
        operands = self._operands(node, -1)
        if operands is None:
            return block_weights.product(self, node)
        a, b = operands
        if not self._fits(a, b, "", lambda ndim: (max(ndim - 2, 0),)):
            return False
        coded, chain = self.quantized(node.output[0])
        if coded is None:
            inputs = [a.name, b.name, a.scale_name, b.scale_name, a.zero_name, b.zero_name]
            self.replace(node, [], "MatMulIntegerToFloat", DOMAIN, inputs, node.output[0], [])
            return True
        inputs = [
            a.name,
            a.scale_name,
            a.zero_name,
            b.name,
            b.scale_name,
            b.zero_name,
            coded.scale_name,
            coded.zero_name,
        ]
        self.replace(node, chain, "QLinearMatMul", "", inputs, coded.name, [])
        return True

    def gemm(self, node: Any) -> bool:
        """Rewrite a Gemm."""
        attributes = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
        alpha = np.float32(attributes.get("alpha", 1.0))
        operands = self._operands(node, 0 if attributes.get("transB") else 1)
        if operands is None:
            return block_weights.product(self, node)
        if attributes.get("beta", 1.0) != 1.0:
            return False
        a, b = operands
        bias = ""
        if len(node.input) > 2 and node.input[2]:
            found = self._bias(node.input[2], alpha * a.scale * b.scale)
            # one value, or one a column; `_bias` compares scales without a look at their axis
            if found is None or self.constants[found].size != max(
                self.constants[found].shape[-1:], default=1
            ):
                return False
            bias = found
        if not self._fits(a, b, bias, lambda _: (1 if attributes.get("transB") else 0,)):
            return False
        coded, chain = self.quantized(node.output[0])
        inputs = [a.name, a.scale_name, a.zero_name, b.name, b.scale_name, b.zero_name, bias]
        if coded is not None:
            inputs += [coded.scale_name, coded.zero_name]
        kept = [x for x in node.attribute if x.name != "beta"]
        output = node.output[0] if coded is None else coded.name
        self.replace(node, chain, "QGemm", DOMAIN, inputs, output, kept)
        return True

    def binary(self, node: Any) -> bool:
        """Rewrite an Add or a Mul."""
        a, b = self.dequantized(node.input[0]), self.dequantized(node.input[1])
        coded, chain = self.quantized(node.output[0])
        if a is None or b is None or coded is None or not _alike(a, b, coded):
            return False
        inputs = [a.name, a.scale_name, a.zero_name, b.name, b.scale_name, b.zero_name]
        inputs += [coded.scale_name, coded.zero_name]
        self.replace(node, chain, f"QLinear{node.op_type}", DOMAIN, inputs, coded.name, [])
        return True

    def unary(self, node: Any) -> bool:
        """Rewrite an operator of one tensor."""
        a = self.dequantized(node.input[0])
        coded, chain = self.quantized(node.output[0])
        if a is None or coded is None or not _alike(a, coded):
            return False
        inputs = [a.name, a.scale_name, a.zero_name, coded.scale_name, coded.zero_name]
        self.replace(node, chain, f"QLinear{node.op_type}", DOMAIN, inputs, coded.name, list(node.attribute))
        return True

    def concat(self, node: Any) -> bool:
        """Rewrite a Concat."""
        parts = [self.dequantized(n) for n in node.input]
        coded, chain = self.quantized(node.output[0])
        if coded is None or any(p is None for p in parts) or not _alike(coded, *parts):  # type: ignore[arg-type]
            return False
        inputs = [coded.scale_name, coded.zero_name]
        for part in parts:
            inputs += [part.name, part.scale_name, part.zero_name]  # type: ignore[union-attr]
        self.replace(node, chain, "QLinearConcat", DOMAIN, inputs, coded.name, list(node.attribute))
        return True

    def pooled(self, node: Any) -> bool:
        """Rewrite a MaxPool: on integers, or with the quantizer behind it in front of it. Quantizing keeps
        the order of numbers, so the largest is quantized to the largest.
        """
        if self.moved(node):
            return True
        coded, chain = self.quantized(node.output[0])
        if (
            coded is None
            or len(chain) != 1
            or len(node.output) > 1
            or not 0 < float(coded.scale.reshape(())) < np.inf
        ):
            return False
        quantizer, name = copy_of(chain[0]), self._names.new(f"{coded.name}_before")
        quantizer.input[0], quantizer.output[0] = node.input[0], name
        self.replace(node, chain, "MaxPool", dynamic.OWN, [name], coded.name, list(node.attribute))
        place = list(self.graph.node).index(node)
        self.graph.node.insert(place, quantizer)
        self.index()
        return True

    def padded(self, node: Any) -> bool:
        """Rewrite a Pad: what it puts around the integers is quantized too."""
        _, coded, _ = self._as_before(node)
        attributes = {a.name: a.s.decode() for a in node.attribute if a.name in ("mode", "pads")}
        if coded is None or "pads" in attributes:  # sizes in an attribute: of old operator sets
            return False
        if attributes.get("mode", "constant") == "constant":
            more = list(node.input[2:]) or [""]
            value = self._number(more[0]) if more[0] else np.zeros((), np.float32)
            if value is None:
                return False
            around = quantize_linear(value, coded.scale.reshape(()), coded.zero.reshape(()))
            more[0] = self.constant(f"{coded.name}_around", around)
            del node.input[2:]
            node.input.extend(more)
            self.index()
        return self.moved(node)

    def _number(self, name: str) -> np.ndarray | None:
        """A constant float32 number, or the one that a constant is dequantized to."""
        value = self.constants.get(name)
        coded = self.dequantized(name) if value is None else None
        if coded is not None and coded.name in self.constants and coded.scale.size == 1:
            parts = self.constants[coded.name], coded.scale.reshape(()), coded.zero.reshape(())
            value = dequantize_linear(*parts)
        if value is None or value.size != 1 or value.dtype != np.float32:
            return None
        return value.reshape(())

    def _as_before(self, node: Any) -> tuple[Coded | None, Coded | None, list[Any]]:
        """What an operator's first operand is dequantized from, how its result is quantized, and the
        quantizer; None if these are not the same scale and zero point.
        """
        a = self.dequantized(node.input[0])
        coded, chain = self.quantized(node.output[0])
        if a is None or coded is None or len(chain) != 1 or len(node.output) > 1 or not _alike(a, coded):
            return None, None, []
        if a.scale.reshape(()) != coded.scale.reshape(()) or a.zero.reshape(()) != coded.zero.reshape(()):
            return None, None, []
        return a, coded, chain

    def moved(self, node: Any) -> bool:
        """Let an operator that only moves elements, or takes the largest, do so with the integers."""
        a, coded, chain = self._as_before(node)
        if a is None or coded is None:
            return False
        # of bytes it is lowgemm's own, whatever operator set the model has
        domain = dynamic.OWN if node.op_type == "MaxPool" else ""
        inputs = [a.name, *node.input[1:]]
        self.replace(node, chain, node.op_type, domain, inputs, coded.name, list(node.attribute))
        return True

    def resized(self, node: Any) -> bool:
        """Let a Resize that takes the nearest element, and none from beyond the edge, do so with integers."""
        attributes = attributes_of(node)
        if attributes.get("mode", "nearest") != "nearest":
            return False
        if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return False
        return self.moved(node)

    def replace(
        self,
        node: Any,
        chain: list[Any],
        op: str,
        domain: str,
        inputs: list[str],
        output: str,
        attributes: list[Any],
    ) -> None:
        """Put the integer operator in the node's place; what followed it goes: such a node makes nothing any
        more, until `drop_unread` removes it. The index follows, for to make it anew takes as long as the model
        has nodes.
        """
        self.counts[f"{node.op_type} -> {op}"] += 1
        kept = [copy_of(a) for a in attributes]
        for gone in (node, *chain):
            self._forget(gone)
        node.op_type, node.domain = op, domain
        del node.input[:], node.output[:], node.attribute[:]
        node.input.extend(inputs)
        node.output.append(output)
        node.attribute.extend(kept)
        for gone in chain:
            gone.op_type = ""
            del gone.input[:], gone.output[:]
        self._note(node)

    def drop_identities(self) -> None:
        """Give what an Identity returns and what it reads one name, but where both are results of the graph,
        or one is and the other is not made here.
        """
        outputs = {o.name for o in self.graph.output}
        names: dict[str, str] = {}
        kept = []

        def last(name: str) -> str:
            while name in names:
                name = names[name]
            return name

        for node in self.graph.node:
            first, second = (last(node.input[0]), node.output[0]) if branches.is_identity(node) else ("", "")
            if second and second not in outputs:
                names[second] = first
            elif second and first in self.makers and first not in outputs:
                names[first] = second
            else:
                kept.append(node)
        if names:
            kept = [copy_of(n) for n in kept]
            del self.graph.node[:]
            self.graph.node.extend(kept)
            branches.rename(self.graph, {n: last(n) for n in names})
            self.index()

    def merge_equal(self) -> None:
        """Let one node do what several do: the same operator on the same values. Exporters write a Reshape
        and quantizers a quantization for each reader.
        """
        same: dict[str, str] = {}
        found: dict[Any, Any] = {}
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name in same:
                    node.input[i] = same[name]
            key = self._key(node)
            first = None if key is None else found.setdefault(key, node)
            if first is not None and first is not node:
                same.update(zip(node.output, first.output, strict=True))
        self.drop_unread()

    def _key(self, node: Any) -> Any:
        """What nodes have in common that give equal results; None if that cannot be said of a node."""
        if node.domain not in ("", "ai.onnx") or node.op_type in CHANCE or graphs_of(node):
            return None
        attributes = sorted(a.SerializeToString() for a in node.attribute)
        held = [self.constants.get(n) for n in node.input]
        inputs = [
            n
            if v is None or v.nbytes > _SMALL or v.dtype.kind == "O"
            else (v.dtype.str, v.shape, v.tobytes())
            for n, v in zip(node.input, held, strict=True)
        ]
        return node.op_type, tuple(attributes), tuple(inputs), tuple(bool(o) for o in node.output)

    def drop_unread(self) -> None:
        """Remove nodes that nothing reads any more."""
        read, kept = set(self.visible), []
        for node in reversed(self.graph.node):
            if any(o in read for o in node.output):
                kept.append(node)
                read.update(node.input)
        if len(kept) != len(self.graph.node):
            kept = [copy_of(n) for n in reversed(kept)]
            del self.graph.node[:]
            self.graph.node.extend(kept)
        self.index()

    def run(self) -> Counter[str]:
        """Rewrite all that can be; returns how many of each kind."""
        for graph in branches.graphs(self.model.graph, self._table):
            self.graph = graph
            self.index()
            self._rewrite()
        if self.counts and DOMAIN not in {o.domain for o in self.model.opset_import}:
            self.model.opset_import.add(domain=DOMAIN, version=1)
        return self.counts

    def _rewrite(self) -> None:
        """Rewrite what can be in the graph."""
        rules = {"Conv": self.convolution, "MatMul": self.product, "Gemm": self.gemm, "Concat": self.concat}
        rules |= dict.fromkeys(("Add", "Mul"), self.binary)
        rules |= dict.fromkeys(("Sigmoid", "LeakyRelu", "GlobalAveragePool"), self.unary)
        rules |= dict.fromkeys(_MOVING, self.moved)
        rules["MaxPool"], rules["Pad"], rules["Resize"] = self.pooled, self.padded, self.resized
        rules |= dict.fromkeys(("ConvInteger", "MatMulInteger"), lambda node: dynamic.to_float(self, node))
        self.drop_identities()
        self.merge_equal()
        for node in list(self.graph.node):
            if node.op_type in rules and node.domain in ("", "ai.onnx"):
                rules[node.op_type](node)
        self.drop_unread()
