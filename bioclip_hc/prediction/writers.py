"""Rows as csv, json (one object a line), parquet, or a table for people.

A row is a mapping of columns. All text is UTF-8 whatever the locale. The odd bytes of a name that is not UTF-8 are
written out in csv and parquet (as \\udcff); json has its own escapes for them, of which `os.fsencode` makes the
name again; a table shows them as it shows all that moves a cursor.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from bioclip_hc.data.captions import printable
from bioclip_hc.prediction.output import Sink

FORMATS = ("table", "csv", "json", "parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how cells begin that a spreadsheet takes for more than text
ROWS_AT_ONCE = 8192  # of a parquet file's row group

Row = Mapping[str, Any]


class Writer(Protocol):
    """Takes rows as they come."""

    def write(self, rows: Iterable[Row]) -> None:
        """Some rows, all of one photograph where it has several."""
        ...

    def close(self) -> None:
        """No row will follow; without this a file is not complete."""
        ...


def make_writer(form: str, sink: Sink, columns: Mapping[str, str], table: type[TextWriter]) -> Writer:
    """A writer of one of FORMATS.

    Args:
        columns: column -> "text", "number", or "vector" (a list of float32).
        table: what makes the table for people.

    Raises:
        ValueError: parquet without pyarrow.
    """
    if form == "parquet":
        return ParquetWriter(sink, columns)
    return {"table": table, "csv": CsvWriter, "json": JsonWriter}[form](sink, columns)


class TextWriter:
    """Lines of text, handed on with every call of `write`."""

    def __init__(self, sink: Sink, columns: Mapping[str, str]) -> None:
        self.sink, self.columns = sink, columns

    def write(self, rows: Iterable[Row]) -> None:
        text = self.text(list(rows))
        if text:
            self.sink.write(text.encode("utf-8", "backslashreplace"))

    def text(self, rows: list[Row]) -> str:
        """The lines of some rows."""
        raise NotImplementedError

    def close(self) -> None:
        self.write(())


class JsonWriter(TextWriter):
    """One object a line."""

    def text(self, rows: list[Row]) -> str:
        return "".join(f"{self._line(row)}\n" for row in rows)

    def _line(self, row: Row) -> str:
        values = {column: _plain(row[column]) for column in self.columns}
        line = json.dumps(values, ensure_ascii=False)
        # what moves a cursor or is no letter is written as an escape, which means the same
        return line if line.isprintable() else json.dumps(values)


class CsvWriter(TextWriter):
    """RFC 4180 with plain line ends; the header is written with the first rows, or at the end.

    No cell begins like a formula: a file "=a.jpg" is "./=a.jpg", the same file; other texts get an apostrophe, as
    spreadsheets do.
    """

    _begun = False

    def text(self, rows: list[Row]) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        if not self._begun:
            writer.writerow(self._header())
            self._begun = True
        for row in rows:
            writer.writerow([cell for column in self.columns for cell in self._cells(column, row[column])])
        return file.getvalue()

    def write(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        if "vector" in self.columns.values() and rows and not self._begun:
            self._dimensions = {c: len(rows[0][c]) for c, kind in self.columns.items() if kind == "vector"}
        super().write(rows)

    _dimensions: Mapping[str, int] = {}

    def _header(self) -> list[str]:
        return [
            name
            for column, kind in self.columns.items()
            for name in (
                [f"{column}_{i}" for i in range(self._dimensions.get(column, 0))] if kind == "vector" else [column]
            )
        ]

    def _cells(self, column: str, value: Any) -> list[Any]:
        if self.columns[column] == "vector":
            return _plain(value)
        if isinstance(value, str):
            if value.startswith(FORMULA):
                value = f"./{value}" if column == "file_name" else f"'{value}"
            return [printable(value) if self.sink.terminal else value]
        return ["" if value is None else value]


class ParquetWriter:
    """Row groups of ROWS_AT_ONCE, by pyarrow."""

    def __init__(self, sink: Sink, columns: Mapping[str, str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise ValueError(
                "parquet needs pyarrow: pip install 'bioclip_hc[parquet]'; or take the format csv or json"
            ) from None
        kinds = {"text": pyarrow.string(), "number": pyarrow.float64(), "vector": pyarrow.list_(pyarrow.float32())}
        self._arrow, self._columns, self._sink = pyarrow, columns, sink
        self._schema = pyarrow.schema([(column, kinds[kind]) for column, kind in columns.items()])
        self._file = pyarrow.parquet.ParquetWriter(_Whole(sink), self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, rows: Iterable[Row]) -> None:
        self._rows.extend({column: self._value(row[column]) for column in self._columns} for row in rows)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):  # Arrow's texts are UTF-8
            return value.encode("utf-8", "backslashreplace").decode()
        return value


class _Whole(io.RawIOBase):
    """A sink as pyarrow writes to it; closing it is left to its owner."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        return len(data)

    def tell(self) -> int:
        return self._sink.file.tell()


class AnswerTable(TextWriter):
    """Answers for people: the file's name, and a line for each."""

    def text(self, rows: list[Row]) -> str:
        current, lines = None, []
        for row in rows:
            if row["file_name"] != current:
                current = row["file_name"]
                lines.append(printable(current))
            lines.append(f"  {self._answer(row)}")
        return "".join(f"{line}\n" for line in lines)

    def _answer(self, row: Row) -> str:
        if row["score"] is None:
            return "no answer"
        rank = row.get("rank", "")
        name = row[rank] if rank else ""
        if rank == "species":
            name = f"{row['genus']} {name}".strip()
        said = row.get("classification")
        if said is not None:
            name = f"{said}  [{rank} {name}]" if rank and name.casefold() != said.casefold() else said
            rank = ""
        common = f"  ({row['common_name']})" if row.get("common_name") not in ("", None, said) else ""
        return printable(f"{rank:<8} {row['score']:6.1%}  {name}{common}".removeprefix(" " * 9))


class TaxonTable(TextWriter):
    """Taxa for people: a line for each, its rank and its path."""

    def text(self, rows: list[Row]) -> str:
        return "".join(f"{self._line(row)}\n" for row in rows)

    def _line(self, row: Row) -> str:
        names = [column for column in row if column not in ("common_name", "rank")]
        path = " > ".join(row[name] for name in names if row[name])
        return printable(f"{row['rank']:<8} {path}" + (f"  ({row['common_name']})" if row["common_name"] else ""))


def _plain(value: Any) -> Any:
    """A vector as numbers in as few digits as float32 needs."""
    return [float(str(x)) for x in value] if hasattr(value, "dtype") else value
