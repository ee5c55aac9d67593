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
    kind = dataflow.lower()
    if kind == "ws":
        return -(-k // rows) * -(-n // cols) * (2 * rows + cols + m - 2) - 1
    if kind == "os":
        return -(-m // rows) * -(-n // cols) * (k + rows + cols - 2) - 1
    if kind == "is":
        return -(-k // rows) * -(-m // cols) * (2 * rows + cols + n - 2) - 1
    raise UnknownNameError("dataflow", dataflow, DATAFLOWS)
