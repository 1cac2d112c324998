"""Every public optimizer, found in the package, so that a new one is tested without naming it here."""

from __future__ import annotations

from lowgemm import blockwise


def public_optimizers() -> list[type[blockwise.Optimizer]]:
    """The optimizers that `lowgemm.blockwise` exports, without their base."""
    exported = [getattr(blockwise, name) for name in blockwise.__all__]
    bases = [x for x in exported if isinstance(x, type) and issubclass(x, blockwise.Optimizer)]
    return [cls for cls in bases if cls is not blockwise.Optimizer]
