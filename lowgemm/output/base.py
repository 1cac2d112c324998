"""What all output stages share: equality by value, the check against a problem's size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.checks.shown import fields_shown
from lowgemm.checks.values import integer
from lowgemm.output.scale_and_store import OnePass
from lowgemm.output.tile_routine import Step

_numbers = itertools.count()


def same_length(**vectors: int | float | np.ndarray) -> None:
    """Require that those of the named values that are vectors have one length."""
    sizes = {name: v.size for name, v in vectors.items() if isinstance(v, np.ndarray)}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise ValueError(f"{', '.join(sizes)}: expected vectors of one length, got {text}")


def _exact(value: Any) -> Any:
    """A field for comparison: equal only where a result could not differ by a bit (0.0 is not -0.0)."""
    if isinstance(value, np.ndarray):
        return value.tobytes(), value.shape, value.dtype.str
    return (type(value), value.hex()) if isinstance(value, float) else (type(value), value)


class Stage:
    """Base of the output stages: frozen dataclasses that describe, and compute nothing themselves.

    `reference.apply_stage` has each one's equation, and `step` its fast form. The other properties are what
    `pipeline.py` asks a stage to find out what may be left out or put together.
    """

    #: Names of the fields that may hold one value per channel.
    channel_fields: tuple[str, ...] = ()
    #: dtype of the result, for stages that end a pipeline.
    result_dtype: np.dtype | None = None
    axis: int = 1
    #: ``(low, high)`` if the stage is nothing but ``min(max(x, low), high)``. It then needs no step.
    bounds: tuple[int, int] | None = None
    #: The vector, if the stage does nothing but add one. The kernel may then add it.
    addend: np.ndarray | None = None
    #: Whether the low bits of the number are stored as they are, without bounds.
    truncates: bool = False

    #: Its own; no other stage of the process ever has it, so what was planned can be remembered by it.
    _number: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Stage:
        """Give it a number."""
        stage = super().__new__(cls)
        stage._set(_number=next(_numbers))
        return stage

    def check(self, m: int, n: int) -> None:
        """Raise ValueError unless the per-channel fields fit an m x n result."""
        for name in self.channel_fields:
            value, axis = getattr(self, name), self.axis_of_field(name)
            size, unit = (m, "row") if axis == 0 else (n, "column")
            if isinstance(value, np.ndarray) and value.size != size:
                raise ValueError(
                    f"output: {type(self).__name__}.{name}: expected {size} values (one per {unit}, "
                    f"axis={axis}), got {value.size}"
                )

    def axis_of_field(self, name: str) -> int:
        """Which way the vector of that name runs."""
        return self.axis

    def lower(self) -> list[Stage]:
        """The same as simpler stages, for those that are put together of such."""
        return [self]

    def step(self) -> Step | None:
        """What runs on a tile, or None if that is nothing."""
        return None

    def one_pass(self) -> OnePass | None:
        """The same as a scale that can be put together with the store, or None."""
        return None

    def __repr__(self) -> str:
        """Its fields, long vectors by dtype and shape."""
        return fields_shown(self)

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made by the constructor: its vectors are its own, checked and read-only like these."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return type(self), tuple(getattr(self, f.name) for f in fields if f.init)

    def _items(self) -> tuple[Any, ...]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return tuple(_exact(getattr(self, f.name)) for f in fields)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._items() == other._items()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._items()))


def items_of(stage: Stage) -> tuple[Any, ...]:
    """What makes two stages of one class equal: numbers and the bytes of arrays."""
    return stage._items()


def axis_of(value: Any) -> int:
    """`axis` as 0 (one value per row) or 1 (one per column)."""
    return integer(value, "axis", 0, 1)


def cast_dtype(value: Any, allowed: Sequence[type], name: str = "dtype") -> np.dtype:
    """`value` as one of the `allowed` dtypes. None is refused, although NumPy reads it as float64."""
    try:
        dtype = np.dtype(value)
    except Exception:  # NumPy raises several kinds, SyntaxError among them
        raise TypeError(f"{name}: expected a NumPy dtype, got {value!r:.80}") from None
    if dtype not in [np.dtype(t) for t in allowed]:
        raise ValueError(f"{name}: expected {' or '.join(np.dtype(t).name for t in allowed)}, got {dtype}")
    return dtype
