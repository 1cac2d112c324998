"""Compiled code on disk that is never trusted blindly: `njit`, `cfunc` and `vectorize` with a checked cache.

Numba's own disk cache (``cache=True``) fails in ways that a library may not:

* a truncated or overwritten file raises from the middle of a call, and a flipped bit in machine code is
  executed;
* two processes that compile variants of one function at the same time can pick the same file name, and the
  index of one then points to the code of the other (the index is read, changed and written back without a
  lock);
* no writable folder at all (read-only site-packages and no home directory) is a RuntimeError, a full disk an
  OSError;
* a read-only folder is not even read, so that a cache filled when an image was built is lost on its users
  (here it is read unless ``NUMBA_CACHE_DIR`` names another).

Here each piece is one file. Its name is a hash of everything it depends on (signature, target, byte code,
what the function captures, all sources of lowgemm that it may call, the versions of Numba and llvmlite), so
there is no index; it starts with a SHA-256 over that and the content. What does not match is compiled again;
what cannot be written is kept in memory only, with one warning.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import pathlib
import pickle
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import llvmlite
import numba
from numba.core import caching, ccallback

from lowgemm.jit import numbers
from lowgemm.jit.captured import captured
from lowgemm.jit.part import RoutineCompiler
from lowgemm.jit.signals import signals_wait
from lowgemm.jit.stamp import stamp_for

try:
    from lowgemm.jit import loaded
except ImportError:
    loaded = None  # type: ignore[assignment]

_MAGIC = b"lowgemm2"
#: Bytes of a file before the content.
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size
_warned = False


def _head(text: bytes, payload: bytes) -> bytes:
    """What a file begins with, if its code is that of the key `text` and its content is sound."""
    digest = hashlib.sha256(text)
    digest.update(payload)
    return _MAGIC + digest.digest()


@contextlib.contextmanager
def _compilation() -> Iterator[None]:
    """Compile, or load, inside of this: signals wait, and Python's collector of garbage rests.

    It would look through all of Numba's objects several times and find nothing, which takes a twelfth of the
    time.
    """
    collects = gc.isenabled()
    with signals_wait():
        try:
            gc.disable()
            yield
        finally:
            if collects:
                gc.enable()


class CheckedFile:
    """Files of one function: what Numba's cache asks of its ``IndexDataCacheFile``.

    Parameters
    ----------
    folder : str
        Where to write, and read first.
    base : str
        Start of the file names.
    stamp : object
        Freshness of the source file.
    also : str
        Another folder to read from.
    """

    def __init__(self, folder: str, base: str, stamp: Any, also: str) -> None:
        self.folder, self.base = pathlib.Path(folder), base
        self.folders = list(dict.fromkeys([self.folder, pathlib.Path(also)]))
        self.depends = (numba.__version__, llvmlite.__version__, stamp)

    def _name(self, key: Any) -> tuple[str, bytes]:
        text = repr((_MAGIC, self.base, self.depends, key)).encode()
        return f"{self.base}.{hashlib.sha256(text).hexdigest()[:20]}.nbc", text

    def load(self, key: Any) -> Any:
        """What was saved under `key`, or None if there is nothing, or nothing sound."""
        name, text = self._name(key)
        for folder in self.folders:
            with contextlib.suppress(OSError):
                with open(folder / name, "rb") as file:
                    head, payload = file.read(_HEAD), file.read()
                if head == _head(text, payload):
                    return pickle.loads(payload)
        return None

    def save(self, key: Any, data: Any) -> None:
        """Write a whole file under another name, then rename it: a reader sees all of it or none."""
        name, text = self._name(key)
        payload = caching.dumps(data)
        part = self.folder / f"{name}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            part.write_bytes(_head(text, payload) + payload)
            os.replace(part, self.folder / name)
        finally:
            part.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget everything (`Dispatcher.recompile`)."""
        for path in self.folder.glob(f"{self.base}.*.nbc"):
            path.unlink(missing_ok=True)


