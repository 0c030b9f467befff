"""Where results go: standard output, or a file that has its name only when it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bioclip_hc.prediction.inputs import OTHERS, PICTURES


class Sink:
    """Bytes on their way; what keeps them from getting there is an OSError with the name of the place.

    terminal: whether somebody looks at them; folder: where they are kept, None where they are not.
    """

    def __init__(
        self, file: BinaryIO, name: str, terminal: bool = False, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.file, self.name, self.terminal, self.folder = file, name, terminal, folder
        self.failed = False

    def write(self, data: bytes) -> None:
        """All of it, not held back."""
        try:
            while data:
                data = data[self.file.write(data) :]
            self.file.flush()
        except OSError as error:
            self.failed = True
            raise self.refused(error) from None

    def refused(self, error: OSError) -> OSError:
        """The error that says where; that a reader has gone is none of a place."""
        if isinstance(error, BrokenPipeError):
            return error
        return OSError(f"{self.name} cannot be written: {error.strerror or error}")


@contextmanager
def destination(output: str | None, *, keep_part: bool = True) -> Iterator[Sink]:
    """Standard output (None), or a file.

    A file is written beside its name, as NAME.PID.part, and renamed when all is done: an earlier one stays whole
    until then. A device or pipe is written as it is.

    Args:
        keep_part: what was written before an error or Ctrl-C is of use, and stays under the other name.

    Raises:
        OSError: it cannot be written, named; at once where that can be known.
        ValueError: the name is that of a folder or a picture.
    """
    if output is None:
        place = _standard_output()
    elif Path(output).suffix.lower() in (*PICTURES, *OTHERS):
        raise ValueError(f"output {output} is named like a picture; is it one of the inputs?")
    elif os.path.isdir(output):
        raise ValueError(f"output {output} is a folder; name a file in it")
    elif os.path.exists(output) and not os.path.isfile(output):
        place = _device(output)
    else:
        place = _file(output, keep_part)
    with place as sink:
        yield sink


@contextmanager
def _standard_output() -> Iterator[Sink]:
    sys.stdout.flush()
    sink = Sink(sys.stdout.buffer, "standard output", sys.stdout.isatty())
    try:
        yield sink
    finally:
        if sink.failed:  # what could not be written would be tried, and fail, once more when the interpreter ends
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _device(output: str) -> Iterator[Sink]:
    with _opened(output, output) as file:
        yield Sink(file, output)


@contextmanager
def _file(output: str, keep_part: bool) -> Iterator[Sink]:
    whole = os.path.realpath(output)
    part = f"{whole}.{os.getpid()}.part"
    done = False
    file = _opened(part, output)
    try:
        with file:
            sink = Sink(file, output, folder=os.path.dirname(whole))
            yield sink
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise sink.refused(error) from None
        os.replace(part, whole)
        done = True
    finally:
        if not done:
            _keep_or_remove(part, keep_part)


def _opened(path: str, output: str) -> BinaryIO:
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise OSError(f"{output} cannot be written: {error.strerror}") from None


def _keep_or_remove(part: str, keep: bool) -> None:
    if keep and os.path.getsize(part):
        print(f"bioclip-hc: not complete; what was written so far is in {part!r}", file=sys.stderr)
    else:
        os.unlink(part)
