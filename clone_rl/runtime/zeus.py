"""NVML and Jetson through the package zeus, which is imported when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from clone_rl.errors import BadValueError, DeviceError, MissingExtraError


@contextmanager
def explaining(doing: str) -> Iterator[None]:
    """Errors of zeus for people.

    Args:
        doing: What failed, such as ``lock the clock of GPU 0``.

    Raises:
        DeviceError: The driver, or zeus on its behalf, refuses.
        MissingExtraError: zeus is not installed.
    """
    try:
        from zeus.exception import ZeusBaseError
    except ImportError:
        raise MissingExtraError(f"cannot {doing} without zeus", "pip install 'clone-rl[hardware]'") from None
    try:
        yield
    except (ZeusBaseError, ImportError, ValueError, Empty) as error:  # Empty: its process does not answer
        hint = ""
        if "Permission" in type(error).__name__:
            hint = "only root may, or whoever may use zeusd: start that daemon and set ZEUSD_SOCK_PATH, see ml.energy/zeus"
        raise DeviceError(f"cannot {doing}: {error or 'no answer'}", hint) from error


def gpu(index: int) -> Any:
    """A GPU by its CUDA index: ``zeus.device.gpu.common.GPU``.

    Raises:
        BadValueError: There are not that many.
        DeviceError: No GPU, or no driver.
        MissingExtraError: zeus is not installed.
    """
    with explaining("find GPUs"):
        from zeus.device import get_gpus

        found = get_gpus().gpus
    if not 0 <= index < len(found):
        raise BadValueError(f"GPU {index}", f"{len(found)} found, counted from 0")
    return found[index]


def soc() -> Any:
    """The system on chip: ``zeus.device.soc.common.SoC``, such as that of a Jetson.

    Raises:
        DeviceError: None that zeus knows.
        MissingExtraError: zeus is not installed.
    """
    with explaining("find a system on chip"):
        from zeus.device import get_soc

        return get_soc()
