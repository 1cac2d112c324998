"""Who runs the nodes that are not lowgemm's: onnxruntime where it is installed, else `onnx.reference`.

A `Subgraph` is a part of a model, made into a model of its own when its first inputs are there: only then are
their element types known for certain. What onnxruntime cannot run, node by node `onnx.reference` does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import config
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run import mended
from lowgemm.onnx_run.turned import second
from lowgemm.onnx_run.work import work_of

#: Bytes from which on initializers are held outside of the model's own message.
LARGE = 1 << 10
#: Dtypes of which NumPy's array says all that the model's tensor says.
PLAIN = tuple(np.dtype(t) for t in ("f4", "u1", "i1", "i4", "i8", "f8"))
#: onnxruntime's rewritings that round anew between quantizers: float weights that stand there become int8, and
#: products of int8 weights round their other operand to 8 bits.
_LOSSY = ("WeightBiasQuantization", "QDQSelectorActionTransformer")
#: Settings of `Model(float_nodes=...)`.
CHOICES = ("auto", "onnxruntime", "onnx.reference")


@functools.cache
def onnxruntime() -> Any:
    """The package onnxruntime, or None."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


@functools.cache
def _shared_arena() -> bool:
    """Whether there is memory that all parts take theirs from, and that onnxruntime keeps between runs.

    Memory that the C library gives back to the system costs a page fault for every 4 KiB when it is taken
    again: a sum and a tanh of 2 million numbers took 8 ms so, and 3 ms without.
    """
    package = onnxruntime()
    try:
        info = package.OrtMemoryInfo(
            "Cpu", package.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, package.OrtMemType.DEFAULT
        )
        # as much as is asked for at a time, not twice as much as before
        package.create_and_register_allocator(info, package.OrtArenaCfg(0, 1, -1, -1))
    except Exception:  # an older package, or someone else has registered one, which does as well
        return hasattr(package, "create_and_register_allocator")
    return True


@functools.cache
def kernels() -> frozenset[tuple[str, str]]:
    """Operators, by domain and name, that onnxruntime has a CPU kernel for."""
    if onnxruntime() is None:
        return frozenset()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = state.get_all_opkernel_def() if hasattr(state, "get_all_opkernel_def") else []
    return frozenset((k.domain, k.op_name) for k in found if "CPU" in k.provider)


class Context(NamedTuple):
    """What all parts of a model share.

    Attributes
    ----------
    engine : str
        "onnxruntime" or "onnx.reference".
    opsets : dict
        Version of each domain.
    ir_version : int
        Of the model.
    num_threads : int or None
        For each product, and for onnxruntime's operators.
    optimize : bool
        Whether onnxruntime may rewrite its parts, so that floats may differ in their last bits.
    classes : callable
        Makes lowgemm's operators as `onnx.reference` takes them, for bodies of loops; that package is loaded
        where it runs something, because it takes 9 MiB.
    """

    engine: str
    opsets: dict[str, int]
    ir_version: int
    num_threads: int | None
    optimize: bool = True
    classes: Callable[[], Sequence[type]] = tuple


#: Bytes from which on a float constant is not written into a part.
_OUTSIDE = 1 << 13
#: Work (`work.py`) from which on a part has threads, 2 ms on one. Waking them takes 20 to 40 us, but beside
#: other threads that wait in loops, such as another session's, milliseconds. Two threads, without threads in
#: parts and with them: an LSTM of 2**26.6 in a model that takes 8.6 and 3.3 ms alone, 9.0 and 7.1 beside such a
#: session; MaxPool of 2**22 in one that takes 1.3 and 1.2, beside it 1.6 and 3.2.
MUCH = 1 << 26
#: Elements of a vector that may say one size for each axis.
_SHORT = 8
#: Types of outputs that onnxruntime hands over as NumPy arrays.
_READABLE = re.compile(r"(seq\()?tensor\((float|double|float16|u?int(8|16|32|64)|bool|string)\)\)?")


class _CannotRun(Exception):
    """onnxruntime does not take a part of the model."""


def _elements(values: Sequence[Any]) -> int:
    """Of arrays, and of arrays in sequences."""
    return sum(_elements(v) if isinstance(v, list) else getattr(v, "size", 0) for v in values)


def _kind(value: Any, lengths: bool) -> Any:
    """What a session holds for one kind of input: the number of axes; with `lengths`, of a short vector its
    length.
    """
    axes = getattr(value, "ndim", None)
    return value.shape if lengths and axes == 1 and value.size <= _SHORT else axes


def _value_info(name: str, value: Any, lengths: bool) -> Any:
    """The type of an input, from the value that came. Sizes stay open, the number of axes does not, nor with
    `lengths` what `_kind` says.
    """
    from onnx import helper

    if isinstance(value, list):
        if not value:
            raise _CannotRun(f"{name}: an empty sequence has no type")
        return helper.make_tensor_sequence_value_info(
            name, helper.np_dtype_to_tensor_dtype(value[0].dtype), None
        )
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiubO" or value.dtype.isbuiltin != 1:
        raise _CannotRun(f"{name}: no element type of onnxruntime's")
    kind = 8 if value.dtype.kind == "O" else helper.np_dtype_to_tensor_dtype(value.dtype)
    of_one = _kind(value, lengths)
    return helper.make_tensor_value_info(name, kind, [None] * of_one if isinstance(of_one, int) else of_one)


