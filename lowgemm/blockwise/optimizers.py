"""Optimizers with 8-bit state: Adam, AdamW, LAMB, AdEMAMix, SGD, LARS, RMSprop, Adagrad, Lion.

The formulas are those of bitsandbytes 0.50.2's 8-bit classes, so that trainings can be carried over; where
they differ from the papers' the docstring says so. `steps.py` shows what one step does to a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np  # noqa: F401 (the examples use it)
from numpy.typing import ArrayLike

from lowgemm.blockwise.hyper import Decays, Eps, Number, Steps
from lowgemm.blockwise.optimizer import Optimizer
from lowgemm.blockwise.rules import Constants
from lowgemm.blockwise.state import MOST_STEPS, StateKind
from lowgemm.checks.values import integer

#: Means of the gradient, and means or sums of its square.
MEAN, SQUARE = StateKind("m", "dynamic"), StateKind("v", "dynamic_unsigned", squares=True)
#: A code with a sign, although squares have none: bitsandbytes does the same, and its states can be loaded
#: here.
SIGNED_SQUARE = StateKind("v", "dynamic", squares=True)


class Adam(Optimizer):
    """Adam, and with weight decay AdamW.

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g g``, and at step t
    ``p = (1 - lr weight_decay) p - lr m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps)``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    betas : (float, float)
    eps : float
        At least 1.2e-38: with 0 a gradient of 0 would be divided by 0.
    weight_decay : float
        Taken off the parameter itself, not added to the gradient (bitsandbytes does so in its Adam too).
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    References
    ----------
    D. Kingma, J. Ba, 2014 (arXiv:1412.6980); I. Loshchilov, F. Hutter, 2017 (arXiv:1711.05101); 8-bit state:
    T. Dettmers et al., 2021 (arXiv:2110.02861).

    Examples
    --------
    >>> p = np.ones(8192, np.float32)
    >>> optimizer = Adam(p, lr=0.1)
    >>> optimizer.step(p / 2)
    >>> print(p[:3], optimizer.state_nbytes)
    [0.9 0.9 0.9] 16640
    """

    rule = "adam"
    state_books: ClassVar = (MEAN, SQUARE)
    betas, eps = Decays(2), Eps()

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def _fill_constants(self, h: Constants, step: int) -> None:
        beta1, beta2 = self.betas
        h.beta1, h.new1, h.beta2, h.new2 = beta1, 1 - beta1, beta2, 1 - beta2
        h.step = -self.lr / (1 - beta1**step)
        h.second = 1 / math.sqrt(1 - beta2**step)
        h.eps = self.eps


class AdamW(Adam):
    """`Adam` with a weight decay of 0.01 by default.

    Examples
    --------
    >>> AdamW(np.ones(3, np.float32)).weight_decay
    0.01
    """

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )


class LAMB(Adam):
    """What bitsandbytes' LAMB8bit computes: `Adam`, without the trust ratio that the paper's LAMB has.

    Examples
    --------
    >>> LAMB(np.ones(3, np.float32)).weight_decay
    0.0
    """


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second, slow mean of the gradient.

    ``m`` and ``v`` are as in `Adam`, ``slow = beta3 slow + (1 - beta3) g``, and
    ``mean = m / (1 - beta1**t) + alpha slow``. Then
    ``p = (1 - lr weight_decay) p - lr mean / (sqrt(v) / sqrt(1 - beta2**t) + eps)``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    betas : (float, float, float)
    alpha : float
        Weight of the slow mean.
    eps : float
        At least 1.2e-38: with 0 a gradient of 0 would be divided by 0.
    weight_decay : float
    t_alpha, t_beta3 : int, optional
        In the first so many steps alpha rises from 0 in equal parts, and beta3 from beta1 so that the
        half-life of the slow mean rises in equal parts; see `warmed_up`. They are those of the paper (section
        3.1) and of bitsandbytes' AdEMAMix and AdEMAMix8bit; its AdEMAMix32bit takes them and leaves them
        alone.
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    References
    ----------
    M. Pagliardini, P. Ablin, D. Grangier, 2024 (arXiv:2409.03137).

    Examples
    --------
    >>> p = np.ones(4096, np.float32)
    >>> AdEMAMix(p, lr=0.1, weight_decay=0).step(p)
    >>> print(p[:2])
    [0.89995 0.89995]
    """

    rule = "ademamix"
    state_books: ClassVar = (MEAN, StateKind("slow", "dynamic"), SQUARE)
    betas, alpha, eps = Decays(3), Number(), Eps()
    t_alpha, t_beta3 = Steps(), Steps()

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.betas, self.alpha, self.eps = betas, alpha, eps
        self.t_alpha, self.t_beta3 = t_alpha, t_beta3
        self.warmed_up(1)
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def warmed_up(self, step: int) -> tuple[float, float]:
        """Alpha and beta3 of step number `step`, which counts from 1.

        Parameters
        ----------
        step : int

        Returns
        -------
        alpha, beta3 : float

        Examples
        --------
        >>> AdEMAMix(np.ones(3, np.float32), t_alpha=10, t_beta3=10).warmed_up(10)
        (5.0, 0.9999)
        """
        step = integer(step, "step", 1, MOST_STEPS)
        alpha, (beta1, _, beta3) = self.alpha, self.betas
        if self.t_alpha is not None:
            alpha = min(step * alpha / self.t_alpha, alpha)
        if self.t_beta3 is not None:
            if not (beta1 > 0 and beta3 > 0):
                raise ValueError(
                    "betas: expected a first and a third above 0 with t_beta3, which takes logarithms"
                )
            done = step / self.t_beta3
            if done < 1:
                first, last = math.log(beta1), math.log(beta3)
                beta3 = min(math.exp(first * last / ((1 - done) * last + done * first)), beta3)
        return alpha, beta3

    def _fill_constants(self, h: Constants, step: int) -> None:
        beta1, beta2, _ = self.betas
        alpha, beta3 = self.warmed_up(step)
        h.beta1, h.new1, h.beta2, h.new2 = beta1, 1 - beta1, beta2, 1 - beta2
        h.beta3, h.new3 = beta3, 1 - beta3
        h.first, h.second = 1 / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
        h.alpha, h.eps = alpha, self.eps


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: ``m = momentum m + g + weight_decay p``, ``p = p - lr m``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    momentum : float
        0 is accepted too, although it needs no state and so no 8-bit optimizer.
    weight_decay : float
        Added to the gradient.
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    Examples
    --------
    >>> p = np.ones(4096, np.float32)
    >>> SGD(p, lr=0.5, momentum=0.9).step(p)
    >>> print(p[:2])
    [0.5 0.5]
    """

    rule = "momentum"
    state_books: ClassVar = (MEAN,)
    momentum = Number(0, 1, open_end=True)

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.momentum = momentum
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def _fill_constants(self, h: Constants, step: int) -> None:
        h.beta1 = self.momentum


class LARS(SGD):
    """What bitsandbytes' LARS8bit computes: `SGD`, without the trust ratio that the paper's LARS has.

    Examples
    --------
    >>> LARS(np.ones(3, np.float32), lr=0.1).momentum
    0.9
    """


class RMSprop(Optimizer):
    """RMSprop: ``v = alpha v + (1 - alpha) g g``, ``p = p - lr g / (sqrt(v) + eps)``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    alpha : float
    eps : float
        At least 1.2e-38: with 0 a gradient of 0 would be divided by 0.
    weight_decay : float
        Times the parameter, added to the gradient.
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    Examples
    --------
    >>> p = np.ones(4096, np.float32)
    >>> RMSprop(p, lr=0.01).step(p)
    >>> print(p[:2])
    [0.90000004 0.90000004]
    """

    rule = "rmsprop"
    state_books: ClassVar = (SIGNED_SQUARE,)
    alpha, eps = Number(0, 1, open_end=True), Eps()

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.alpha, self.eps = alpha, eps
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def _fill_constants(self, h: Constants, step: int) -> None:
        h.beta1, h.new1, h.eps = self.alpha, 1 - self.alpha, self.eps


class Adagrad(Optimizer):
    """Adagrad: ``v = v + g g``, ``p = p - lr g / (sqrt(v) + eps)``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    eps : float
        At least 1.2e-38: with 0 a gradient of 0 would be divided by 0.
    weight_decay : float
        Times the parameter, added to the gradient.
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, JMLR 12, 2011.

    Examples
    --------
    >>> p = np.ones(4096, np.float32)
    >>> Adagrad(p, lr=0.5).step(p)
    >>> print(p[:2])
    [0.5 0.5]
    """

    rule = "rmsprop"
    state_books: ClassVar = (SIGNED_SQUARE,)
    eps = Eps()

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.eps = eps
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def _fill_constants(self, h: Constants, step: int) -> None:
        h.beta1, h.new1, h.eps = 1, 1, self.eps


class Lion(Optimizer):
    """Lion, which steps by the sign of a mean.

    ``p = (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)``, then ``m = beta2 m + (1 - beta2) g``.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    betas : (float, float)
    weight_decay : float
    blocksize, min_8bit_size, check_first, num_threads
        See `Optimizer`.

    References
    ----------
    X. Chen et al., 2023 (arXiv:2302.06675).

    Examples
    --------
    >>> p = np.ones(4096, np.float32)
    >>> Lion(p, lr=0.25).step(p)
    >>> print(p[:2])
    [0.75 0.75]
    """

    rule = "lion"
    state_books: ClassVar = (MEAN,)
    betas = Decays(2)

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
        check_first: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.betas = betas
        super().__init__(
            params,
            lr,
            weight_decay,
            blocksize=blocksize,
            min_8bit_size=min_8bit_size,
            check_first=check_first,
            num_threads=num_threads,
        )

    def _fill_constants(self, h: Constants, step: int) -> None:
        beta1, beta2 = self.betas
        h.beta1, h.new1, h.beta2, h.new2 = beta1, 1 - beta1, beta2, 1 - beta2
