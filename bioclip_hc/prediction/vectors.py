"""Embeddings as csv, json, parquet, or numpy's npz, which is put together on disk.

# N rows, D embed
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bioclip_hc.prediction.output import Sink
from bioclip_hc.prediction.writers import Row, TextWriter, Writer, make_writer

BLOCK = 1 << 20


def make_vector_writer(form: str, sink: Sink, columns: Mapping[str, str]) -> Writer:
    """A writer of "npz", "csv", "json" or "parquet"; raises as `make_writer`."""
    return NpzWriter(sink, columns) if form == "npz" else make_writer(form, sink, columns, TextWriter)


class NpzWriter:
    """An array per column: texts (N,) unicode, vectors (N, D) float32.

    How many rows there are is known at the end; until then vectors are in an unnamed file beside the output.
    """

    def __init__(self, sink: Sink, columns: Mapping[str, str]) -> None:
        self.sink, self.columns = sink, columns
        self._texts: dict[str, list[str]] = {c: [] for c, kind in columns.items() if kind == "text"}
        (self._vector,) = (c for c, kind in columns.items() if kind == "vector")
        self._kept = tempfile.TemporaryFile(dir=sink.folder)  # noqa: SIM115  # closed by close, or with this
        self._count = self._width = 0

    def write(self, rows: Iterable[Row]) -> None:
        """Some rows."""
        for row in rows:
            for column, texts in self._texts.items():
                texts.append(row[column])
            vector = np.ascontiguousarray(row[self._vector], dtype="<f4")
            self._width, self._count = len(vector), self._count + 1
            try:
                self._kept.write(vector.tobytes())
            except OSError as error:
                raise self.sink.refused(error) from None

    def close(self) -> None:
        """Put it together."""
        with self._kept, zipfile.ZipFile(_Seekless(self.sink), "w") as archive:
            for column, texts in self._texts.items():
                with archive.open(f"{column}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(texts, dtype=np.str_), allow_pickle=False)
            header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
            with archive.open(f"{self._vector}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                self._kept.seek(0)
                while block := self._kept.read(BLOCK):
                    member.write(block)


class _Seekless(io.RawIOBase):
    """A sink as zipfile writes to it: from front to back."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        return len(data)
