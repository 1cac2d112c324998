"""What every calibration observer does: check batches, split them into channels, hand out `QParams`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.values import MAX_DIMS, choice, flag, integer
from lowgemm.quantization.affine import real_array
from lowgemm.quantization.qparams import REAL_MAX, QParams, as_dtype, choose_qparams, integer_range

Self = TypeVar("Self", bound="Observer")


class Observer(ABC):
    """Watches batches of a tensor and chooses its range; see the subclasses.

    Parameters
    ----------
    dtype, bits, symmetric, narrow_range, power_of_two :
        As for `choose_qparams`.
    axis : int, optional
        One range per channel of this axis.
    nonfinite : str
        What to do with NaN and infinity: "raise" a ValueError, or "ignore" them (counted in `ignored`).
    """

    def __init__(
        self,
        dtype: DTypeLike = "int8",
        *,
        bits: int | None = None,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        power_of_two: bool = False,
        nonfinite: str = "raise",
    ) -> None:
        integer_range(dtype, bits, flag(narrow_range, "narrow_range"))
        nonfinite = choice(nonfinite, "nonfinite", ("raise", "ignore"))
        self.options = {
            "dtype": as_dtype(dtype),
            "bits": bits,
            "symmetric": flag(symmetric, "symmetric"),
            "narrow_range": flag(narrow_range, "narrow_range"),
            "power_of_two": flag(power_of_two, "power_of_two"),
        }
        self.axis = None if axis is None else integer(axis, "axis", -MAX_DIMS, MAX_DIMS - 1)
        self.nonfinite = nonfinite
        self.channels: int | None = None
        self.ignored = 0

    def observe(self: Self, x: ArrayLike) -> Self:
        """Take in one batch.

        Parameters
        ----------
        x : array_like of real numbers, any shape
            An empty batch changes nothing.

        Returns
        -------
        Observer
            Itself.

        Raises
        ------
        TypeError, ValueError
            If `x` is not real, has another number of channels than before, or (by default) has a NaN or an
            infinity. The observer is then as it was.
        """
        x = real_array(x)
        channels = 1
        if self.axis is not None:
            if not -x.ndim <= self.axis < x.ndim:
                raise ValueError(f"x: expected an axis {self.axis}, got shape {x.shape}")
            channels = x.shape[self.axis]
        if self.channels not in (None, channels):
            raise ValueError(
                f"x: expected {self.channels} channels on axis {self.axis} as before, got shape {x.shape}"
            )
        if not x.size:
            return self
        others = None if self.axis is None else tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)
        low, high = np.atleast_1d(x.min(others)), np.atleast_1d(x.max(others))
        finite = None
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            finite = np.isfinite(x)
            bad = int(x.size - finite.sum())
            if self.nonfinite == "raise":
                raise ValueError(
                    f"x: expected finite numbers, got {int(np.isnan(x).sum())} NaN and "
                    f"{bad - int(np.isnan(x).sum())} infinite; nonfinite='ignore' leaves them out"
                )
            low = np.atleast_1d(np.min(x, axis=others, where=finite, initial=np.inf))
            high = np.atleast_1d(np.max(x, axis=others, where=finite, initial=-np.inf))
        seen = low <= high  # of channels with nothing finite there is nothing to check
        if max(-low[seen].min(initial=0.0), high[seen].max(initial=0.0)) > REAL_MAX:
            raise ValueError(
                f"x: expected numbers that float32 can hold, got {low.min():g} to {high.max():g}"
            )
        self.channels = channels
        self.ignored += 0 if finite is None else int(x.size - finite.sum())
        self._take(x, finite, low.astype(np.float64), high.astype(np.float64))
        return self

    def __repr__(self) -> str:
        kind = (
            self.options["dtype"]
            if self.options["bits"] is None
            else f"{self.options['bits']} bits in {self.options['dtype']}"
        )
        seen = "nothing observed yet" if self.channels is None else "has observed"
        channels = "" if self.axis is None else f", one range per channel of axis {self.axis}"
        return f"{type(self).__name__}({kind}{channels}, {seen})"

    def merge(self: Self, other: Observer) -> Self:
        """Take in what another observer of the same kind and options has seen.

        Parameters
        ----------
        other : Observer
            Left as it is. Its batches count as coming after this one's.

        Returns
        -------
        Observer
            Itself, in the state that one pass over all batches would have given.

        Raises
        ------
        TypeError
            If `other` is of another class.
        ValueError
            If it has other options or another number of channels.
        """
        if type(other) is not type(self):
            raise TypeError(f"other: expected a {type(self).__name__}, got {type(other).__name__}")
        if other.settings() != self.settings():
            raise ValueError(f"other: expected the same options {self.settings()}, got {other.settings()}")
        if None not in (self.channels, other.channels) and self.channels != other.channels:
            raise ValueError(f"other: expected {self.channels} channels, got {other.channels}")
        self.ignored += other.ignored
        if other.channels is not None:
            if self.channels is None:
                self.channels = other.channels
            self._merge(other)
        return self

    def settings(self) -> dict[str, Any]:
        """Everything that has to be the same for two observers to merge."""
        return {**self.options, "axis": self.axis, "nonfinite": self.nonfinite}

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range chosen, before it is widened to hold zero.

        Returns
        -------
        (float64 ndarray, float64 ndarray)
            Low and high, of shape () or (channels,).

        Raises
        ------
        ValueError
            If nothing (or nothing finite in some channel) was observed.
        """
        if self.channels is None:
            raise ValueError("observer: expected at least one value, but nothing was observed")
        low, high = self._range()
        unseen = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if unseen.size:
            where = f" in channel {unseen[0]}" if self.axis is not None else ""
            raise ValueError(f"observer: expected at least one finite value, but there was none{where}")
        return (low[0], high[0]) if self.axis is None else (low, high)

    def qparams(self) -> QParams:
        """Scale and zero point for what was observed.

        Returns
        -------
        QParams
            Per channel if `axis` was given.

        Raises
        ------
        ValueError
            If nothing was observed.
        """
        low, high = self.range()
        return choose_qparams(low, high, axis=self.axis, **self.options)

    def rows(self, x: np.ndarray, finite: np.ndarray | None) -> list[np.ndarray]:
        """The finite values of each channel."""
        if self.axis is None:
            return [x.ravel() if finite is None else x[finite]]
        table = np.moveaxis(x, self.axis, 0).reshape(x.shape[self.axis], -1)
        if finite is None:
            return list(table)
        kept = np.moveaxis(finite, self.axis, 0).reshape(table.shape)
        return [row[keep] for row, keep in zip(table, kept, strict=True)]

    @abstractmethod
    def _take(self, x: np.ndarray, finite: np.ndarray | None, low: np.ndarray, high: np.ndarray) -> None:
        """Take in a batch; low and high per channel are infinite where nothing is finite."""

    @abstractmethod
    def _merge(self: Self, other: Self) -> None:
        """Take in another observer that has seen something."""

    @abstractmethod
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high per channel; infinite where nothing was seen."""
