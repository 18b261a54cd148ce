"""Texts on the disk instead of in memory: a million of them cost 9 bytes each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import pyarrow as pa


class Spool:
    """One column of texts, written once from first to last, then read one by one or as Arrow arrays.

    Its file has no name and lies in `folder`, so nothing is left behind, however the process ends.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ends = np.zeros(rows + 1, np.int64)
        self._present = np.zeros(rows, bool)
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, texts: Sequence[str | None]) -> None:
        """Write the next texts."""
        import numpy as np

        encoded = [b"" if text is None else text.encode() for text in texts]
        start, stop = self._rows, self._rows + len(encoded)
        self._ends[start + 1 : stop + 1] = np.fromiter(map(len, encoded), np.int64, len(encoded)).cumsum()
        self._ends[start + 1 : stop + 1] += self._ends[start]
        self._present[start:stop] = [text is not None for text in texts]
        self._file.write(b"".join(encoded))
        self._file.flush()
        self._rows = stop

    def text(self, row: int) -> str:
        """The text of one row; a missing one is empty."""
        return self._bytes(int(self._ends[row]), int(self._ends[row + 1])).decode()

    def array(self, start: int, stop: int) -> pa.Array:
        """The texts of the rows from `start` to before `stop`."""
        import numpy as np
        import pyarrow as pa

        first = int(self._ends[start])
        # From buffers: `pa.array` would import pandas, half a second and 60 MB.
        buffers = [
            np.packbits(self._present[start:stop], bitorder="little"),
            (self._ends[start : stop + 1] - first).astype(np.int32),
            self._bytes(first, int(self._ends[stop])),
        ]
        return pa.Array.from_buffers(pa.string(), stop - start, [pa.py_buffer(buffer) for buffer in buffers])

    def _bytes(self, start: int, stop: int) -> bytes:
        found = bytearray()
        while len(found) < stop - start:  # one call may read fewer bytes than it is asked for
            more = os.pread(self._file.fileno(), stop - start - len(found), start + len(found))
            if not more:
                raise OSError(f"a temporary file of texts ends at byte {start + len(found)}; expected {stop}")
            found += more
        return bytes(found)
