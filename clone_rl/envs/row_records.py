"""Records of the few rows that have one."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RowRecords:
    """(N,) records, zeros but for a few rows; made dense only when asked for, as most steps of most users never do.

    Args:
        rows: (K,) which rows have one, ascending.
        records: (K,) theirs, which are copied.
        count: N.

    >>> records = RowRecords(np.array([1]), np.array([(2.0,)], [("energy_j", "f8")]), 3)
    >>> records["energy_j"].tolist(), float(records[1]["energy_j"]), len(records)
    ([0.0, 2.0, 0.0], 2.0, 3)
    """

    def __init__(self, rows: NDArray[np.int64], records: NDArray[np.void], count: int) -> None:
        self.rows, self.dtype, self._count = rows, records.dtype, count
        self._copy = records.tobytes()  # numpy copies records field by field, which takes a tenth of a step

    @cached_property
    def records(self) -> NDArray[np.void]:
        """(K,) the records of ``rows``, read-only."""
        return np.ndarray(len(self.rows), self.dtype, self._copy)

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        dense = np.zeros(self._count, self.dtype)
        dense[self.rows] = self.records
        return dense if dtype is None else dense.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        """A field of all rows by its name; otherwise what an array would give: a row's record, or those of a mask."""
        if not isinstance(key, str):
            return np.asarray(self)[key]
        dense = np.zeros(self._count, self.dtype[key])
        dense[self.rows] = self.records[key]
        return dense
