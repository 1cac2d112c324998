"""A graph as a list of steps on numbered values: made once, run many times.

Nodes of lowgemm's are steps of their own. The others are gathered into as few parts as can be (`turns.py`),
each of which one engine runs at once (`engines.Subgraph`). A value is let go of after its last reader.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine import threads
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.caches import cache_sizes
from lowgemm.onnx_run import (
    branches,
    chain_groups,
    chains,
    copies,
    dynamic,
    float_mean,
    folded,
    lstm,
    max_pool,
    sizes,
    tables,
    tape,
    views,
)
from lowgemm.onnx_run.convolution import PackedFilters
from lowgemm.onnx_run.engines import Context, Subgraph, attributes_of, copy_of, read_outside, reads_of
from lowgemm.onnx_run.frame import Frames, Own, Seen
from lowgemm.onnx_run.lstm_prepared import PackedDirections
from lowgemm.onnx_run.nbits import PackedBlocks
from lowgemm.onnx_run.prepare import prepared
from lowgemm.onnx_run.state import NotOurs, Packed, State
from lowgemm.onnx_run.turns import EITHER, OURS, THEIRS, deferred, phases, with_neighbours

#: Operators whose first operand is an image.
CONVOLUTIONS = ("QLinearConv", "ConvInteger", "ConvIntegerToFloat", "ConvSums")
#: Seconds from which on no thread of lowgemm's waits awake beside a part.
LONG_PART = 2e-4
#: Bytes from which on a table that rows are taken from is an input of its part.
TABLE = 1 << 16
#: Which inputs of an operator are weights that a prepared node holds packed.
WEIGHTS = {
    "QLinearConv": (3,), "ConvInteger": (1,), "ConvSums": (1,), "MatMulInteger": (1,), "QLinearMatMul": (3,),
    "QGemm": (3,), "MatMulIntegerToFloat": (1,), "DynamicQuantizeMatMul": (1,), "MatMulNBits": (1,),
    "MatMulSums": (1,), "DynamicQuantizeLSTM": (1, 2),
}  # fmt: skip
#: Forms of such weights.
PACKED = (PackedRhs, PackedFilters, PackedBlocks, PackedDirections)
#: Contributed operators that onnxruntime runs where their attributes or types are not lowgemm's.
SHARED = ("DynamicQuantizeLSTM", "MatMulNBits")
#: Operators that bring sums to float32, into memory that they make.
FLOAT_PRODUCTS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")
#: How a program may run, but as it is meant to (`Program.run`).
TIMED, ALONE = "timed", "alone"
#: Operators that say anew where elements lie, and leave them in order.
VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


class _Step:
    """One call: of a node's function, or of a part that an engine runs.

    Attributes
    ----------
    run : callable
        Takes the values of `inputs`, returns those of `outputs`.
    inputs, outputs, frees : tuple of int
        Numbers of values; `frees` are those that nothing reads later.
    nodes : list of NodeProto
        What it does.
    label : str
        What an error begins with.
    weights : list of str
        The constants that it takes packed.
    last : float
        Seconds of the last run, of a part.
    record : callable or None
        Takes the step down, for a `tape.Group`.
    moves : bool
        Whether it can be taken down and only says anew where elements lie, or computes with sizes.
    data : int or None
        How many inputs are data, if not all; the others are sizes.
    sized : bool
        Whether it computes with sizes.
    branches : bool
        Whether it is an If: `run` takes what `Program.run_inside` takes too.
    """

    __slots__ = (
        "branches",
        "data",
        "frees",
        "inputs",
        "label",
        "last",
        "moves",
        "nodes",
        "outputs",
        "part",
        "record",
        "run",
        "runs_on",
        "seconds",
        "sized",
        "weights",
    )

    def __init__(
        self, run: Callable[..., Any], nodes: list[Any], label: str, part: Subgraph | None = None
    ) -> None:
        self.run, self.nodes, self.label, self.part = run, nodes, label, part
        self.inputs: tuple[int, ...] = ()
        self.outputs: tuple[int, ...] = ()
        self.frees: tuple[int, ...] = ()
        self.seconds = self.last = 0.0
        self.runs_on = "lowgemm"
        self.weights: list[str] = []
        self.record: Any = None
        self.moves, self.sized, self.branches = False, False, False
        self.data: int | None = None

    def gets_the_cores(self) -> bool:
        """Whether the team of threads sleeps while a part runs."""
        return self.last > LONG_PART or (self.part is not None and self.part.threaded)

    def owners(self) -> list[str]:
        """Who runs each of the nodes."""
        return [self.runs_on] * len(self.nodes) if self.part is None else self.part.runs_on


class _Group:
    """Steps that follow one another, and run as few calls if they can."""

    __slots__ = ("group", "members")

    def __init__(self, members: list[_Step], group: tape.Group) -> None:
        self.members, self.group = members, group

    def run(self, first: int, values: list[Any], timed: bool = False) -> tuple[int, Any]:
        """Run the members from `first` on that are one call. Returns the first that is not, and what was
        recorded, or None if they did not run: else the values are filled in. `timed`: their passes run one
        by one, and each member gets the time of its own.
        """
        recorded = self.group.following(first, values)
        seconds: list[float] | None = [] if timed else None
        made = None if recorded.tape is None else recorded.tape.run(values, seconds)
        if made is None:
            return recorded.end, None
        if seconds is not None:
            begin = 0
            for step, end in zip(self.members[first : recorded.end], recorded.passes, strict=True):
                step.seconds += sum(seconds[begin:end])
                begin = end
        for n, value in (*zip(recorded.outputs, made, strict=True), *recorded.fixed):
            values[n] = value
        for step in self.members[first : recorded.end]:
            for n in step.frees:
                values[n] = None
        return recorded.end, recorded


class _Held:
    """A team of threads that is held (`jit/team.py`), or not for a while."""

    def __init__(self, team: Any, helpers: int) -> None:
        self.team, self.helpers, self.now = team, helpers, False
        self.hold()

    def hold(self) -> None:
        """Hold it, if it is not held."""
        if not self.now:
            self.team.hold(self.helpers)
            self.now = True

    def let_go(self) -> None:
        """Let go of it, if it is held."""
        if self.now:
            self.team.let_go()
            self.now = False


def _beside(held: _Held, step: _Step, run: Callable[[], bool]) -> bool:
    """Run a part of the engine's, without the team if it takes long or has threads of its own."""
    begin = time.perf_counter()
    if step.gets_the_cores():
        held.let_go()
    done = run()
    step.last = time.perf_counter() - begin
    held.hold()
    return done


