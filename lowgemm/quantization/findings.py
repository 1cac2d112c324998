"""What is known of a tensor, and what is wrong with it. Next file to open: `advice.py`, the cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lowgemm.checks.shown import fields_shown


@dataclass(frozen=True)
class Finding:
    """Something that costs precision.

    Parameters
    ----------
    tensor : str
        Name of the tensor.
    case : str
        "not normalised", "channel ranges differ", "mixed ranges", "outliers", "dead channels",
        "clipped channels" or "low precision".
    text : str
        Figures and advice.
    channels : tuple of int
        The channels concerned, where only some are.
    """

    tensor: str
    case: str
    text: str
    channels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class TensorReport:
    """Figures of one tensor; all ratios (SQNR) in decibels.

    Parameters
    ----------
    name, role, shape, axis
        What it is; `axis` runs along the channels, None without channels.
    low, high : float
        Range.
    sqnr : float
        With one scale per tensor over the whole range.
    sqnr_clipped : float
        With one scale per tensor and the range of least mean squared error.
    clipped : tuple of float
        That range.
    sqnr_per_channel : float
        With one scale per channel.
    channel_low, channel_high : float64 ndarray, shape (channels,)
        Ranges of the channels.
    channel_sqnr : float64 ndarray, shape (channels,)
        Each channel's SQNR with one scale per tensor.
    channel_sqnr_own : float64 ndarray, shape (channels,)
        Each channel's SQNR with its own scale.
    findings : list of Finding
        What is wrong, if anything.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    axis: int | None
    low: float
    high: float
    sqnr: float
    sqnr_clipped: float
    clipped: tuple[float, float]
    sqnr_per_channel: float
    channel_low: np.ndarray
    channel_high: np.ndarray
    channel_sqnr: np.ndarray
    channel_sqnr_own: np.ndarray
    findings: list[Finding] = field(default_factory=list)

    def __repr__(self) -> str:
        return fields_shown(self)

    @property
    def channel_magnitude(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        return np.maximum(-self.channel_low, self.channel_high)
