"""Code of a user's own, named as text: ``package.module:name``, or ``file.py:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from clone_rl.errors import BadFileError, BadValueError

FORMS = "package.module:name or file.py:name"
"""How code is named, for hints."""


def names_code(text: str) -> bool:
    """Whether a text is the name of a piece of code, rather than of a file or of something shipped.

    >>> [names_code(text) for text in ("mine:Mine", "lib/mine.py:Mine", "mine.py", "pace", "runs/mine")]
    [True, True, True, False, False]
    """
    place, colon, name = text.rpartition(":")
    if not colon:
        return text.endswith(".py")
    return place.endswith(".py") or not ("/" in text or "\\" in text or Path(text).exists() or not name)


def load_code(what: str, text: str) -> Any:
    """Import a module, or run a file once, and give what is named there.

    The current folder is searched for modules, after everything that is installed; for those that a file imports, so is the
    file's folder.

    Args:
        what: What is wanted, for errors.
        text: As above; the name may be dotted.

    Raises:
        BadValueError: It is no such text, there is no such module or name, or the code raises.
        BadFileError: There is no such file.

    >>> load_code("scale", "math:tau")
    6.283185307179586
    """
    place, name = _parts(what, text)
    with _told(what, text):
        found: Any = _file(place) if place.endswith(".py") else _module(place)
        for part in name.split("."):
            found = getattr(found, part)
    return found


def code_sha256(what: str, text: str) -> str:
    """Hash of the file that a text names, which is not run; empty for a module without one. What it imports is not in it.

    Raises:
        BadValueError, BadFileError: As ``load_code``.
    """
    place, _ = _parts(what, text)
    if place.endswith(".py"):
        return hashlib.sha256(_read(Path(place))).hexdigest()
    with _told(what, text), _current_folder():
        loaded = sys.modules.get(place)
        spec = loaded.__spec__ if loaded else _spec(place)
        origin = (spec.origin if spec and spec.has_location else None) or getattr(loaded, "__file__", None)
        if spec is None and loaded is None:
            raise ModuleNotFoundError(f"No module named {place!r}", name=place)
    return hashlib.sha256(_read(Path(origin))).hexdigest() if origin else ""


def said(error: BaseException) -> str:
    """An exception of foreign code in one line, with where it was raised."""
    words = " ".join(str(error).split())[:200]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if words else ''}{words}{where}"


def _parts(what: str, text: str) -> tuple[str, str]:
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise BadValueError(f"{what} {text!r} does not say what of which code", f"write {FORMS}")
    return place, name


@contextmanager
def _told(what: str, text: str) -> Iterator[None]:
    """Whatever code does when it is imported is a sentence."""
    try:
        yield
    except (BadFileError, BadValueError):
        raise
    except (ModuleNotFoundError, AttributeError) as error:
        raise BadValueError(f"{what} {text!r}: {error}", f"write {FORMS}") from error
    except (Exception, SystemExit) as error:
        raise BadValueError(f"{what} {text!r} cannot be imported: {said(error)}", "mend that code") from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder are found, also those that are imported later."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    yield


def _module(name: str) -> ModuleType:
    with _current_folder():
        return importlib.import_module(name)


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, found without importing the packages that it is in, as ``importlib.util.find_spec`` would."""
    top, *rest = name.split(".")
    spec, so_far = importlib.util.find_spec(top), top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        so_far = f"{so_far}.{part}"
        spec = PathFinder.find_spec(so_far, list(spec.submodule_search_locations))
    return spec


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadFileError(f"no such file: {path}", f"write {FORMS}") from None
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}") from None


def _file(place: str) -> ModuleType:
    """The module that a file makes; a file that has changed is run anew."""
    path = Path(place).absolute()
    digest = hashlib.sha256(str(path).encode() + _read(Path(place))).hexdigest()
    name = f"{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a .py file there always is one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
