"""`range_report`: which tensors would lose precision, why, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.values import choice, flag
from lowgemm.quantization.advice import advise
from lowgemm.quantization.affine import fake_quantize
from lowgemm.quantization.findings import Finding, TensorReport
from lowgemm.quantization.folding import axis_in, finite_array
from lowgemm.quantization.qparams import QParams, as_dtype, choose_qparams, integer_range
from lowgemm.quantization.search import MeanSquaredError
from lowgemm.quantization.sqnr import decibels

if TYPE_CHECKING:  # an extra
    from matplotlib.figure import Figure

ROLES = ("input", "weight", "activation", "output")


@dataclass(frozen=True, eq=False)
class RangeReport:
    """What `range_report` found; printing it gives `text()`.

    Parameters
    ----------
    tensors : list of TensorReport
        In the order given.
    bits : int
        Of the integers tried.
    """

    tensors: list[TensorReport]
    bits: int

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the tensors."""
        return [finding for t in self.tensors for finding in t.findings]

    def text(self) -> str:
        """A table with a line per tensor, then the findings."""
        width = max([len("tensor")] + [len(t.name) for t in self.tensors])
        lines = [
            f"Signal-to-quantization-noise ratio in dB at {self.bits} bits, with one scale per tensor (whole "
            "range),",
            "with the range of least squared error, with one scale per channel, and of the worst channel "
            "(one scale).",
            "",
            f"{'tensor':{width}}  {'role':10} {'range':>21} {'whole':>7} {'clipped':>7} {'channel':>7} "
            f"{'worst':>7}",
        ]
        for t in self.tensors:
            span = f"{t.low:.4g} to {t.high:.4g}"
            worst = t.channel_sqnr.min() if t.axis is not None else t.sqnr
            ratios = " ".join(f"{v:7.1f}" for v in (t.sqnr, t.sqnr_clipped, t.sqnr_per_channel, worst))
            lines.append(f"{t.name:{width}}  {t.role:10} {span:>21} {ratios}")
        lines.append("")
        lines += [f"{f.tensor}: {f.case}. {f.text}" for f in self.findings] or ["Nothing to complain about."]
        return "\n".join(lines)

    __str__ = __repr__ = text

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw ranges and ratios; needs matplotlib.

        Parameters
        ----------
        path : str or path, optional
            Where to save the picture.

        Returns
        -------
        matplotlib.figure.Figure
            Channel ranges on top, ratios below.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        from lowgemm.quantization.plot import plot_report

        return plot_report(self.tensors, self.bits, path)


def range_report(
    tensors: Mapping[str, ArrayLike],
    *,
    roles: Mapping[str, str] | None = None,
    axis: int | Mapping[str, int | None] | None = -1,
    dtype: DTypeLike = "int8",
    bits: int | None = None,
    symmetric: bool | None = None,
) -> RangeReport:
    """Say which tensors would lose precision as integers, why, and what helps.

    Parameters
    ----------
    tensors : mapping of str to array_like
        Weights, inputs, and what the layers gave for calibration data, by name.
    roles : mapping of str to str, optional
        "input", "weight", "activation" or "output" by name: weights can have a scale per channel, activations
        cannot. Left out: a name with "weight" or "kernel" in it is a weight, one with "input" an input,
        with "output" an output, all others are activations.
    axis : int or None, or mapping of str to either
        The axis that runs along the channels; None: no channels. Vectors and scalars never have channels.
    dtype, bits : optional
        Integers to try.
    symmetric : bool, optional
        Zero point in the middle. Default: for weights (with a narrow range), and not for the others.

    Returns
    -------
    RangeReport
        With `text()`, `plot()`, `findings`, and figures for each tensor and channel.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit or a tensor is empty, or has a NaN or an infinity; the message names it.

    Notes
    -----
    The cases and their limits are in `lowgemm.quantization.advice`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> report = range_report({"conv.weight": rng.standard_normal((9, 8)) * 10.0 ** np.arange(-4, 4)})
    >>> [finding.case for finding in report.findings]
    ['channel ranges differ']
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors: expected a mapping of names to arrays, got {type(tensors).__name__}")
    qmin, qmax = integer_range(as_dtype(dtype), bits)
    roles = {} if roles is None else roles
    if not isinstance(roles, Mapping):
        raise TypeError(f"roles: expected a mapping of names to roles, got {type(roles).__name__}")
    if symmetric is not None:
        symmetric = flag(symmetric, "symmetric")
    for name in roles:
        if name not in tensors:
            raise ValueError(f"roles: expected names of tensors, got {name!r}")
    roles = {name: choice(role, "roles", ROLES) for name, role in roles.items()}
    done = []
    for name, x in tensors.items():
        a = finite_array(x, f"tensors[{name!r}]")
        if not a.size:
            raise ValueError(f"tensors[{name!r}]: expected at least one value")
        along, called = (
            (axis.get(name, -1), f"axis[{name!r}]") if isinstance(axis, Mapping) else (axis, "axis")
        )
        along = None if along is None or a.ndim < 2 else axis_in(along, a.ndim, called)
        role = roles.get(name) or _role(name)
        even = role == "weight" if symmetric is None else symmetric
        options = {"dtype": dtype, "bits": bits, "symmetric": even, "narrow_range": even and role == "weight"}
        report = _measure(name, role, a, along, options)
        report.findings.extend(advise(report, a, options))
        done.append(report)
    return RangeReport(done, (qmax - qmin + 1).bit_length() - 1)


def _role(name: str) -> str:
    lower = name.lower()
    if "weight" in lower or "kernel" in lower:
        return "weight"
    return next((role for role in ("input", "output") if role in lower), "activation")


def _ratio(x: np.ndarray, qparams: QParams, axis: int | None = None) -> np.ndarray:
    return decibels(x, fake_quantize(x, qparams).astype(np.float64), axis)


def _measure(name: str, role: str, x: np.ndarray, axis: int | None, options: dict[str, Any]) -> TensorReport:
    low, high = float(x.min()), float(x.max())
    whole = choose_qparams(low, high, **options)
    searched = MeanSquaredError(**options).observe(x)
    clipped, ratio_clipped = searched.range(), float(_ratio(x, searched.qparams()))
    ratio = float(_ratio(x, whole))
    if axis is None:
        lows, highs, own = np.array([low]), np.array([high]), whole
        channel = channel_own = np.array([ratio])
    else:
        others = tuple(i for i in range(x.ndim) if i != axis)
        lows, highs = x.min(others), x.max(others)
        own = choose_qparams(lows, highs, axis=axis, **options)
        channel, channel_own = _ratio(x, whole, axis), _ratio(x, own, axis)
    return TensorReport(
        name,
        role,
        x.shape,
        axis,
        low,
        high,
        ratio,
        # The search scores a histogram, which is not exact. Where it gains nothing, it may even lose a
        # little.
        max(ratio, ratio_clipped),
        (float(clipped[0]), float(clipped[1])) if ratio_clipped > ratio else (low, high),
        float(_ratio(x, own)),
        lows,
        highs,
        channel,
        channel_own,
    )
