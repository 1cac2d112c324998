"""A quantized ONNX model that runs: the onnx package's evaluator with lowgemm's operators in it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.arguments import as_num_threads
from lowgemm.checks.values import as_array, choice
from lowgemm.jit import pages
from lowgemm.onnx_run import engines
from lowgemm.onnx_run.program import TIMED, Program, label_of
from lowgemm.onnx_run.state import State

if TYPE_CHECKING:  # an extra
    import onnx

_ROUNDINGS = ("onnx", "onnx_reference")


class UnsupportedOperator(ValueError):
    """A model holds operators that neither lowgemm nor the onnx package can run; the message names them."""


class Tensor(NamedTuple):
    """Name, dtype and shape of an input or output; entries of `shape` may be names or None. Outputs may lack
    a type.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None


class Row(NamedTuple):
    """One line of `Model.profile`: an operator, who ran it, how many nodes, seconds in all runs."""

    op: str
    runs_on: str
    nodes: int
    seconds: float


def _package() -> Any:
    """The package onnx."""
    try:
        import onnx
    except ImportError:
        raise ImportError("lowgemm.onnx_run needs the package onnx: pip install onnx") from None
    return onnx


@contextlib.contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """What the onnx package raises for a bad model has a dozen kinds; callers get ValueError or TypeError,
    and the reason.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def _load(source: Any) -> Any:
    """A ModelProto of our own, from a path, bytes or a ModelProto."""
    onnx = _package()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise TypeError(f"source: expected a path, bytes or a ModelProto, got {type(source).__name__}")
    from google.protobuf.message import DecodeError

    try:
        model = (
            onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(os.fspath(source))
        )
    except DecodeError as error:
        raise ValueError(f"source: expected an ONNX model ({error})") from None
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error.filename == os.fspath(source):
            raise
        text = str(error).split("\n")[0]
        raise OSError(f"source: a file of its external data is missing: {text}") from None
    if not model.graph.node:
        raise ValueError("source: expected an ONNX model with operators")
    return model


def _tensor(info: Any) -> Tensor:
    """What the graph says of an input or an output."""
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = info.type.tensor_type
    if not info.type.WhichOneof("value"):
        return Tensor(info.name, None, None)
    if not info.type.HasField("tensor_type"):
        raise UnsupportedOperator(f"model: input or output {info.name!r} is no tensor")
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
            for d in kind.shape.dim
        )
    return Tensor(info.name, np.dtype(tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def _operators(graph: Any) -> Counter[tuple[str, str]]:
    """Every (domain, operator) of a graph, those of its subgraphs too."""
    found: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        found["" if node.domain == "ai.onnx" else node.domain, node.op_type] += 1
        for inner in engines.graphs_of(node):
            found += _operators(inner)
    return found


def _plain(model: Any) -> Any:
    """The model with its local functions written out, and one of the two names of the standard's domain."""
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    if any(o.domain == "ai.onnx" for o in model.opset_import):
        versions = {o.domain: o.version for o in model.opset_import}
        versions[""] = versions.pop("ai.onnx")
        del model.opset_import[:]
        for domain, version in versions.items():
            model.opset_import.add(domain=domain, version=version)
    _rename_domain(model.graph)
    _put_in_order(model.graph)
    return model


def _put_in_order(graph: Any) -> None:
    """Put nodes behind those that make what they read, an If behind what its branches read, in a graph and in
    all inside of it.

    The standard wants them so. But onnxruntime's quantizer leaves out what branches read when it sorts, and
    onnxruntime runs what it writes.

    Raises
    ------
    ValueError
        If nodes read each other's results in a circle.
    """
    for node in graph.node:
        for inner in engines.graphs_of(node):
            _put_in_order(inner)
    nodes = list(graph.node)
    makers = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = [sorted({makers[r] for r in engines.reads_of(n) if r in makers}) for n in nodes]
    if all(j < i for i, before in enumerate(needs) for j in before):
        return
    order: dict[int, None] = {}
    for i in range(len(nodes)):
        waiting = {i: None} if i not in order else {}
        while waiting:
            last = next(reversed(waiting))
            missing = [j for j in needs[last] if j not in order]
            if not missing:
                del waiting[last]
                order[last] = None
            elif missing[0] in waiting:
                raise ValueError(f"model: {label_of(nodes[last])} reads, by others, what it makes")
            else:
                waiting[missing[0]] = None
    ordered = [engines.copy_of(nodes[i]) for i in order]
    del graph.node[:]
    graph.node.extend(ordered)


