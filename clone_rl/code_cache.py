"""Machine code on disk: the one place that says where what Numba compiled for this package is kept, and what if it cannot be.

It goes where Numba puts it: to ``NUMBA_CACHE_DIR``, beside the sources, or to the user's cache. Where none of these can be
written (read-only images, a full disk), it goes to a folder of the user's below the temporary one, and where that fails too,
nowhere; one line of warning says so. What is damaged on disk is compiled again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from numba import njit
from numba.core import caching
from numba.core.dispatcher import Dispatcher

from clone_rl.version import __version__

_LOG = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
_numba: Any = caching  # some of its versions have types, of some of its functions


@cache
def _sources() -> str:
    """Hash of this package's sources: Numba looks at a function's own file only, not at those of what it calls."""
    package = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))).hexdigest()[:16]


def _users_folder() -> Path:
    """The user's folder below the temporary one; raises OSError where there is none."""
    user = os.getuid() if hasattr(os, "getuid") else "own"  # elsewhere the temporary folder itself is the user's
    return Path(tempfile.gettempdir()) / f"clone-rl-code-{user}"


def _check_own(folder: Path) -> None:
    """Code that others could have put there is not run.

    Raises:
        OSError: It is not there, no folder, or not this user's alone.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} belongs to others")


class _TemporaryLocator(_numba._SourceFileBackedLocatorMixin, _numba._CacheLocator):  # type: ignore[misc]
    """Below the temporary folder, in a folder for each state of the sources, so that it is never out of date."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file, self._lineno = py_file, py_func.__code__.co_firstlineno
        self._cache_path = str(_users_folder() / _sources() / self.get_suitable_cache_subpath(py_file))

    def get_cache_path(self) -> str:
        return self._cache_path

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file)  # nothing is made before something is kept

    def ensure_cache_path(self) -> None:
        _users_folder().mkdir(mode=0o700, exist_ok=True)
        _check_own(_users_folder())
        super().ensure_cache_path()


class _File(_numba.IndexDataCacheFile):  # type: ignore[misc]
    """Files that end in a hash of what is before it, and code that tells what it is of.

    A flipped bit in machine code would be run, and an index that was written just before the disk was full names code of
    earlier sources.
    """

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        with super()._open_for_write(filepath) as file:
            written = io.BytesIO()
            yield written
            file.write(written.getvalue() + hashlib.sha256(written.getvalue()).digest())

    @staticmethod
    def _check(path: str) -> None:
        if Path(path).exists():
            content = Path(path).read_bytes()
            if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                raise ValueError(f"{path} is damaged")

    def _load_index(self) -> Any:
        self._check(self._index_path)
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        self._check(self._data_path(name))
        return super()._load_data(name)

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[2] if found is not None and found[:2] == (self._source_stamp, key) else None


class _Usual(_numba.FunctionCache):  # type: ignore[misc]
    """Where Numba keeps what it compiled; raises RuntimeError where it finds no such place."""

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp(), __version__
        self._cache_file = _File(self._cache_path, self._impl.filename_base, stamp)


class _TemporaryImpl(_numba.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_TemporaryLocator,)


class _Temporary(_Usual):
    """Below the temporary folder."""

    _impl_class = _TemporaryImpl

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        if not _users_folder().exists():
            return None
        _check_own(_users_folder())
        return super()._load_overload(sig, target_context)


class CodeCache:
    """What a compiled function of this package asks for its machine code: never raises, whatever the disks are like.

    Args:
        function: That is compiled.
    """

    _warned: ClassVar[bool] = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._why = "the usual folder did not take it"

    def _place(self, kind: Callable[[Any], Any]) -> Any:
        try:
            return kind(self._function)
        except (RuntimeError, OSError):
            self._why = "no usual folder can be written"
            return None

    @cached_property
    def _usual(self) -> Any:
        return self._place(_Usual)

    @cached_property
    def _temporary(self) -> Any:
        return self._place(_Temporary)

    def _places(self) -> Iterator[Any]:
        yield self._usual
        yield self._temporary  # made up only where the usual one does not do

    @property
    def cache_path(self) -> str | None:
        """The folder where code is looked for first; None where there is none."""
        return next((str(place.cache_path) for place in self._places() if place), None)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code of a signature; None where there is none that is sound."""
        for place in self._places():
            try:
                code = place and place.load_overload(sig, target_context)
            except Exception:  # whatever damaged bytes, or a class that has since moved, make of unpickling
                _LOG.debug("unreadable code of %s", self._function, exc_info=True)
                continue
            if code is not None:
                if place is self._temporary:
                    self._warn(f"in {_users_folder()}")
                return code
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code of a signature, in the first place that takes it."""
        for place in self._places():
            try:
                if place:
                    _save(place, sig, data)
                    if place is self._temporary:
                        self._warn(f"in {_users_folder()}")
                    return
            except OSError as error:
                self._why = f"{place and place.cache_path}: {error.strerror or error}"
        self._warn("nowhere, each start compiles")

    def _warn(self, where: str) -> None:
        """One line, once."""
        if not CodeCache._warned:
            CodeCache._warned = True
            _LOG.warning(f"compiled code is kept {where} ({self._why}); NUMBA_CACHE_DIR chooses a place")

    def enable(self) -> None:
        """It is."""

    def disable(self) -> None:
        """Nothing asks for this."""

    def flush(self) -> None:
        """Forget what is kept."""
        for place in self._places():
            try:
                if place:
                    place.flush()
            except OSError:
                continue


def _save(place: Any, sig: Any, data: Any) -> None:
    try:
        place.save_overload(sig, data)
    except OSError:
        raise
    except Exception:  # the index is damaged
        place.flush()
        place.save_overload(sig, data)


def kept(function: F, **options: Any) -> F:
    """Compile with Numba; the machine code is kept from one process to the next where that is possible.

    Args:
        function: To compile.
        **options: Of ``numba.njit``.
    """
    made = njit(**options)(function)
    if isinstance(made, Dispatcher):  # not where Numba is switched off
        cast(Any, made)._cache = CodeCache(function)
    return cast(F, made)
