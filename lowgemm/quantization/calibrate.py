"""Run an observer over batches, with a progress bar if wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from lowgemm.checks.values import flag, renamed
from lowgemm.quantization.observer import Observer
from lowgemm.quantization.qparams import QParams

T = TypeVar("T")


def progress_bar(
    batches: Iterable[T], label: str = "calibrating", stream: TextIO | None = None, interval: float = 0.1
) -> Iterator[T]:
    """Yield the batches and keep a one-line bar up to date.

    Parameters
    ----------
    batches : iterable
        With a length the bar fills up; without one the batches are counted.
    label : str
        What the line begins with.
    stream : text file, optional
        Default: standard error.
    interval : float
        Seconds between updates, at least.

    Yields
    ------
    object
        Each batch.

    Examples
    --------
    >>> import sys
    >>> sum(progress_bar([1, 2, 3], stream=sys.stdout, interval=60)) # doctest: +ELLIPSIS
    calibrating [####################] 3/3 0.0 s
    6
    """
    stream = sys.stderr if stream is None else stream
    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
    start = shown = time.monotonic()
    done = 0

    def show(end: str) -> None:
        bar = "" if total is None else f" [{'#' * (20 * done // max(total, 1)):20s}]"
        of = "" if total is None else f"/{total}"
        stream.write(f"{label}{bar} {done}{of} {time.monotonic() - start:.1f} s{end}")
        stream.flush()

    for batch in batches:
        yield batch
        done += 1
        if time.monotonic() - shown >= interval and done != total:
            shown = time.monotonic()
            show("\r")
    show("\n")


def calibrate(
    observer: Observer,
    batches: Iterable[Any],
    *,
    function: Callable[[Any], Any] | None = None,
    progress: bool | Callable[[Iterable[Any]], Iterable[Any]] = False,
) -> QParams:
    """Show an observer all batches and return what it chose.

    Parameters
    ----------
    observer : Observer
        Keeps its state, so more can be observed later.
    batches : iterable of array_like
        Batches of a tensor, or of inputs for `function`.
    function : callable, optional
        Turns a batch into the tensor to observe (the layers in front of it).
    progress : bool or callable
        True for `progress_bar`; or any function that wraps an iterable, such as ``tqdm.tqdm``.

    Returns
    -------
    QParams
        ``observer.qparams()``.

    Raises
    ------
    TypeError, ValueError
        As `Observer.observe`; the message says which batch.

    Examples
    --------
    >>> from lowgemm.quantization import MinMax
    >>> p = calibrate(MinMax("uint8"), [[0.0, 1.0], [2.0, 5.1]], function=lambda x: x)
    >>> round(float(p.scale), 6)
    0.02
    """
    if not isinstance(observer, Observer):
        raise TypeError(f"observer: expected an Observer, got {type(observer).__name__}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of arrays, got {type(batches).__name__}")
    if function is not None and not callable(function):
        raise TypeError(f"function: expected a function or None, got {type(function).__name__}")
    if callable(progress):
        batches = progress(batches)
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"progress: expected a function that gives an iterable, not {type(batches).__name__}"
            )
    elif flag(progress, "progress"):
        batches = progress_bar(batches)
    for i, batch in enumerate(batches):
        x = batch if function is None else function(batch)
        try:
            observer.observe(x)
        except (TypeError, ValueError) as error:
            raise renamed(error, x=f"batches[{i}]") from None
    try:
        return observer.qparams()
    except ValueError as error:  # nothing was observed
        raise renamed(error, observer="batches") from None