def _outside(name: str, value: np.ndarray) -> Any:
    """A constant that onnxruntime gets beside the model; inside of it it would be copied four times."""
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "memory"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _untyped(name: str) -> Any:
    from onnx import ValueInfoProto

    return ValueInfoProto(name=name)


def _threads(wanted: int | None) -> int:
    """Threads of onnxruntime's operators: what a product of lowgemm may use at most."""
    if wanted is None:
        wanted = config.num_threads
    if wanted is None:
        import numba

        wanted = numba.get_num_threads()
    return int(wanted)


class Subgraph(NotCopied):
    """Nodes that one engine runs at once.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    inputs, outputs : sequence of str
        Names of what `__call__` takes and returns.
    constants : mapping of str to ndarray
        What the nodes read beside their inputs.
    context : Context
        Of the model.
    """

    instead = "copy the Model"

    def __init__(
        self,
        nodes: Sequence[Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, np.ndarray],
        context: Context,
    ) -> None:
        self.nodes, self.inputs, self.outputs = list(nodes), list(inputs), list(outputs)
        self.context = context
        self._constants = constants
        self._run: Any = None
        #: Of onnxruntime, if it runs all of the nodes.
        self.session: Any = None
        #: Whether it is all of its model, so that no threads of lowgemm's are beside it.
        self.whole = False
        #: Whether its session has threads of its own.
        self.threaded = False
        #: Elements of the inputs that it was decided for.
        self._asked = 0
        #: Who runs each node, once the first inputs came.
        self.runs_on = [context.engine] * len(self.nodes)

    def __call__(self, *values: Any) -> Sequence[Any]:
        """Values of the outputs."""
        if self._run is None:
            self._start(values)
        return self._run(*values)

    # ---- making it ----------------------------------------------------------------------------------------
    def _model(
        self, values: Sequence[Any], typed: bool, outside: Collection[str] = (), lengths: bool = False
    ) -> Any:
        from onnx import helper, numpy_helper

        def make(name: str, value: Any) -> Any:
            return _value_info(name, value, lengths) if typed else _untyped(name)

        graph = helper.make_graph(
            self.nodes, "part", [make(n, v) for n, v in zip(self.inputs, values, strict=True)],
            [_untyped(n) for n in self.outputs],
            [
                _outside(n, v) if n in outside else numpy_helper.from_array(v, n)
                for n, v in self._constants.items()
            ],
        )  # fmt: skip
        opsets = [helper.make_opsetid(d, v) for d, v in self.context.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.context.ir_version)

    def _start(self, values: Sequence[Any]) -> None:
        self.session = None
        if self.context.engine == "onnxruntime":
            try:
                self._run = self._by_onnxruntime(values)
                return
            except _CannotRun as error:
                if len(self.nodes) > 1:
                    self._run = self._one_by_one()
                    return
                if not _is_standard(self.nodes[0]):
                    raise ValueError(_short(error)) from error
        self.runs_on = ["onnx.reference"] * len(self.nodes)
        self._run = self._by_reference(values)

    def _by_onnxruntime(self, values: Sequence[Any], lengths: bool = False) -> Any:
        package = onnxruntime()
        options = package.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and need not stand on the terminal too
        level = package.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if self.context.optimize else level.ORT_DISABLE_ALL
        )
        options.inter_op_num_threads = 1
        threads = _threads(self.context.num_threads)
        self.threaded = threads > 1 and (self.threaded or self.whole or self._works_much(values))
        options.intra_op_num_threads = threads if self.threaded else 1
        # each session would keep an arena of its own, and from its second run on one piece of memory for all
        # of its values, beside those that the first run took from the arena: 8 of 229 MiB in a model of 104
        # parts, for no time that could be measured. A model that is one part with an If takes 0.95 of the time
        # with such a piece.
        options.enable_cpu_mem_arena, options.enable_mem_pattern = False, self.whole
        if _shared_arena():
            options.add_session_config_entry("session.use_env_allocators", "1")
        if not self.whole:
            # its threads wait in a loop for the next operator, but not beside lowgemm's steps
            options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            outside = {
                n: v for n, v in self._constants.items() if v.nbytes > _OUTSIDE and v.dtype == np.float32
            }
            if outside:
                shared = [package.OrtValue.ortvalue_from_numpy(v) for v in outside.values()]
                options.add_external_initializers(list(outside), shared)
            data = self._model(values, True, outside, lengths).SerializeToString()
            session = package.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_LOSSY)
            )
            if hasattr(session, "_model_bytes"):  # it keeps them for a session with other providers
                session._model_bytes = b""
        except _CannotRun:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            if not lengths:  # it takes no Resize whose `sizes` may be of any number
                return self._by_onnxruntime(values, True)
            raise _CannotRun(str(error)) from error
        bare = [o.type for o in session.get_outputs() if not _READABLE.fullmatch(o.type)]
        if bare:
            raise _CannotRun(f"NumPy lacks {', '.join(bare)}")
        names, outputs, run = self.inputs, self.outputs, session.run
        self.session = session
        kinds = [_kind(v, lengths) for v in values]
        may = threads > 1 and not self.threaded

        def call(*given: Any) -> Sequence[Any]:
            # more to do than ever before
            if may and _elements(given) >= 2 * self._asked and self._works_much(given):
                self._start(given)
                return self._run(*given)
            try:
                # onnxruntime would copy them too, element by element
                given = [
                    v if v.__class__ is not np.ndarray or v.flags.c_contiguous else second(v, threads)
                    for v in given
                ]
                found = run(outputs, dict(zip(names, given)))  # noqa: B905 - the program counts them
            except Exception as error:
                if [_kind(v, lengths) for v in given] != kinds:
                    # these are part of the session: other ones need another session
                    self._start(given)
                    return self._run(*given)
                raise ValueError(_short(error)) from error
            return found

        return call

    def _works_much(self, values: Sequence[Any]) -> bool:
        """Whether threads pay."""
        self._asked = max(1, _elements(values))
        named = dict(zip(self.inputs, values, strict=True))
        opsets, version = self.context.opsets, self.context.ir_version
        return work_of(self.nodes, named, self._constants, opsets, version) >= MUCH

    def _one_by_one(self) -> Any:
        """Each node by itself, for a part with nodes that onnxruntime does not take."""
        known = dict(self._constants)
        parts = []
        for i, node in enumerate(self.nodes):
            reads = [n for n in reads_of(node) if n not in known]
            own = {n: known[n] for n in reads_of(node) if n in known}
            writes = [o for o in node.output if o]
            parts.append((Subgraph([node], reads, writes, own, self.context), i))
        names, outputs = self.inputs, self.outputs

        def call(*given: Any) -> Sequence[Any]:
            values = dict(zip(names, given, strict=True))
            for part, i in parts:
                results = part(*[values[n] for n in part.inputs])
                self.runs_on[i] = part.runs_on[0]
                values.update(zip(part.outputs, results, strict=True))
            return [values[n] for n in outputs]

        return call

    def _by_reference(self, values: Sequence[Any]) -> Any:
        from onnx.reference import ReferenceEvaluator

        classes = [*self.context.classes(), *mended.classes(self.context.opsets.get("", 1))]
        evaluator = ReferenceEvaluator(self._model(values, False), new_ops=classes)
        names, outputs = self.inputs, self.outputs

        def call(*given: Any) -> Sequence[Any]:
            try:
                return evaluator.run(outputs, dict(zip(names, given, strict=True)))
            except TypeError as error:  # the evaluator wraps an operator's own error
                if isinstance(error.__cause__, (TypeError, ValueError)):
                    raise error.__cause__ from None
                raise

        return call


