"""Where results go: standard output, or a file that has its name only when it is whole."""

from __future__ import annotations

import os
import stat
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

    def write(self, data: bytes) -> None:
        """All of it, not held back."""
        try:
            self.file.write(data)
            self.file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self.refused(error) from None

    def refused(self, error: OSError) -> OSError:
        """The error that says where."""
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
        with _standard_output() as sink:
            yield sink
        return
    if Path(output).suffix.lower() in (*PICTURES, *OTHERS):
        raise ValueError(f"output {output} is named like a picture; is it one of the inputs?")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(output).st_mode):
            if os.path.isdir(output):
                raise ValueError(f"output {output} is a folder; name a file in it")
            try:
                with open(output, "wb", buffering=0) as file:
                    yield Sink(file, output)
            except OSError as error:
                raise _named(error, output) from None
            return
    whole = os.path.realpath(output)
    part = f"{whole}.{os.getpid()}.part"
    try:
        opened = open(part, "wb")  # noqa: SIM115  # closed below; here only its own errors are meant
    except OSError as error:
        raise _named(error, output) from None
    done = False
    try:
        with opened as file:
            yield Sink(file, output, folder=os.path.dirname(whole))
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise _named(error, output) from None
        os.replace(part, whole)
        done = True
    finally:
        if not done:
            _keep_or_remove(part, keep_part)


def _keep_or_remove(part: str, keep: bool) -> None:
    if keep and os.path.getsize(part):
        print(f"bioclip-hc: not complete; what was written so far is in {part!r}", file=sys.stderr)
    else:
        os.unlink(part)


def _named(error: OSError, output: str) -> OSError:
    if isinstance(error, BrokenPipeError) or output in str(error):
        return error
    return OSError(f"{output} cannot be written: {error.strerror or error}")


@contextmanager
def _standard_output() -> Iterator[Sink]:
    stream = sys.stdout.buffer
    sink = Sink(stream, "standard output", sys.stdout.isatty())
    try:
        sys.stdout.flush()
        yield sink
    except OSError:
        # what could not be written would be tried, and fail, once more when the interpreter ends
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
