"""Files that are no part of a package here: the folders of tests have other names under pytest than under
``python -m``.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType


def load(name: str, path: pathlib.Path) -> ModuleType:
    """The file as a module of that name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
