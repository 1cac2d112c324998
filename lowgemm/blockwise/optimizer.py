"""What all optimizers with 8-bit state have in common: checks, the step, saving and loading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import IO, Any, ClassVar

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import npz
from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference, reference_optimizers, rules, steps
from lowgemm.blockwise.coding import refuse_unfinite
from lowgemm.blockwise.hyper import Number
from lowgemm.blockwise.parameters import as_list, check_parameters, gradient_of, put, single
from lowgemm.blockwise.state import MOST_STEPS, StateKind, TensorState
from lowgemm.checks.arguments import as_num_threads
from lowgemm.checks.files import check_file
from lowgemm.checks.values import flag, integer

#: The absolute value of a gradient must be smaller than this, so that no mean of squares overflows.
LARGEST_GRADIENT = 1e18
#: First array of a saved file.
FORMAT = "lowgemm.blockwise optimizer 1"


class Optimizer:
    """Base of the optimizers; use a subclass.

    The parameters are arrays that `step` changes in place. What an optimizer remembers of each of them, its
    state, is kept in 8-bit code (`quantize_blockwise` with "dynamic" for states with a sign,
    "dynamic_unsigned" for squares), or as float32 for tensors of fewer than `min_8bit_size` elements, where
    little is gained.

    Parameters
    ----------
    params : array or iterable of arrays
        NumPy arrays, tensors of torch (``model.parameters()``), or other arrays over memory that can be
        written. float32, float16 or bfloat16, of any shape and strides. Those of 16 bits are computed as
        float32 and rounded.
    lr : float
        Learning rate.
    weight_decay : float
    blocksize : int
        Elements that share a scale of the state.
    min_8bit_size : int
        Tensors with fewer elements have float32 state.
    check_first : bool
        Look through all gradients for NaN, infinity and huge values before anything is changed, which reads
        them once more than needed. Without it blocks that would become NaN or infinite stay as they were, and
        `step` raises FloatingPointError when the others are done.
    num_threads : int, optional
        At most so many threads.

    A deep copy or a pickle has parameters of its own: its steps change ``copy.params``, not the arrays that
    this one was made with. For the state alone use `state_dict`. A shallow copy shares parameters and state.

    Attributes
    ----------
    steps_done : int
    lr, weight_decay : float
        These and all other hyper-parameters may be set between steps; they are checked then.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """

    rule: ClassVar[str]
    #: What is remembered of each element.
    state_books: ClassVar[tuple[StateKind, ...]]
    lr, weight_decay = Number(), Number()

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float,
        weight_decay: float,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.blocksize = integer(blocksize, "blocksize", 1)
        self.min_8bit_size = integer(min_8bit_size, "min_8bit_size", 0, 2**62)
        self.check_first = flag(check_first, "check_first")
        self.num_threads = as_num_threads(num_threads)
        self.params = check_parameters(params)
        self.steps_done = 0
        self._states = [
            TensorState(p.shape, p.size < self.min_8bit_size, self.blocksize, self.state_books)
            for p in self.params
        ]

    def _fill_constants(self, h: rules.Constants, step: int) -> None:
        """Write the rule's constants for step number `step`, which counts from 1."""
        raise NotImplementedError

    def _constants(self, step: int) -> rules.Constants:
        h = rules.Constants(
            rate=self.lr,
            weight_decay=self.weight_decay,
            shrink=1.0 - self.lr * self.weight_decay,
            begins=step == 1,
        )
        self._fill_constants(h, step)
        if not np.isfinite(np.frombuffer(h, np.float32)).all():
            raise ValueError(f"lr: expected a rate whose step float32 can hold, got {self.lr:g}")
        return h

    def step(self, grads: ArrayLike | Iterable[ArrayLike]) -> None:
        """Change the parameters by one step against their gradients.

        Parameters
        ----------
        grads : array or iterable of arrays
            One for each parameter, in the same order and of the same shape; float32, float64, float16 or
            bfloat16; or None for a parameter that is to stay as it is, state included.

        Raises
        ------
        TypeError, ValueError
            If `grads` does not fit the parameters, or (with `check_first`) has NaN, infinity or an absolute
            value of 1e18 or more. Nothing has been changed then.
        FloatingPointError
            If a state or a parameter would have become NaN or infinite in spite of that (without
            `check_first`, by huge parameters with weight decay, sums of squares, a huge rate, or a parameter
            that was NaN before). Blocks for which this holds are left as they were, as are elements that a
            parameter of 16 bits cannot hold; all others have made the step.
        """
        grads = None if grads is None else as_list(grads, "grads")
        if grads is None or len(grads) != len(self.params):
            raise ValueError(f"grads: expected {len(self.params)} arrays, one for each parameter")
        flats = [gradient_of(g, p, i) for i, (g, p) in enumerate(zip(grads, self.params, strict=True))]
        for i, flat in enumerate(flats):
            if flat is not None and self.check_first:
                refuse_unfinite(flat, f"grads[{i}]", self.num_threads, LARGEST_GRADIENT)
        h = self._constants(self.steps_done + 1)
        self.steps_done += 1
        bad = lost = 0
        for p, flat, state in zip(self.params, flats, self._states, strict=True):
            if flat is not None and p.size:
                blocks, elements = self._step_one(p, flat, state, h)
                bad, lost = bad + blocks, lost + elements
        if bad:
            raise FloatingPointError(
                f"{bad} blocks of parameters and states would have become NaN or infinite; they were left as "
                "they were"
            )
        if lost:
            raise FloatingPointError(
                f"{lost} parameters would have become infinite in their dtype; they were left as they were"
            )

    def _step_one(
        self, p: np.ndarray, g: np.ndarray, state: TensorState, h: rules.Constants
    ) -> tuple[int, int]:
        """Step of one tensor; returns the numbers of blocks and of single elements left as they were."""
        p = np.asarray(p)  # a subclass may have a reshape of its own
        flat = single(p)
        if numba.config.DISABLE_JIT:
            bad = _plain_step(self.rule, flat, g, state, h)
        else:
            bad = _compiled_step(self.rule, flat, g, state, h, self.num_threads)
        return bad, 0 if np.may_share_memory(flat, p) else put(p, flat)

    @property
    def state_nbytes(self) -> int:
        """Bytes of all states."""
        return sum(s.nbytes for s in self._states)

    def state_of(self, index: int) -> dict[str, np.ndarray]:
        """States of parameter number `index`, decoded: name to float32 array of the parameter's shape."""
        count = len(self._states)
        return self._states[integer(index, "index", -count, count - 1)].decoded()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that `load_state_dict` needs, as arrays; copies. Hyper-parameters are not part of it."""
        found = {
            "format": np.array(FORMAT),
            "optimizer": np.array(type(self).__name__),
            "steps_done": np.array(self.steps_done, dtype=np.int64),
            "blocksize": np.array(self.blocksize, dtype=np.int64),
            "tensors": np.array(len(self._states), dtype=np.int64),
        }
        for i, state in enumerate(self._states):
            found |= {f"{i}/{key}": a.copy() for key, a in state.arrays().items()}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another optimizer of the same class, block size and parameter shapes.

        Its `min_8bit_size` may be another: a tensor's float32 state is coded here, or its codes decoded.

        Parameters
        ----------
        state : mapping of str to ndarray
            From `state_dict`.

        Raises
        ------
        TypeError, ValueError
            If it does not fit, or has values that no step makes: NaN or infinity, negative scales, negative
            means or sums of squares. Nothing has been changed then.
        """
        try:
            state = dict(state)
        except (TypeError, ValueError):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}") from None
        header = self.state_dict()
        for key in ("format", "optimizer", "blocksize", "tensors"):
            got = state.get(key)
            if not isinstance(got, np.ndarray) or got.shape != () or got.dtype.kind not in "Uiu":
                raise ValueError(f"state: expected an entry {key!r}")
            if got[()] != header[key][()]:
                raise ValueError(f"state: expected {key} {header[key][()]}, got {got[()]}")
        done = state.get("steps_done")
        if (
            not isinstance(done, np.ndarray)
            or done.shape != ()
            or done.dtype.kind not in "iu"
            or not 0 <= int(done) <= MOST_STEPS
        ):
            raise ValueError("state: expected 'steps_done', a count")
        new = [s.checked(i, state) for i, s in enumerate(self._states)]
        for own, given in zip(self._states, new, strict=True):
            own.put(given)
        self.steps_done = int(done)

    def save(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the state to a `.npz` file.

        Parameters
        ----------
        path : path or binary file
            The file; one at a path is overwritten if it exists.

        Raises
        ------
        TypeError
            If it is neither.
        """
        check_file(path, "path", "write")
        if hasattr(path, "write"):
            np.savez(path, **self.state_dict())
            return
        with open(path, "wb") as file:
            np.savez(file, **self.state_dict())

    def load(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Read what `save` wrote, without pickle.

        Parameters
        ----------
        path : path or binary file

        Raises
        ------
        TypeError
            If it is neither.
        ValueError
            If it is not such a file or does not fit this optimizer. Nothing has been changed then.
        """
        check_file(path, "path", "read")
        try:
            state = npz.read(path)
        except ValueError as error:
            raise ValueError(f"path: expected a file written by save ({error})") from None
        self.load_state_dict(state)

    def __repr__(self) -> str:
        bits = sum(not s.wide for s in self._states)
        return f"{type(self).__name__}({len(self.params)} tensors, {bits} with 8-bit state, lr={self.lr:g})"


def _compiled_step(
    rule: str, p: np.ndarray, g: np.ndarray, state: TensorState, h: rules.Constants, num_threads: int | None
) -> int:
    job = steps.StepJob(
        parameters=p.ctypes.data, gradient=g.ctypes.data, constants=h.address, rule=rules.RULES[rule].address,
        divides=rule in rules.DIVIDING, states=len(state.books), wide=state.wide,
    )  # fmt: skip
    jobs.divide(job, p.size, state.blocksize)
    scratch_bytes = steps.lay_out(job)
    for one, values in zip(job.state, state.values, strict=False):
        one.values = values.ctypes.data
    for one, scales, book in zip(job.state, state.scales, state.books, strict=False):
        one.scales, one.book = scales.ctypes.data, book.blob.ctypes.data
    jobs.run(steps.step, job, jobs.choose_threads(num_threads, p.size), scratch_bytes)
    return job.bad


def _plain_step(rule: str, p: np.ndarray, g: np.ndarray, state: TensorState, h: rules.Constants) -> int:
    """The same in plain NumPy, for NUMBA_DISABLE_JIT=1."""
    blocksize, bad = state.blocksize, 0
    old = [s.copy() for s in state.decoded_flat()]
    for b, first in enumerate(range(0, p.size, blocksize)):
        block = slice(first, first + blocksize)
        new_p, new = reference_optimizers.update(rule, p[block], g[block], [s[block] for s in old], h)
        if not all(np.isfinite(s).all() for s in (new_p, *new)):
            bad += 1
            continue
        p[block] = new_p
        for k, values in enumerate(new):
            if state.wide:
                state.values[k][block] = values
            else:
                state.values[k][block], state.scales[k][b : b + 1] = reference.quantize(
                    values, state.books[k].values, blocksize
                )
    return bad
