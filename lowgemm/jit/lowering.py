"""How much work LLVM does for each function: none for the parts of a routine, and each thing once for a
routine.

Numba makes a library of each function that it compiles. It optimizes the code by itself and emits machine
code for it. A caller links the optimized code, and optimizes and emits all of it again, and so do the callers
of that one. But only the last of them, a routine or a function of the user, is ever called. So the code of a
part waits as it was written until that one is finished.

The first product of a process takes a fifth less time so.

This reaches into Numba's own parts. Importing this file raises an ImportError where Numba has them no more,
and `part.py` then takes Numba's usual way.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.base import BaseContext
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

#: What the classes below replace or call.
_NEEDED = {
    JITCodeLibrary: (
        "_optimize_functions",
        "_optimize_final_module",
        "_finalize_final_module",
        "_finalize_dynamic_globals",
    ),
    _dynfunc: ("make_function",),
    BaseContext: ("insert_user_function",),
    DefaultPassBuilder: ("define_nopython_pipeline",),
    NativeLowering: ("run_pass",),
}
for _where, _names in _NEEDED.items():
    for _name in _names:
        if not hasattr(_where, _name):
            raise ImportError(f"this Numba has no {_where.__name__}.{_name}")


#: Characters of LLVM code. A routine that has fewer is simplified before its parts come: without that, the
#: loops that store sums with a zero point for each column take longer, a product of 256 x 256 x 256 by 5 %.
#: The longer ones gain nothing, and would take 0.1 s for it.
_SHORT = 1 << 15


class RoutineLibrary(JITCodeLibrary):
    """Machine code that is made when all functions are there."""

    _has_routine = False

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout
        # what comes after the routine only calls it for C
        if not self._has_routine and len(str(ll_module)) < _SHORT:
            super()._optimize_functions(ll_module)
        self._has_routine = True


class PartLibrary(JITCodeLibrary):
    """LLVM code that is linked into other libraries, and is nothing by itself."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


def _lower_into(kind: type[JITCodeLibrary], state: Any, lower: Any) -> JITCodeLibrary:
    """Let Numba write LLVM code into a library of a kind; gives that library."""
    state.library = kind(state.targetctx.codegen(), state.func_id.func_qualname)
    state.library.enable_object_caching()
    lower(state)
    return state.library


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerRoutine(NativeLowering):
    """Numba's last step, into a `RoutineLibrary`."""

    _name = "lower_routine"

    def run_pass(self, state: Any) -> bool:
        """Lower the function."""
        _lower_into(RoutineLibrary, state, super().run_pass)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerPart(NativeLowering):
    """Numba's last step, into a `PartLibrary`."""

    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        """Lower the function, and tell Numba where its callers find it."""
        state.flags.no_compile = True  # no machine code
        library = _lower_into(PartLibrary, state, super().run_pass)
        library.finalize()
        lowered = state["cr"]
        if lowered.env.consts:
            raise AssertionError(f"{state.func_id.func_name}: a part of a routine has no Python objects")
        # What Numba makes where there is no wrapper for Python (`get_executable`). Callers are found by it.
        name = state.func_id.func_name
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, name, 0, lowered.env, (library,))
        state.targetctx.insert_user_function(entry, lowered.fndesc, [library])
        # Numba before 0.63 or so keeps what is to be done after loading with the function alone, not with the
        # library.
        state.reload_init.extend(getattr(library, "_reload_init", ()))
        state["cr"] = type(lowered)(lowered.fndesc, lowered.call_helper, entry, lowered.env)
        return True


#: Numba's steps for what no part and no routine has: `with`, functions inside of the function or to be copied
#: into it, loops over tuples of several types, expressions of arrays; and what only prints. They would take
#: a fifth of Numba's time, to find nothing.
_NOT_NEEDED = {
    "WithLifting", "InlineClosureLikes", "MakeFunctionToJitFunction", "InlineInlinables",
    "FindLiterallyCalls",
    "LiteralUnroll", "LiteralPropagationSubPipelinePass", "InlineOverloads", "NopythonRewrites",
    "AnnotateTypes", "DumpParforDiagnostics",
}  # fmt: skip


def _steps(state: Any, last: type[NativeLowering]) -> list[Any]:
    steps = DefaultPassBuilder.define_nopython_pipeline(state)
    steps.passes = [
        (last if one is NativeLowering else one, why)
        for one, why in steps.passes
        if one.__name__ not in _NOT_NEEDED
    ]
    steps.finalize()
    return [steps]


class RoutineCompiler(CompilerBase):
    """Numba's compiler with `LowerRoutine` as its last step."""

    def define_pipelines(self) -> list[Any]:
        """The steps."""
        return _steps(self.state, LowerRoutine)


class PartCompiler(CompilerBase):
    """Numba's compiler with `LowerPart` as its last step."""

    def define_pipelines(self) -> list[Any]:
        """The steps."""
        return _steps(self.state, LowerPart)
