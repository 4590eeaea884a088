"""Gathers rows of one fixed length from memory-mapped Arrow files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from codegrid.errors import CodegridError


class MappedRows:
    """The rows of a column of fixed-size lists, numbered across the files' record batches in order.

    Args:
        files: Arrow streams, uncompressed.
        length: numbers per row.

    Raises:
        CodegridError: rows have another length or missing numbers.
    """

    def __init__(self, files: Sequence[str], column: str, length: int) -> None:
        self._rows: list[np.ndarray] = []  # for each file: the row that would begin at each of its numbers
        ends, begins, owners = [0], [], []
        for owner, file in enumerate(files):
            buffer = pa.memory_map(file).read_buffer()  # pages are read when they are used
            table = pa.ipc.open_stream(buffer).read_all()
            dtype = np.dtype(table.schema.field(column).type.value_type.to_pandas_dtype())
            numbers = np.frombuffer(buffer, dtype, buffer.size // dtype.itemsize)
            self._rows.append(np.lib.stride_tricks.sliding_window_view(numbers, length))
            for batch in table.column(column).chunks:
                values = batch.flatten().to_numpy(zero_copy_only=True)
                if values.size != len(batch) * length:
                    raise CodegridError(
                        f"A row holds {values.size // max(1, len(batch))} codes, the manifest's grid has {length}.",
                        "Make the codes again.",
                    )
                ends.append(ends[-1] + len(batch))
                begins.append((values.ctypes.data - numbers.ctypes.data) // dtype.itemsize)
                owners.append(owner)
        self._length, self._ends = length, np.array(ends)
        self._begins, self._owners = np.array(begins), np.array(owners)  # of each record batch

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] int64 -> their numbers [n, length], copied."""
        batch = np.searchsorted(self._ends, rows, side="right") - 1
        begin = self._begins[batch] + (rows - self._ends[batch]) * self._length
        if len(self._rows) == 1:
            return self._rows[0][begin]
        owner = self._owners[batch]
        found = np.empty((len(rows), self._length), self._rows[0].dtype)
        for index in np.unique(owner):
            mine = owner == index
            found[mine] = self._rows[index][begin[mine]]
        return found
