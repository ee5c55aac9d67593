"""Cycles of a systolic array in closed form."""

from __future__ import annotations

from numbers import Integral

from clone_rl.errors import BadValueError, UnknownNameError

DATAFLOWS = ("ws", "os", "is")


def systolic_cycles(m: int, k: int, n: int, rows: int, cols: int, dataflow: str = "ws") -> int:
    """Cycles of an (m x k) by (k x n) product on one array, as SCALE-Sim 3.0.0 counts them.

    Args:
        m, k, n: Sizes of the product, each >= 1.
        rows, cols: Processing elements of the array, each >= 1.
        dataflow: ``"ws"`` (weights stay), ``"os"`` (outputs stay) or ``"is"`` (inputs stay), in either case.

    Raises:
        BadValueError: A size is below 1.
        UnknownNameError: Unknown dataflow.

    >>> systolic_cycles(1, 2048, 2048, 32, 32, "ws"), systolic_cycles(128, 2048, 2048, 32, 32, "os")
    (389119, 540159)
    """
    sizes = {"m": m, "k": k, "n": n, "rows": rows, "cols": cols}
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise BadValueError(f"{name} is {size!r}", "sizes are whole numbers, at least 1")
    per_block, per_row, block = systolic_terms(k, n, rows, cols, dataflow)
    return (-(-m // block) if block else 1) * per_block + m * per_row - 1


def systolic_terms(k: int, n: int, rows: int, cols: int, dataflow: str) -> tuple[int, int, int]:
    """What the cycles of a product are made of, whatever its number of rows m.

    Returns:
        ``(per_block, per_row, block)``: the cycles are ``ceil(m / block) * per_block + m * per_row - 1``; a ``block`` of 0
        takes any number of rows at once.

    Raises:
        UnknownNameError: Unknown dataflow.
    """
    kind = dataflow.lower()
    if kind == "ws":
        folds = -(-k // rows) * -(-n // cols)
        return folds * (2 * rows + cols - 2), folds, 0
    if kind == "os":
        return -(-n // cols) * (k + rows + cols - 2), 0, rows
    if kind == "is":
        return -(-k // rows) * (2 * rows + cols + n - 2), 0, cols
    raise UnknownNameError("dataflow", dataflow, DATAFLOWS)