class _BesideSource(caching.InTreeCacheLocator):
    """The folder beside the source file, writable or not: the last resort."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if os.path.exists(py_file) else None


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes = (*caching.CompileResultCacheImpl._locator_classes, _BesideSource)

    def reduce(self, compiled: Any) -> Any:
        """What Numba saves, with the library as a `loaded.Saved`."""
        library, *rest = super().reduce(compiled)
        return ((loaded and loaded.saved(compiled.library)) or library, *rest)

    def rebuild(self, context: Any, data: Any) -> Any:
        """What was compiled."""
        library, *rest = data
        if loaded and isinstance(library, loaded.Saved):
            return loaded.rebuild(context, library, rest)
        return super().rebuild(context, data)


class CheckedCache(caching.FunctionCache):
    """Numba's function cache on `CheckedFile`, which never raises."""

    _impl_class = _Impl

    def __init__(self, py_func: Any, key: Hashable = ()) -> None:
        super().__init__(py_func)
        code = py_func.__code__
        self._depends = (
            hashlib.sha256(code.co_code).hexdigest(), captured(py_func), stamp_for(py_func.__module__), key,
        )  # fmt: skip
        beside = pathlib.Path(py_func.__code__.co_filename).parent / "__pycache__"
        if numba.config.CACHE_DIR:  # NUMBA_CACHE_DIR says where, and there only
            beside = pathlib.Path(self._cache_path)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = CheckedFile(self._cache_path, self._impl.filename_base, stamp, str(beside))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Everything that the code for a signature depends on; equal in every process."""
        return (sig, codegen.magic_tuple(), *self._depends)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled overload, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # sound bytes that this Numba cannot make sense of: compile
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save, or say once that it cannot be done."""
        global _warned
        try:
            super().save_overload(sig, data)
        except RuntimeError:
            # LLVM's callback that notes the object code has failed (Python swallows what a callback raises):
            # the code is there and sound, only this process has nothing to save.
            return
        except OSError as error:
            if not _warned:
                _warned = True
                warnings.warn(
                    f"lowgemm: compiled code cannot be saved ({error}); every process compiles it again, "
                    "which "
                    "takes seconds. Set NUMBA_CACHE_DIR to a writable folder.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _cache(py_func: Any, key: Hashable = ()) -> Any:
    if not numbers.KNOWN:
        return caching.NullCache()
    try:
        return CheckedCache(py_func, key)
    except RuntimeError:  # no source file: frozen, or typed into a shell
        return caching.NullCache()


class Lazy:
    """A function that is compiled, or loaded from disk, when it is first called; for the given signatures,
    and for no others.
    """

    def __init__(self, function: Callable[..., Any], signatures: Any, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.py_func, self._signatures, self._options = function, signatures, options

    @functools.cached_property
    def dispatcher(self) -> Any:
        """The Numba dispatcher that it becomes."""
        dispatcher = numba.njit(**self._options)(self.py_func)
        if dispatcher is self.py_func:  # NUMBA_DISABLE_JIT
            return dispatcher
        dispatcher._cache = _cache(self.py_func)
        with _compilation():
            for signature in self._signatures:
                dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    def __call__(self, *args: Any) -> Any:
        """Compile at the first call, and run."""
        return self.dispatcher(*args)


def njit(signatures: Any = None, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with a checked disk cache. Nothing is compiled before the first call.

    Parameters
    ----------
    signatures : list of signatures, optional
        Compile for these, and for no others.
    **options
        As for `numba.njit`.

    Returns
    -------
    callable
        Decorator.

    Examples
    --------
    >>> @njit(nogil=True)
    ... def double(x):
    ...     return 2 * x
    >>> double(21)
    42
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if signatures is not None:
            return Lazy(function, signatures, options)
        dispatcher = numba.njit(**options)(function)
        if dispatcher is not function:  # NUMBA_DISABLE_JIT gives the function back
            dispatcher._cache = _LazyCache(function)
            dispatcher.compile = _compiles(dispatcher.compile)
        return dispatcher

    return decorate


def _compiles(method: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's method that compiles for one more signature, inside of `_compilation`."""

    @functools.wraps(method)
    def compiled(*args: Any, **options: Any) -> Any:
        with _compilation():
            return method(*args, **options)

    return compiled


class _LazyCache:
    """A `CheckedCache` that is made when it is first asked: its key needs a look at all sources, which no
    import should take.
    """

    def __init__(self, py_func: Any) -> None:
        self._py_func = py_func

    @functools.cached_property
    def _real(self) -> Any:
        return _cache(self._py_func)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def cfunc(function: Callable[..., Any], signature: Any, key: Hashable = (), on_disk: bool = True) -> Any:
    """Compile a function, or load it: `numba.cfunc` without Python objects inside and with a checked disk
    cache.

    `key` says what the code depends on beside the sources and the values that the function captures. Without
    `on_disk` it is neither looked for nor saved: what it depends on cannot be said.
    """
    callback = ccallback.CFunc(
        function, (signature.args, signature.return_type), {}, {"nopython": True}, RoutineCompiler
    )
    if on_disk:
        callback._cache = _cache(function, key)
    with _compilation():
        callback.compile()
    return callback


def vectorize(function: Callable[..., Any]) -> Any:
    """`numba.vectorize` (compiled for a dtype when it first comes) with a checked disk cache."""
    ufunc = numba.vectorize(nopython=True)(function)
    dispatcher = getattr(ufunc, "_dispatcher", None)
    if dispatcher is not None:
        dispatcher.cache = _LazyCache(function)
        ufunc._compile_for_args = _compiles(ufunc._compile_for_args)  # compiles, and adds a loop to the ufunc
    return ufunc


def linkable(library: Any) -> Any:
    """LLVM code of a library of Numba's, as callers link it."""
    return library._get_module_for_linking()