def _only_gathered(name: str, nodes: Sequence[Any]) -> bool:
    """Whether all that nodes do with a value is to take rows of it."""
    readers = [n for n in nodes if name in reads_of(n)]
    return all(n.op_type == "Gather" and not n.domain and name not in n.input[1:] for n in readers)


def _ahead(steps: list[_Step]) -> list[_Step]:
    """Steps with those that only say anew where elements lie, of values that are there before steps that can
    be recorded, in front of these.
    """
    found: list[_Step] = []
    for recorded, run in itertools.groupby(steps, key=lambda s: s.record is not None):
        later: list[_Step] = []
        made: set[int] = set()
        for step in run:
            if recorded and step.moves and not step.sized and made.isdisjoint(step.inputs):
                found.append(step)
            else:
                later.append(step)
                made.update(step.outputs)
        found += later
    return found


def _read_by(nodes: Sequence[Any]) -> set[str]:
    return {r for n in nodes for r in reads_of(n)}


def label_of(node: Any) -> str:
    """How an error names a node."""
    name = f" {node.name!r}" if node.name else ""
    return f"{node.op_type}{name}, output {next((o for o in node.output if o), '')}"


class Program(NotCopied):
    """A graph, ready to run.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping of str to ndarray
        Values that no run changes.
    inputs, outputs : sequence of str
        Names.
    table : mapping
        Functions of lowgemm's nodes by (domain, operator); ``function(state, *inputs, **attributes)``.
    either : mapping
        Likewise for nodes that either side may run.
    state : State
        Settings and packed weights.
    context : Context
        For the engine.
    elsewhere : collection of str
        Constants that another program reads as well, or an output: they are not held packed alone.
    computed : collection of str
        Constants that nodes made.
    """

    instead = "copy the Model"

    def __init__(
        self,
        nodes: Sequence[Any],
        constants: Mapping[str, np.ndarray],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        table: Mapping[tuple[str, str], Callable[..., Any]],
        either: Mapping[tuple[str, str], Callable[..., Any]],
        state: State,
        context: Context,
        elsewhere: Collection[str] = (),
        computed: Collection[str] = (),
    ) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.table, self.either, self.state, self.context = table, either, state, context
        self.constants = dict(constants)
        self._shared = False  # whether any job of the last run was one for several threads
        self._number: dict[str, int] = {"": 0}
        #: Constants that nodes make.
        self._computed = set(computed)
        self._elsewhere = {*elsewhere, *outputs}
        #: How many nodes read a value.
        self._readers = Counter(r for n in nodes for r in reads_of(n))
        #: Programs of branches.
        self.inner: list[Program] = []
        nodes = max_pool.of_bytes(self._folded(list(nodes)), self.constants)
        self._chains: dict[str, chain_groups.Group] = {}
        self._sizes: set[str] = set()
        self._copies = copies.Found(set(), set())
        self._tables: dict[str, tables.Table] = {}
        if context.optimize:
            nodes = self._tabled(nodes)
            if not numba.config.DISABLE_JIT:
                nodes = [more for n in nodes for more in dynamic.split(n, self.constants)]
                nodes = dynamic.split_products(
                    nodes, self.constants, lambda n: chain_groups.is_elementwise(n, self.constants)
                )
                made = {o for n in nodes if n.op_type in FLOAT_PRODUCTS and n.domain for o in n.output}
                sums = {n.output[0] for n in nodes if n.op_type == "MatMulSums"}
                made |= {
                    n.output[0] for n in nodes if n.op_type == chain_groups.SCALED and n.input[0] in sums
                }
                self._sizes = sizes.find(nodes, self.constants)
                scaled = {n.output[0] for n in nodes if n.op_type == chain_groups.SCALED}
                states = {o for n in nodes if n.op_type == "DynamicQuantizeLSTM" for o in n.output if o}
                self._copies = copies.find(nodes, self.constants, self._sizes, made | scaled, states)
                nodes = self._chained(nodes, made)
        self._last = self._convolved(nodes)
        self.steps: list[_Step] = []
        kinds = [self._kind(n) for n in nodes]
        if context.optimize and context.engine == "onnxruntime":
            kinds = with_neighbours(nodes, kinds)
        moved = self._copies.made | {
            o for n in nodes if n.op_type in VIEWS and not n.domain for o in n.output
        }
        turns = deferred(phases(nodes, kinds), nodes, self._sizes, moved if context.optimize else ())
        for t, (side, taken) in enumerate(turns):
            if side == OURS:
                self.steps += [self._own(nodes[i]) for i in taken]
            else:
                later = {n for _, more in turns[t + 1 :] for i in more for n in reads_of(nodes[i])}
                self.steps.append(self._part([nodes[i] for i in taken], later | set(self.outputs)))
        self._finish()

    # ---- making it ----------------------------------------------------------------------------------------
    def _kind(self, node: Any) -> str:
        key = (node.domain, node.op_type)
        if (key in lstm.OPERATORS and lstm.is_theirs(node)) or self._is_of_16_bits(node):
            return THEIRS
        if key in self.table or key in ((dynamic.OWN, "Chain"), (dynamic.OWN, "Table")):
            return OURS
        if key in self.either or not (self._sizes | self._copies.made).isdisjoint(node.output):
            return EITHER
        return OURS if branches.is_if(node) and branches.holds_ours(node, self.table) else THEIRS

    def _is_of_16_bits(self, node: Any) -> bool:
        """Whether a quantizer or dequantizer of 16-bit numbers goes to onnxruntime.

        What surrounds it is float arithmetic of onnxruntime's, so as a step of lowgemm's it would part that.
        """
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            return False
        point = self.constants.get(node.input[2])
        of_16_bits = point is not None and point.dtype in (np.uint16, np.int16)
        return of_16_bits and self.context.optimize and self.context.engine == "onnxruntime"

    def _tabled(self, nodes: list[Any]) -> list[Any]:
        """Nodes with what is a table of 256 as one node."""
        from onnx import helper

        kept, found = tables.find(nodes, self.constants, self.outputs)
        self._tables = {t.output: t for t in found}
        return [
            helper.make_node("Table", [n.source], [n.output], domain=dynamic.OWN)
            if isinstance(n, tables.Table)
            else n
            for n in kept
        ]

    def _table(self, node: Any) -> _Step:
        table = self._tables[node.output[0]]
        program = Program(
            table.nodes, self.constants, [table.source], [table.output], table=self.table, either=self.either,
            state=self.state, context=self.context._replace(optimize=False),
        )  # fmt: skip
        look_up = tables.LookUp(lambda x: program.run([x])[0], self.state.num_threads)
        label = f"table of {len(table.nodes)} nodes from {label_of(table.nodes[0])}"
        step = _Step(look_up, table.nodes, label)
        if not numba.config.DISABLE_JIT:
            step.record = look_up.record
        step.inputs, step.outputs = self._numbers(node.input), self._numbers(node.output)
        return step

    def _chained(self, nodes: list[Any], made: set[str]) -> list[Any]:
        """Nodes with each chain of float operators as one node, in the place of its last; `made` are results
        of products.
        """
        sums = {n.output[0] for n in nodes if n.op_type in ("ConvSums", "MatMulSums")}
        scaled = {n.output[0] for n in nodes if n.op_type == chain_groups.SCALED}
        sources = made | self._copies.begin
        nodes = chain_groups.without_casts(nodes, sources | scaled, set(self.outputs))
        found = chain_groups.find(nodes, self.constants, sources, made | sums, set(self.outputs))
        nodes = self._replaced(nodes, found)
        floats = {o for group in found for o in group.outputs} | made
        nodes = chain_groups.with_own_rows(nodes, self.constants, floats)
        ranged = {o for group in found for o in group.ranged}
        nodes = [self._in_range(n, ranged) for n in nodes]
        nodes = self._replaced(nodes, chain_groups.find_coded(nodes, self.constants, set(self.outputs)))
        return float_mean.of_chains(nodes, self.constants)

    def _replaced(self, nodes: list[Any], found: list[chain_groups.Group]) -> list[Any]:
        """Nodes with each of the chains as one, where its last operator was that makes an output of it."""
        from onnx import helper

        place: dict[int, Any] = {}
        gone: set[int] = set()
        for group in found:
            inputs = [n for n in group.inputs if n not in self.constants]
            outputs = [*group.outputs, *(f"{o} range" for o in group.ranged)]
            node = helper.make_node("Chain", inputs, outputs, domain=dynamic.OWN)
            self._chains[group.outputs[0]] = group
            place[id(group.nodes[-1])] = node
            # a dequantizer may be needed elsewhere too; if not, its step is dropped
            gone.update(id(n) for n in group.nodes if n.op_type != "DequantizeLinear")
        return [place.get(id(n), n) for n in nodes if id(n) in place or id(n) not in gone]

    def _in_range(self, node: Any, ranged: set[str]) -> Any:
        """A DynamicQuantizeLinear of a chain's result with the range that the chain found."""
        from onnx import helper

        if node.op_type != "DynamicQuantizeLinear" or node.input[0] not in ranged:
            return node
        inputs = [node.input[0], f"{node.input[0]} range"]
        return helper.make_node(
            "QuantizeInRange", inputs, list(node.output), name=node.name, domain=dynamic.OWN
        )

    def _chain(self, node: Any) -> _Step:
        group = self._chains[node.output[0]]
        constants = {n: self.constants[n] for n in group.inputs if n in self.constants}
        if any(n.op_type in ("DequantizeLinear", "QuantizeLinear") for n in group.nodes):
            as_written = Program(
                group.nodes, constants, list(node.input), group.outputs, table=self.table, either=self.either,
                state=self.state, context=self.context._replace(optimize=False),
            )  # fmt: skip
            return self._chain_step(node, group, lambda *values: as_written.run(values))
        own = [n for n in group.nodes if n.op_type == chain_groups.SCALED]
        rest = [n for n in group.nodes if n.op_type != chain_groups.SCALED]
        made = {o for n in rest for o in n.output}
        reads = dict.fromkeys(r for n in rest for r in reads_of(n) if r not in made and r not in constants)
        outputs = [o for o in group.outputs if o in made]
        part = Subgraph(
            rest,
            list(reads),
            outputs,
            {n: v for n, v in constants.items() if n in _read_by(rest)},
            self.context,
        )

        def otherwise(*values: Any) -> Sequence[Any]:
            known = constants | dict(zip(node.input, values, strict=True))
            for scaled in own:
                known[scaled.output[0]] = dynamic.scaled(self.state, *[known[n] for n in scaled.input])
            if rest:
                known.update(zip(part.outputs, part(*[known[n] for n in part.inputs]), strict=True))
                step.runs_on = part.runs_on[0]
            return [known[o] for o in group.outputs]

        step = self._chain_step(node, group, otherwise)  # `otherwise` notes in it who ran
        return step

    def _chain_step(
        self, node: Any, group: chain_groups.Group, otherwise: Callable[..., Sequence[Any]]
    ) -> _Step:
        chain = chains.Chain(group, self.constants, otherwise, self.state.num_threads)
        step = _Step(
            chain,
            group.nodes,
            f"chain of {len(group.nodes)} nodes from {label_of(group.nodes[0])}",
        )
        step.record = chain.record
        step.inputs, step.outputs = self._numbers(node.input), self._numbers(node.output)
        return step

    def _convolved(self, nodes: list[Any]) -> set[str]:
        """Values that convolutions and other operators of lowgemm's alone read: their channels should be last
        in memory.
        """
        convolved, others = set(), set(self.outputs)
        for node in nodes:
            if (node.domain, node.op_type) not in self.table and node.op_type != "Table":
                others.update(reads_of(node))
            elif node.op_type in CONVOLUTIONS and not node.domain.startswith("com"):
                convolved.add(node.input[0])
        return convolved - others

    def _folded(self, nodes: list[Any]) -> list[Any]:
        """Without the nodes of lowgemm's that constants alone decide; what they give becomes a constant."""
        kept = []
        for node in nodes:
            key = (node.domain, node.op_type)
            names = [n for n in node.input if n]
            function = self.table.get(key) or self.either.get(key)
            made = {}
            if function and names and all(n in self.constants for n in names):
                made = folded.results_of(node, function, self.constants, self.state)
            for name, value in made.items():
                self.constants[name] = value
                self._computed.add(name)
                value.flags.writeable = False  # an output that is a constant is copied for the caller
            if not made:
                kept.append(node)
        return kept

    def _numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(self._number.setdefault(n, len(self._number)) for n in names)

    def _own(self, node: Any) -> _Step:
        if branches.is_if(node):
            return self._if(node)
        if node.domain == dynamic.OWN and node.op_type in ("Chain", "Table"):
            return self._chain(node) if node.op_type == "Chain" else self._table(node)
        key = node.domain, node.op_type
        attributes, state = attributes_of(node), self.state
        size = not self._sizes.isdisjoint(node.output)
        copied = not self._copies.made.isdisjoint(node.output)
        if copied:
            function = copies.function_of(node.op_type)
        else:
            function = self.table.get(key) or self.either.get(key) or sizes.OPERATORS[key]
        constants = [self.constants.get(n) for n in node.input]
        last = node.output[0] in self._last
        fast = prepared(key, state, constants, attributes, last)

        def run(*inputs: Any) -> tuple[Any, ...]:
            if fast is not None:
                result = fast(*inputs)
                if result is not NotImplemented:
                    return result if type(result) is tuple else (result,)
            try:
                result = function(state, *inputs, **attributes)
            except NotOurs:
                return self._theirs(step, inputs)
            if type(result) is np.ndarray:
                return (result,)
            results = result if isinstance(result, tuple) else (result,)
            return tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in results)

        step = _Step(run, [node], label_of(node))
        step.inputs, step.outputs = self._numbers(node.input), self._numbers(node.output)
        step.record = getattr(fast, "record", None)
        if copied:
            step.record = copies.recorded(node.op_type, attributes, state.num_threads)
            step.data = copies.data_of(node.op_type, len(node.input))
        elif fast is None and (key in self.either or size):

            def compute(*inputs: Any) -> Any:
                return function(state, *inputs, **attributes)

            step.moves, step.sized = True, size
            step.data = 0 if size and node.op_type not in sizes.ASKING else 1
            step.record = sizes.recorded(compute, bool(step.data)) if size else views.recorded(compute)
        if fast is not None and node.op_type in WEIGHTS:
            step.weights = [node.input[i] for i in WEIGHTS[node.op_type]]
        return step

    def _theirs(self, step: _Step, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Give a node whose element types lowgemm has no arithmetic for to the engine, now and later."""
        node = step.nodes[0]
        if node.domain == dynamic.OWN:  # the standard's operator under another name
            node = copy_of(node)
            node.domain = ""
        if node.domain and (node.op_type not in SHARED or self.context.engine != "onnxruntime"):
            types = ", ".join("none" if i is None else str(i.dtype) for i in inputs)
            needs = " without onnxruntime" if node.op_type in SHARED else ""
            raise TypeError(f"these attributes or element types are not supported{needs}: {types}")
        # onnxruntime has operators that take no weights but constant ones
        held = {
            n: value.to_array() if isinstance(value, PACKED) else value
            for n, value in zip(node.input, inputs, strict=True)
            if n and self._start[self._number[n]] is not None
        }
        names = [n for n in node.input if n and n not in held]
        # the rounding that was asked for is the onnx package's
        reference = self.state.rounding == "onnx_reference"
        context = self.context._replace(
            classes=tuple, engine="onnx.reference" if reference else self.context.engine
        )
        step.part = Subgraph([node], names, [o for o in node.output if o], held, context)

        def run(*values: Any) -> Any:
            return step.part(*[v for n, v in zip(node.input, values, strict=True) if n in names])  # type: ignore[misc]

        step.run = run
        return run(*inputs)

    def _if(self, node: Any) -> _Step:
        """An If whose branches hold operators of lowgemm's."""
        graphs = [branches.branch(node, condition) for condition in (False, True)]
        reads = [set(read_outside(graph)) for graph in graphs]
        programs = [
            self._branch(graph, read, reads[1 - i])
            for i, (graph, read) in enumerate(zip(graphs, reads, strict=True))
        ]
        self.inner += programs
        self._elsewhere |= reads[0] | reads[1]
        outside = list(dict.fromkeys(n for p in programs for n in p.inputs))
        given = [[outside.index(n) for n in p.inputs] for p in programs]

        def run(condition: np.ndarray, *values: Any, mode: str = "", held: Any = None) -> list[Any]:
            taken = bool(np.reshape(condition, ()))
            return programs[taken].run_inside([values[i] for i in given[taken]], mode, held)

        step = _Step(run, [node], label_of(node))
        step.inputs = self._numbers([node.input[0], *outside])
        step.outputs = self._numbers(node.output)
        step.branches = True
        return step

    def _branch(self, graph: Any, reads: set[str], others: set[str]) -> Program:
        """The program of a branch that reads some names from outside, and the other branch some."""
        # constants are the branch's own: a frame of its own would copy them as inputs, and they are read-only
        constants = {n: v for n, v in self.constants.items() if n in reads}
        elsewhere = {n for n in constants if self._readers[n] > 1 or n in others} | self._elsewhere
        return Program(
            graph.node, constants, [n for n in dict.fromkeys(read_outside(graph)) if n not in constants],
            [o.name for o in graph.output], table=self.table, either=self.either, state=self.state,
            context=self.context, elsewhere=elsewhere, computed=self._computed,
        )  # fmt: skip

    def _part(self, nodes: list[Any], read_later: set[str]) -> _Step:
        made = {o for n in nodes for o in n.output if o}
        reads = list(dict.fromkeys(r for n in nodes for r in reads_of(n) if r not in made))
        # a session copies its constants; a table that rows are taken from need not be one
        given = {
            n
            for n in reads
            if n in self.constants and self.constants[n].nbytes > TABLE and _only_gathered(n, nodes)
        }
        if not self.context.optimize:  # onnxruntime multiplies by constants in another order of sums
            given |= self._computed
        inputs = [n for n in reads if n not in self.constants or n in given]
        constants = {n: self.constants[n] for n in reads if n in self.constants and n not in given}
        outputs = [o for n in nodes for o in n.output if o in read_later]
        part = Subgraph(nodes, inputs, outputs, constants, self.context)
        step = _Step(
            part,
            nodes,
            f"part of {len(nodes)} nodes from {label_of(nodes[0])}" if len(nodes) > 1 else label_of(nodes[0]),
            part,
        )
        step.inputs, step.outputs = self._numbers(inputs), self._numbers(outputs)
        return step

    def _finish(self) -> None:
        """Drop steps that nothing reads, and find out where each value is read last."""
        self._in, self._out = self._numbers(self.inputs), self._numbers(self.outputs)
        read = set(self._out)
        for step in reversed(self.steps):
            if read.isdisjoint(step.outputs):
                step.nodes = []
            read.update(step.inputs if step.nodes else ())
        self.steps = [s for s in self.steps if s.nodes]
        if self.context.optimize:
            self.steps = _ahead(self.steps)
        held = {self._number[n] for n in self.constants if n in self._number} | {0}
        kept = set(self._out) | held
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            for n in (*step.inputs, *step.outputs):
                last[n] = i
        for i, step in enumerate(self.steps):
            step.frees = tuple(n for n in {*step.inputs, *step.outputs} if last[n] == i and n not in kept)
        self._turns = self._grouped(kept, held) if self.context.optimize else self.steps
        self.packed = self._packed_alone()
        self._start: list[Any] = [None] * len(self._number)
        for name, value in self.constants.items():
            if name in self._number:
                self._start[self._number[name]] = self.packed[name].form if name in self.packed else value
        self._frames = Frames(self._start, self._in, self._out, self.state.num_threads)
        self.constants = {}  # the steps hold what they need
        # an output that may be an input or a constant, or lie in one, is copied for the caller
        made_by_part = {
            n for s in self.steps if s.part is not None and "onnxruntime" in s.part.runs_on for n in s.outputs
        }
        self._lent = [n not in made_by_part for n in self._out]

    def _grouped(self, kept: set[int], held: set[int]) -> list[Any]:
        """The steps, those that can be recorded together with those that follow."""
        found: list[Any] = []
        far = sum(v.nbytes for v in self.constants.values()) > cache_sizes().l2
        by_parts = {n for s in self.steps if s.part is not None for n in s.inputs}
        by_others = {n for s in self.steps if s.part is None for n in s.inputs} | kept
        for recorded, steps in itertools.groupby(self.steps, key=lambda s: s.record is not None):
            members = list(steps)
            # to say anew where elements lie takes no compiled pass
            if not recorded or all(s.moves for s in members):
                found += members
                continue
            made = {n for s in members for n in s.outputs if n}
            gone = {n for s in members for n in s.frees}
            outputs = {n for n in made if n not in gone or n in kept}
            records = [(s.record, s.inputs, s.outputs) for s in members]
            # the sizes that a Reshape reads
            data = {n for s in members for n in s.inputs[: s.data]}
            values = (
                {n for s in members if s.data is not None for n in s.inputs[s.data :]} - data - made - held
            )
            ordered = frozenset(outputs & by_parts - by_others)
            group = tape.Group(
                records, held, outputs, self.state.num_threads, frozenset(values), ordered, far
            )
            found.append(_Group(members, group))
        return found

    def _packed_alone(self) -> dict[str, Packed]:
        """Weights that are held in their packed form alone: every step that reads one takes it packed."""
        readers: dict[int, list[_Step]] = {}
        for step in self.steps:
            for n in step.inputs:
                readers.setdefault(n, []).append(step)
        found = {}
        for name in dict.fromkeys(w for s in self.steps for w in s.weights):
            if name in self.constants and name not in self._elsewhere:
                all_packed = all(name in s.weights for s in readers[self._number[name]])
                packed = self.state.packed_alone(self.constants[name]) if all_packed else None
                if packed is not None:
                    found[name] = packed
        return found

    def all_packed(self) -> dict[str, Packed]:
        """Weights that are held packed, here and in branches."""
        return {
            n: v
            for program in (self, *self.inner)
            for n, v in (program.packed if program is self else program.all_packed()).items()
        }

    def unpacked(self) -> dict[str, np.ndarray]:
        """The weights that are held packed, as the model has them."""
        return {name: packed.plain() for name, packed in self.all_packed().items()}

    # ---- running it ---------------------------------------------------------------------------------------
    def run(self, inputs: Sequence[Any], mode: str = "") -> list[Any]:
        """Values of the outputs. `mode`: `TIMED`, to add to the seconds of each step; or `ALONE`, to run each
        step by itself, which recordings are compared with.
        """
        values = self._start.copy()
        for n, value in zip(self._in, inputs, strict=True):
            values[n] = value
        return self._run_all(values, mode)

    def run_again(self, inputs: Sequence[Any]) -> list[Any] | None:
        """Values of the outputs, which are the caller's, if inputs are like those of the last run; else None,
        and nothing happened.
        """
        found = self._frames.run_again(inputs, self._one_by_one)
        return found if found is None or found.__class__ is Own else self.owned(found, inputs)

    def _one_by_one(self, steps: list[Any], values: list[Any]) -> None:
        """Run steps that a frame cannot."""
        self._run_quietly(steps, values, "", None)

    def run_inside(self, inputs: Sequence[Any], mode: str, held: _Held | None) -> list[Any]:
        """Values of the outputs, in a run of another program that may hold the team. They may lie in inputs."""
        if not mode and held is None:
            found = self._frames.run_again(inputs, self._one_by_one)
            if found is not None:
                return found
        values = self._start.copy()
        for n, value in zip(self._in, inputs, strict=True):
            values[n] = value
        return self._run_all(values, mode) if held is None else self._run_held(values, mode, held)

    def _run_all(self, values: list[Any], mode: str) -> list[Any]:
        """Run all steps; the values of the outputs."""
        team = threads.helpers(self.state.num_threads)
        if team is None:
            return self._run_held(values, mode, None)
        standing, count = team
        before = standing.last_end
        # passes are short, and threads that sleep come too late for them
        held = _Held(standing, count) if self._shared else None
        try:
            found = self._run_held(values, mode, held)
        finally:
            if held is not None:
                held.let_go()
        self._shared = standing.last_end != before
        return found

    def _run_held(self, values: list[Any], mode: str, held: _Held | None) -> list[Any]:
        """Run all steps, in a frame if there is one."""
        key = self._frames.key(values) if self.context.optimize and not mode else None
        free, frame = self._frames.take(key)
        if frame is not None:
            try:
                return frame.run(
                    [(n, values[n]) for n in self._in],
                    lambda steps, values: self._run_quietly(steps, values, "", held),
                    None if held is None else functools.partial(_beside, held),
                )
            finally:
                self._frames.give_back(key, free, frame)
        seen: list[Seen] | None = [] if self._frames.watched(key) else None
        self._run_quietly(self.steps if mode == ALONE else self._turns, values, mode, held, seen)
        if seen is not None:
            self._frames.make(key, seen)
        return [values[n] for n in self._out]

    def _run_quietly(self, *args: Any) -> None:
        """`_run`, where infinities and NaN go through a model as in onnxruntime."""
        with np.errstate(all="ignore"):
            self._run(*args)

    def _run(
        self,
        steps: list[Any],
        values: list[Any],
        mode: str,
        held: _Held | None,
        seen: list[Seen] | None = None,
    ) -> None:
        """Run steps and groups of steps; note in `seen` what ran."""
        timed = mode == TIMED
        for step in steps:
            if step.__class__ is _Group:
                first = 0
                while first < len(step.members):
                    end, recorded = step.run(first, values, timed)
                    if recorded is None:
                        self._run(step.members[first:end], values, mode, held, seen)
                    elif seen is not None:
                        seen.append(Seen.of(recorded, step.members[first:end], values))
                    first = end
                continue
            of_engine = step.part is not None
            begin = time.perf_counter() if timed or of_engine else 0.0
            if held is not None and of_engine and step.gets_the_cores():
                held.let_go()
            try:
                # no name for the inputs: it would keep them beyond their last reader
                more = {"mode": mode, "held": held} if step.branches else {}
                results = step.run(*[values[n] for n in step.inputs], **more)
            except TypeError as error:
                raise TypeError(f"{step.label}: {error}") from error
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:  # other engines raise a dozen kinds
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                raise ValueError(f"{step.label}: {kind}{error}") from error
            for n, value in zip(step.outputs, results, strict=False):  # a node may leave some out
                values[n] = value
            values[0] = None  # where a result goes that has no name
            if seen is not None:
                seen.append(Seen.of(None, [step], values))
            for n in step.frees:
                values[n] = None
            if timed or of_engine:
                step.last = time.perf_counter() - begin
                step.seconds += step.last if timed and not step.branches else 0.0  # its steps have theirs
                if held is not None:
                    held.hold()

    def owned(self, results: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The results, those copied that lie in the memory of an input, a constant or another result."""
        if results.__class__ is Own:
            return results  # type: ignore[return-value]
        found: list[Any] = []
        for value, lent in zip(results, self._lent, strict=True):
            if lent and isinstance(value, np.ndarray):
                others = [v for v in (*inputs, *found) if isinstance(v, np.ndarray)]
                if not value.flags.writeable or any(np.may_share_memory(value, o) for o in others):
                    value = value.copy()
            found.append(value)
        return found

    def all_steps(self) -> list[_Step]:
        """Steps of the graph and of the branches in it."""
        return [*self.steps, *(s for p in self.inner for s in p.all_steps())]