def _rename_domain(graph: Any) -> None:
    """Give the standard's domain its short name, "", in a graph and in all inside of it."""
    for node in graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
        for inner in engines.graphs_of(node):
            _rename_domain(inner)


def _constants(model: Any) -> dict[str, np.ndarray]:
    """Initializers by name, read-only."""
    from onnx import numpy_helper

    found = {}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        value.flags.writeable = False
        found[tensor.name] = value
    return found


#: ONNX's element types of which NumPy's array says all that the model's tensor says: float32, uint8, int8,
#: int32, int64, float64. Not 4-bit ones: onnx 1.16 reads those as float32.
_PLAIN = (1, 2, 3, 6, 7, 11)


def _packed_bytes(constants: Iterable[np.ndarray]) -> int:
    """What the weights among constants take when they are packed, about: what is not used is not taken from
    the system.
    """
    bytes_ = [v.nbytes for v in constants if v.dtype.itemsize == 1 and v.ndim > 1]
    return sum(n + (1 << 12) for n in bytes_ if n >= 1 << 12)


def _without(model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The model without its larger initializers, and those: nothing is held twice.

    protobuf gives the memory of what is deleted back with the whole model, so this is a copy.
    """
    constants = _constants(model)
    plain = {t.name for t in model.graph.initializer if t.data_type in _PLAIN}
    taken = {n: v for n, v in constants.items() if n in plain and v.nbytes > engines.LARGE}
    return _keeping(model, [t for t in model.graph.initializer if t.name not in taken]), taken


def _keeping(model: Any, initializers: list[Any]) -> Any:
    """A copy of the model with these of its initializers alone."""
    kept = [type(t).FromString(t.SerializeToString()) for t in initializers]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return type(model).FromString(model.SerializeToString())


def _either(first: Any, second: Any, name: str) -> Any:
    """An argument that may be given in two ways, but not in both."""
    if first is not None and second is not None:
        raise TypeError(f"{name}: given twice")
    return second if first is None else first


class Model:
    """A model, ready to run.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        The model. It is copied, not changed.
    fuse : bool
        Run quantize-dequantize patterns on integers (`lowgemm.onnx_run.rewrite`), as onnxruntime does, and
        let onnxruntime optimize the parts that are its own. Without it every node runs as it is written.
    rounding : str
        Of QLinearMatMul and QLinearConv: "onnx" (onnxruntime's arithmetic) or "onnx_reference" (the onnx
        package's).
    num_threads : int, optional
        For each product, as in `lowgemm.gemm`, and for each part that onnxruntime runs.
    float_nodes : str
        Who runs what is not lowgemm's: "onnxruntime", "onnx.reference" (NumPy, slow), or "auto": onnxruntime
        where it is installed.

    Attributes
    ----------
    inputs, outputs : list of Tensor
        Names, dtypes and shapes. Initializers are no inputs, but can be overridden by name where the model
        lists them.
    rewritten : Counter
        How many patterns of each kind now run on integers.

    A copy or a pickle is the rewritten model and the options; it packs its weights anew and has no times in
    `profile`.

    Raises
    ------
    ImportError
        If the package onnx is missing.
    TypeError, ValueError
        If `source` is no model, or an argument does not fit.
    OSError
        If `source` is the path of a file that cannot be read.
    UnsupportedOperator
        If the model holds operators that cannot run; the message names them.

    Examples
    --------
    >>> import numpy as np, pytest
    >>> onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    >>> h = onnx.helper
    >>> graph = h.make_graph(
    ...     [h.make_node("MatMulInteger", ["x", "w"], ["y"])], "g",
    ...     [h.make_tensor_value_info("x", onnx.TensorProto.UINT8, [None, 2])],
    ...     [h.make_tensor_value_info("y", onnx.TensorProto.INT32, [None, 2])],
    ...     [onnx.numpy_helper.from_array(np.array([[1, -1], [2, 0]], np.int8), "w")])
    >>> model = Model(h.make_model(graph))
    >>> model.run(None, {"x": np.array([[100, 200]], np.uint8)})
    [array([[ 500, -100]], dtype=int32)]
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        fuse: bool = True,
        rounding: str = "onnx",
        num_threads: int | None = None,
        float_nodes: str = "auto",
    ) -> None:
        rounding = choice(rounding, "rounding", _ROUNDINGS)
        float_nodes = choice(float_nodes, "float_nodes", engines.CHOICES)
        if float_nodes == "onnxruntime" and engines.onnxruntime() is None:
            raise ImportError(
                "float_nodes='onnxruntime' needs the package onnxruntime: pip install onnxruntime"
            )
        if float_nodes == "auto":
            float_nodes = "onnx.reference" if engines.onnxruntime() is None else "onnxruntime"
        if not isinstance(fuse, (bool, np.bool_)):
            raise TypeError(f"fuse: expected a bool, got {type(fuse).__name__}")
        self._engine, self._fuse, self._mode = float_nodes, bool(fuse), ""
        self.state = State(rounding, as_num_threads(num_threads))
        with _named_errors("model"), np.errstate(all="ignore"):  # scales may be infinite
            self._prepare(_load(source), fuse)

    def __getstate__(self) -> dict[str, Any]:
        """The rewritten model: what else there is holds addresses and identities, and classes made for this
        model.
        """
        from onnx import numpy_helper

        model = type(self._proto)()
        model.CopyFrom(self._proto)
        large = self._large | self._program.unpacked()
        model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in large.items())
        return {
            "model": model.SerializeToString(), "rewritten": self.rewritten,
            "rounding": self.state.rounding, "num_threads": self.state.num_threads,
            "float_nodes": self._engine, "fuse": self._fuse,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["model"], fuse=state["fuse"], rounding=state["rounding"], num_threads=state["num_threads"],
            float_nodes=state["float_nodes"],
        )  # fmt: skip
        self.rewritten = state["rewritten"]

    def _prepare(self, model: Any, fuse: bool) -> None:
        """Rewrite the model, refuse what cannot run, and make the program."""
        from lowgemm.onnx_run import (
            branches,
            contrib,
            dynamic,
            float_mean,
            folded,
            image_means,
            layer_norm,
            lstm,
            max_pool,
            nbits,
            operators,
            rewrite,
            views,
        )

        table = (
            operators.OPERATORS
            | contrib.OPERATORS
            | dynamic.OPERATORS
            | float_mean.OPERATORS
            | layer_norm.OPERATORS
            | image_means.OPERATORS
            | lstm.OPERATORS
            | max_pool.OPERATORS
            | nbits.OPERATORS
        )
        model = _plain(model)
        branches.constants_to_initializers(model)
        branches.lift(model, table)
        branches.decide_all(model, table)
        model, large = _without(model)
        context = engines.Context(
            self._engine, {o.domain: o.version for o in model.opset_import}, model.ir_version,
            self.state.num_threads, fuse,
        )  # fmt: skip
        self.rewritten: Counter[str] = Counter()
        if fuse:
            folded.fold(model, large, context._replace(optimize=False), self.state, table)
            self.rewritten = rewrite.Rewriter(model, large, table).run()
        given = {i.name for i in model.graph.input}
        self.outputs = [_tensor(o) for o in model.graph.output]
        read = {n for node in model.graph.node for n in engines.reads_of(node)} | {
            t.name for t in self.outputs
        }
        large = {n: v for n, v in large.items() if n in read or n in given}
        if any(t.name not in read | given and t.ByteSize() > engines.LARGE for t in model.graph.initializer):
            model = _keeping(model, [t for t in model.graph.initializer if t.name in read | given])
        constants = _constants(model) | large
        self.inputs = [_tensor(i) for i in model.graph.input if i.name not in constants]
        #: Of each: dtype, number of axes (-1: not said), and sizes of axes that are said.
        self._forms = {
            t.name: (t.dtype, -1, ()) if t.shape is None else
            (t.dtype, len(t.shape), [(i, n) for i, n in enumerate(t.shape) if isinstance(n, int)])
            for t in self.inputs
        }  # fmt: skip
        self._overridable = {n: v for n, v in constants.items() if n in given}
        self._refuse_unknown(model, table)
        self._proto = model
        context = context._replace(
            opsets={o.domain: o.version for o in model.opset_import},
            classes=lambda: [operators.evaluator_class(*key, function, self.state) for key,
                             function in table.items()],
        )  # fmt: skip
        self.state.add_constants(constants.values())
        with pages.together(_packed_bytes(constants.values())):
            self._program = Program(
                model.graph.node, {n: v for n, v in constants.items() if n not in given},
                [*(t.name for t in self.inputs), *self._overridable], [t.name for t in self.outputs],
                table=table, either=views.OPERATORS, state=self.state, context=context,
            )  # fmt: skip
        parts = [step.part for step in self._program.steps]
        if len(parts) == 1 and parts[0] is not None:
            parts[0].whole = True
        packed = self._program.all_packed()
        self._large = {n: v for n, v in large.items() if n not in packed}

    def _refuse_unknown(self, model: Any, table: Any) -> None:
        """Name everything that nothing can run, instead of the first of it at some later time."""
        found = sorted(_operators(model.graph).items())
        unknown = {key: n for key, n in found if key not in table}
        if unknown and self._engine == "onnxruntime":
            unknown = {key: n for key, n in unknown.items() if key not in engines.kernels()}
        if unknown:  # the onnx package's list takes 7 MiB
            from onnx.defs import has

            unknown = {key: n for key, n in unknown.items() if not has(key[1], key[0])}
        if unknown:
            text = ", ".join(
                f"{domain or 'ai.onnx'}::{op} ({count} node{'s' * (count > 1)})"
                for (domain, op), count in unknown.items()
            )
            more = ""
            if self._engine != "onnxruntime" and any(domain == "com.microsoft" for domain, _ in unknown):
                more = "; onnxruntime may run them (pip install onnxruntime)"
            raise UnsupportedOperator(f"model: these operators are not supported: {text}{more}")

    def _fit(self, feeds: dict[str, Any]) -> bool:
        """Whether these are arrays as they have to be, and all of them: what a caller who runs a model again
        and again has.
        """
        if feeds.keys() != self._forms.keys():
            return False
        for name, a in feeds.items():
            dtype, axes, sizes = self._forms[name]
            if type(a) is not np.ndarray or a.dtype != dtype or a.ndim != axes:
                return False
            for i, n in sizes:
                if a.shape[i] != n:
                    return False
        return True

    def _feeds(self, feeds: Any, argument: str) -> dict[str, np.ndarray]:
        """Inputs as arrays, checked against what the model declares."""
        if not isinstance(feeds, Mapping):
            raise TypeError(f"{argument}: expected a dict of arrays by name, got {type(feeds).__name__}")
        if type(feeds) is dict and self._fit(feeds):
            return feeds
        declared = {t.name: t for t in self.inputs}
        extra = set(feeds) - set(declared) - set(self._overridable)
        missing = set(declared) - set(feeds)
        if extra or missing:
            text = [
                f"{word} {', '.join(sorted(names))}"
                for word, names in (("missing", missing), ("unknown", extra))
                if names
            ]
            raise ValueError(f"{argument}: expected {', '.join(declared) or 'nothing'}; {'; '.join(text)}")
        found = {}
        for name, value in feeds.items():
            a = as_array(value, name, "an array", declared[name].dtype if name in declared else None)
            if name in declared:
                want = declared[name]
                if want.dtype == object and a.dtype.kind in "SU":  # strings of NumPy's own
                    a = a.astype(str).astype(object)
                if want.dtype is not None and a.dtype != want.dtype:
                    raise TypeError(f"{name}: expected dtype {want.dtype}, got {a.dtype}")
                if want.shape is not None and (
                    a.ndim != len(want.shape)
                    or any(isinstance(n, int) and n != m for n, m in zip(want.shape, a.shape, strict=True))
                ):
                    raise ValueError(f"{name}: expected shape {want.shape}, got {a.shape}")
            found[name] = a
        return found

    def _names(self, outputs: Any, argument: str) -> list[str]:
        """Names of the outputs that are asked for."""
        known = [t.name for t in self.outputs]
        if outputs is None:
            return known
        try:
            names = [] if isinstance(outputs, str) else list(outputs)
        except TypeError:  # not only what has no `__iter__`: an array without dimensions has one
            names = [outputs]
        if isinstance(outputs, str) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"{argument}: expected a list of names or None, got {outputs!r}")
        unknown = set(names) - set(known)
        if unknown:
            raise ValueError(f"{argument}: expected names of outputs, got {', '.join(sorted(unknown))}")
        return names

    def run(
        self,
        output_names: Sequence[str] | Mapping[str, ArrayLike] | None = None,
        input_feed: Mapping[str, ArrayLike] | Sequence[str] | None = None,
        *,
        feeds: Mapping[str, ArrayLike] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Run the model.

        The order of the arguments is that of onnxruntime and of `onnx.reference`.

        Parameters
        ----------
        output_names : sequence of str, optional
            Which outputs, all of the model's if left out or None.
        input_feed : dict of array_like
            Inputs by name.
        feeds, outputs
            Other names of the two. They may also be given in the order ``run(feeds, outputs)``: a dict is
            always the inputs.

        Returns
        -------
        list of ndarray

        Raises
        ------
        TypeError, ValueError
            If an input does not fit, or an operator's operands do not; the message names it.
        """
        # what a caller who runs a model again and again gives: here each line counts, since the model itself
        # takes the caches from Python's code, and 10 us of it become 30
        plain = output_names is None and outputs is None and type(input_feed) is dict and feeds is None
        if plain and not self._overridable and input_feed.keys() == self._forms.keys():  # type: ignore[union-attr]
            given = [input_feed[n] for n in self._program.inputs]  # type: ignore[index, call-overload]
            found = None if self._mode else self._again(given)
            if found is not None:
                return found
            if self._fit(input_feed):  # type: ignore[arg-type]
                return self._run(given)
        old = isinstance(output_names, Mapping) or feeds is not None or outputs is not None
        if isinstance(output_names, Mapping):
            if isinstance(input_feed, Mapping):
                raise TypeError(
                    "output_names, input_feed: expected names and one dict of inputs, got two dicts"
                )
            output_names, input_feed = input_feed, output_names
        fed = self._feeds(_either(input_feed, feeds, "feeds"), "feeds" if old else "input_feed")
        names = self._names(_either(output_names, outputs, "outputs"), "outputs" if old else "output_names")
        if not names:
            return []
        values = [fed.get(n, self._overridable.get(n)) for n in self._program.inputs]
        made = dict(zip(self._program.outputs, self._run(values), strict=True))
        return [made[n] for n in names]

    def _again(self, values: list[Any]) -> list[Any] | None:
        """The outputs of the program, if values are like those of the last run; else None."""
        try:
            return self._program.run_again(values)
        except Exception:
            with _named_errors("model"):
                raise

    def _run(self, values: list[Any]) -> list[Any]:
        """The outputs of the program."""
        try:
            return self._program.owned(self._program.run(values, self._mode), values)
        except Exception:
            with _named_errors("model"):
                raise

    def timed(
        self,
        output_names: Sequence[str] | Mapping[str, ArrayLike] | None = None,
        input_feed: Mapping[str, ArrayLike] | Sequence[str] | None = None,
        *,
        feeds: Mapping[str, ArrayLike] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """`run`, of the same arguments, with the time of each operator added to `profile`."""
        return self._run_so(TIMED, output_names, input_feed, feeds=feeds, outputs=outputs)

    def _run_so(self, mode: str, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """`run` in a mode of `Program.run`."""
        self._mode = mode
        try:
            return self.run(*args, **kwargs)
        finally:
            self._mode = ""

    @property
    def profile(self) -> list[Row]:
        """Each kind of operator: who runs it, how many nodes, and the time of the `timed` runs; slowest
        first.

        The nodes that onnxruntime runs are timed together, because it runs many at once: their time stands in
        the row ``parts``, and their own rows have none (NaN).
        """
        count: Counter[tuple[str, str]] = Counter()
        seconds: Counter[tuple[str, str]] = Counter()
        for step in self._program.all_steps():
            for node, owner in zip(step.nodes, step.owners(), strict=True):
                key = node.op_type if not node.domain else f"{node.domain}::{node.op_type}", owner
                count[key] += 1
                if len(step.nodes) == 1:
                    seconds[key] += step.seconds
                else:
                    seconds[key] = float("nan")
            if len(step.nodes) > 1:
                key = "parts", step.owners()[0]
                count[key] += 1
                seconds[key] += step.seconds
        rows = [Row(*key, count[key], seconds[key]) for key in count]
        return sorted(rows, key=lambda r: (np.isnan(r.seconds), -r.seconds))

    @property
    def packed_bytes(self) -> int:
        """Bytes of weights that were packed so far, and stay packed."""
        return self.state.packed_bytes

    def __repr__(self) -> str:
        return f"Model(inputs={[t.name for t in self.inputs]}, outputs={[t.name for t in self.outputs]})"