def _is_standard(node: Any) -> bool:
    """Whether the onnx package knows an operator."""
    from onnx.defs import has

    return bool(has(node.op_type, node.domain))


def _short(error: Exception) -> str:
    """The first line of what onnxruntime says, without its error code and source file."""
    text = str(error).strip().split("\n")[0]
    head, _, rest = text.partition(" : ")
    while head.startswith("[ONNXRuntimeError]") or head.isdigit() or head.isupper():
        text, (head, _, rest) = rest, rest.partition(" : ")
        if not rest:
            break
    return text or str(error)


def copy_of(node: Any) -> Any:
    """A copy of a node, or of another message of a model."""
    same = type(node)()
    same.CopyFrom(node)
    return same


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes by name; texts as `str`."""
    from onnx.helper import get_attribute_value

    found = {}
    for attribute in node.attribute:
        value = get_attribute_value(attribute)
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [v.decode() for v in value]
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def graphs_of(node: Any) -> list[Any]:
    """The subgraphs that a node has (If, Loop, Scan)."""
    return [
        graph
        for attribute in node.attribute
        if attribute.type in (5, 10)
        for graph in ([attribute.g] if attribute.type == 5 else attribute.graphs)
    ]


def reads_of(node: Any) -> list[str]:
    """Names that a node reads, those of its subgraphs from outside too; each once, in order."""
    names = [n for n in node.input if n]
    for graph in graphs_of(node):
        names += read_outside(graph)
    return list(dict.fromkeys(names))


def read_outside(graph: Any) -> list[str]:
    """Names that a subgraph reads from outside, in order; some more than once."""
    own = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    names = []
    for node in graph.node:
        names += [n for n in reads_of(node) if n not in own]
        own.update(node.output)
    return names + [o.name for o in graph.output if o.name not in own]
