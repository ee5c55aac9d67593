"""Files of sysfs: read and written one value at a time, never outside of the tree, with errors that say what to allow."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from clone_rl.errors import BadFileError, DeviceError

SYSFS = Path("/sys")
"""Where Linux mounts it; a container may have that of its host elsewhere."""

_MUST_NOT_BE_A_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def resolve(path: Path, root: Path = SYSFS) -> Path:
    """Where a node really lies.

    Raises:
        BadFileError: Nothing is there, or it leads out of the tree or into another file system.
    """
    try:
        top = root.resolve(strict=True)
        found = path.resolve(strict=True)
        same = found.stat().st_dev == top.stat().st_dev
    except (OSError, ValueError, RuntimeError):
        raise BadFileError(f"no such sysfs node: {str(path)!r}", "clone-rl hardware lists those of this machine") from None
    if not found.is_relative_to(top) or not same:
        raise BadFileError(f"{str(path)!r} leads to {str(found)!r}, which is not in the sysfs of {top}")
    return found


def is_attribute(path: Path) -> bool:
    """Whether this is a plain file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read(path: Path) -> str:
    """Text of an attribute, without the end of the line.

    Raises:
        DeviceError: It cannot be read.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _MUST_NOT_BE_A_LINK), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        raise explained(error, path, "read") from error


def read_number(path: Path) -> int:
    """Whole number that an attribute holds.

    Raises:
        DeviceError: It cannot be read or holds something else.
    """
    text = read(path)
    try:
        return int(text)
    except ValueError:
        raise DeviceError(f"{path} holds {text!r}, not a number") from None


def write(path: Path, value: int) -> None:
    """Set an attribute.

    Raises:
        OSError: The kernel or a permission is in the way.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | _MUST_NOT_BE_A_LINK)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)


def check(paths: Sequence[Path], doing: str) -> None:
    """Open files to ``read`` or to ``write``, and do neither.

    Raises:
        DeviceError: One of them may not be opened so, with the commands that would allow all of them.
    """
    for path in paths:
        try:
            os.close(os.open(path, (os.O_RDONLY if doing == "read" else os.O_WRONLY) | _MUST_NOT_BE_A_LINK))
        except OSError as error:
            raise explained(error, path, doing, paths) from error


def hold(folder: Path) -> int:
    """Keep others who ask like this from a node, until the descriptor that is returned is closed.

    Raises:
        DeviceError: Somebody holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _MUST_NOT_BE_A_LINK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise DeviceError(f"{folder} is in the hands of another actuator", "close it, or end its program") from None
    return descriptor


def release(descriptor: int) -> None:
    """Let go, also where a forked child still has the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def explained(error: OSError, path: Path, doing: str, needed: Sequence[Path] = ()) -> DeviceError:
    """The error for people: which file, why, and what would allow it.

    Args:
        error: What the kernel said.
        path: The file.
        doing: ``read`` or ``write``.
        needed: All files that the same work needs, where there are more.
    """
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = permission(needed or [path], doing)
    elif error.errno == errno.EROFS:
        hint = "sysfs is mounted read-only, as in a container: run on the host, or mount this folder writable"
    elif error.errno == errno.ELOOP:
        hint = "it is a link, and sysfs has none in the place of a value"
    return DeviceError(f"cannot {doing} {path}: {os.strerror(error.errno or 0)}", hint)


def permission(paths: Sequence[Path], doing: str) -> str:
    """What root may do, once or for every boot, so that the group of this process can work without being root."""
    group, files, mode = _group(), " ".join(map(str, paths)), doing[0]
    once = f"chgrp {group} {files} && chmod g+{mode} {files}"
    device = paths[0].parent
    if device.parent.name == "devfreq":
        subsystem = "devfreq"
    elif "powercap" in device.parts:
        subsystem = "powercap"
    else:
        octal = "0440" if mode == "r" else "0664"
        lines = "; ".join(f"z {path} {octal} root {group}" for path in paths)
        return f"as root, until the next boot: {once}; for good, in /etc/tmpfiles.d/clone-rl.conf: {lines}"
    local = " ".join(f"/sys%p/{path.name}" for path in paths if path.parent == device)
    kernel = device.name if subsystem == "devfreq" else "intel-rapl:*"
    allow = f'RUN+="/bin/chgrp {group} {local}", RUN+="/bin/chmod g+{mode} {local}"'
    rule = f'SUBSYSTEM=="{subsystem}", KERNEL=="{kernel}", {allow}'
    return f"as root, until the next boot: {once}; for good, in /etc/udev/rules.d/60-clone-rl.rules: {rule}"


def _group() -> str:
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())
