"""Writing files and folders so that they appear complete or not at all, and saying why where that fails."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clone_rl.errors import BadFileError, CloneRLError

_SPACE = "free some space there, or write to another disk"
_LEAVE = "choose a place that you may write to"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of what the system says where a disk or a quota is full, or a file may not grow."""

_REMEDIES = {
    **dict.fromkeys(NO_ROOM, _SPACE),
    errno.EACCES: _LEAVE,
    errno.EPERM: _LEAVE,
    errno.EROFS: _LEAVE,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "create the folder first",
}
_FOREIGN = re.compile(r"\(os error (\d+)\)")


class WriteError(BadFileError):
    """A file or folder that cannot be written: the disk is full, or there is no permission."""


def system_error(error: BaseException | None) -> OSError | None:
    """What the system said: an error itself, what caused it, or the number in the text of libraries that are not Python's.

    >>> system_error(ValueError("I/O error: No space left on device (os error 28)"))
    OSError(28, 'No space left on device')
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        if found := _FOREIGN.search(str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def writing(path: Path, within: Path | None = None) -> Iterator[None]:
    """What the system refuses in this block becomes a sentence about ``path``.

    Args:
        path: What people call what is written.
        within: Where it is written for now, where that is another place; errors about files elsewhere pass.

    Raises:
        WriteError: The system refused.
    """
    try:
        yield
    except Exception as error:
        found = system_error(error)
        if found is None or isinstance(error, CloneRLError):
            raise
        if isinstance(named := found.filename, str):
            places, there = [place for place in (path, within) if place], Path(named)
            if not any(there.is_relative_to(place) or place.is_relative_to(there) for place in places):
                raise
        remedy = _REMEDIES.get(found.errno or 0, "choose another place")
        raise WriteError(f"cannot write {path}: {os.strerror(found.errno or 0)}", remedy) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends well and is removed when it does not.

    Raises:
        WriteError: The disk is full, or there is no permission; what was at ``path`` stays.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "figures.txt"
    >>> with replacing(target) as aside:
    ...     _ = aside.write_text("42", encoding="utf-8")
    >>> target.read_text(encoding="utf-8"), [p.name for p in target.parent.iterdir()]
    ('42', ['figures.txt'])
    """
    aside = _aside(path)
    try:
        with writing(path, aside):
            yield aside
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes ``folder`` when the block ends well and is removed when it does not.

    Raises:
        WriteError: As of ``replacing``.
    """
    aside = _aside(folder)
    try:
        with writing(folder, aside):
            aside.mkdir(parents=True)
            yield aside
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_together(files: dict[Path, bytes]) -> None:
    """Write files of which none is of use without the others: all are written before the first is replaced.

    Raises:
        WriteError: As of ``replacing``.
    """
    with ExitStack() as stack:
        # In reverse, as they are put in place when the stack is left, the last one first.
        for path in reversed(files):
            stack.enter_context(replacing(path)).write_bytes(files[path])


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of lines: it is on disk, whole, when this returns, and no part of it otherwise.

    Raises:
        WriteError: The disk is full, or there is no permission.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        data = memoryview(f"{line}\n".encode())
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise
