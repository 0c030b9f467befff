"""Tables that others made: CSV, TSV and parquet, row by row, in bounded memory.

What makes a whole table doubtful (an encoding, a quote that stays open) is an error; a row that has other fields
than columns is given as such, for the reader to leave out.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from bioclip_hc.data.captions import short
from bioclip_hc.data.sample import PathLike
from bioclip_hc.taxonomy import MAX_LINE, MAX_TABLE, open_text

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
SUFFIXES = (*SEPARATORS, *PARQUET)

MAX_COLUMNS = 10_000
MAX_GROUP_BYTES = 1 << 30  # of the columns that are read of one row group of a parquet file, unpacked
BATCH = 10_000  # rows of a parquet file turned into Python's strings at a time


class Row(NamedTuple):
    """A row: where it is, for people; its fields, of the columns that were asked for; or why it has none."""

    where: str
    fields: Sequence[str]
    reason: str = ""


class Table:
    """An open table.

    Attributes:
        path: the file.
        header: its columns' names, as it writes them.
    """

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.header = path, header
        if len(header) > MAX_COLUMNS:
            raise ValueError(f"{path}: {len(header)} columns, the most are {MAX_COLUMNS}; is this the right table?")

    def rows(self, columns: Sequence[int]) -> Iterator[Row]:
        """Its rows, once; a field that is missing is "".

        Raises:
            ValueError: the rest of the table cannot be read; the text names the line.
        """
        raise NotImplementedError

    def place(self, names: Sequence[str]) -> int | None:
        """The place of the first of these columns that there is, without regard to case and outer blanks.

        Raises:
            ValueError: it is there twice.
        """
        alike = [column.strip().lower() for column in self.header]
        for name in names:
            found = [i for i, column in enumerate(alike) if column == name]
            if len(found) > 1:
                raise ValueError(f"{self.path}: {len(found)} columns {name!r}; rename all but one")
            if found:
                return found[0]
        return None

    def lacks(self, names: Sequence[str]) -> ValueError:
        """The error of a table that has none of these columns."""
        wanted = " or ".join(map(repr, names))
        found = ", ".join(short(column) for column in self.header[:30]) or "none"
        return ValueError(f"{self.path}: no column {wanted}; columns found: {found}{self._remedy()}")

    def _remedy(self) -> str:
        if len(self.header) == 1 and (mark := re.search(r"[;\t|,]", self.header[0])):
            return f"; is it separated by {mark[0]!r}? commas are for .csv, tabs for .tsv"
        if any("\0" in column for column in self.header):
            return "; is it UTF-16? convert it to UTF-8"
        return ""


@contextmanager
def open_table(path: PathLike) -> Iterator[Table]:
    """A table (.csv, .tsv, each plain or .gz, UTF-8; .parquet) within the context.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a table, no columns, or too many.
        ImportError: a parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    if not path.is_file():  # a pipe or a device might never end
        raise FileNotFoundError(f"table {path} is not there, or no file")
    suffix = kind_of(path)
    if suffix in PARQUET:
        with _open_parquet(path) as table:
            yield table
        return
    if suffix not in SEPARATORS:
        raise ValueError(f"{path}: the name must end in {', '.join(SUFFIXES)}, or .gz behind one of text")
    with open_text(path) as file:
        reader = csv.reader(_lines(file, path), delimiter=SEPARATORS[suffix], strict=True)
        with _refusing(path, reader):
            header = next((row for row in reader if row), [])
        if not header:
            raise ValueError(f"{path}: the table is empty; its first line should name its columns")
        yield _Text(path, header, reader)


def kind_of(path: Path) -> str:
    """The ending that tells what a table is, in lower case; that before .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join((suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:])


# -- text --------------------------------------------------------------------------------------------------


class _Text(Table):
    def __init__(self, path: Path, header: list[str], reader: Any) -> None:
        super().__init__(path, header)
        self._reader = reader

    def rows(self, columns: Sequence[int]) -> Iterator[Row]:
        width = len(self.header)
        with _refusing(self.path, self._reader):
            for row in self._reader:
                if not row:
                    continue
                where = f"line {self._reader.line_num}"
                if len(row) != width:
                    reason = f"{len(row)} fields in {width} columns; quote fields that hold separators"
                    yield Row(where, (), reason)
                    continue
                fields = [row[i] for i in columns]
                if any("\n" in field or "\r" in field for field in fields):
                    raise ValueError(
                        f"{self.path}, {where}: a line break within a field; is a quote left open here or on a "
                        "line above?"
                    )
                yield Row(where, fields)


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text; what a small .gz unpacks to has bounds."""
    total = 0
    while line := file.readline(MAX_LINE):
        total += len(line)
        if len(line) == MAX_LINE or total > MAX_TABLE:
            raise ValueError(
                f"{path}: a line of {MAX_LINE} characters or more than {MAX_TABLE} in all: no such table"
            )
        yield line


@contextmanager
def _refusing(path: Path, reader: Any) -> Iterator[None]:
    """What makes a text no table, as a ValueError that names the line."""
    where = f"{path}, line {reader.line_num + 1}"
    try:
        yield
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: not well-formed ({error}); is a quote left open there or above?"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, after line {reader.line_num}: not UTF-8 ({error.reason}); convert it first, as with "
            "iconv -t UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: not a whole gzip file ({error}); fetch it again") from None


# -- parquet -----------------------------------------------------------------------------------------------


def pyarrow_parquet() -> Any:
    """The module that reads parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "parquet files need pyarrow, which is not installed: pip install 'bioclip_hc[parquet]', or pip install "
            "pyarrow"
        ) from None
    return pyarrow.parquet


class _Parquet(Table):
    def __init__(self, path: Path, file: Any) -> None:
        super().__init__(path, list(file.schema_arrow.names))
        self._file = file

    def rows(self, columns: Sequence[int]) -> Iterator[Row]:
        names = [self.header[i] for i in columns]
        metadata, number = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            size = self._unpacked(metadata.row_group(group), set(names))
            if size > MAX_GROUP_BYTES:
                raise ValueError(
                    f"{self.path}, row group {group}: its names take {size} bytes, the most are {MAX_GROUP_BYTES}; "
                    "write the table with smaller row groups"
                )
            with _refusing_parquet(self.path):
                batches = self._file.iter_batches(BATCH, row_groups=[group], columns=list(dict.fromkeys(names)))
            while True:
                with _refusing_parquet(self.path):
                    batch = next(batches, None)
                    lists = [] if batch is None else [batch.column(name).to_pylist() for name in names]
                if batch is None:
                    break
                for values in zip(*lists, strict=True):
                    number += 1
                    fields = [_text(value) for value in values]
                    wrong = next((name for name, field in zip(names, fields, strict=True) if field is None), None)
                    reason = "" if wrong is None else f"column {wrong!r} holds no text"
                    yield Row(f"row {number}", () if reason else [field or "" for field in fields], reason)

    @staticmethod
    def _unpacked(group: Any, names: set[str]) -> int:
        columns = (group.column(i) for i in range(group.num_columns))
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)


def _text(value: Any) -> str | None:
    """A field as text; numbers are identifiers, and what is not known is ""; None for what is neither."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():  # as pandas has whole numbers beside missing ones
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


@contextmanager
def _open_parquet(path: Path) -> Iterator[Table]:
    parquet = pyarrow_parquet()
    with _refusing_parquet(path):
        file = parquet.ParquetFile(path, thrift_string_size_limit=64 << 20, thrift_container_size_limit=1_000_000)
    with file:
        yield _Parquet(path, file)


@contextmanager
def _refusing_parquet(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a parquet file that can be read ({said}); fetch it again") from None
