"""One attempt by others' means: the hub's own client, with its cache and tokens; fsspec with an object store's
package; a command, by the shell.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import select
import signal
import subprocess
import tempfile
import time
from typing import IO, Any

from bioclip_hc import __version__
from bioclip_hc.data.transfer import FULL, PIECE, Cancelled, Limits, Meter, Part, Permanent, Transient, write
from bioclip_hc.data.urls import FSSPEC, Address, redacted

STORE_PIECE = 1 << 25  # bytes read at a time from an object store, where each is a request


def from_hub(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """A link to the file in the hub's own cache: the user's, or under the cache that was named."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # one for each shard, beside our one line
    repository, _, rest = address.target.partition("@")
    commit, _, path = rest.partition("/")
    part.path.unlink(missing_ok=True)
    own = part.path.parent.parent / "huggingface"
    try:
        found = huggingface_hub.hf_hub_download(
            repository,
            path,
            repo_type="dataset",
            revision=commit,
            cache_dir=own if own.is_dir() else None,
            library_name="bioclip_hc",
            library_version=__version__,
            etag_timeout=limits.connect,
        )
    except errors.GatedRepoError:
        raise Permanent(
            "the dataset asks for your consent; give it on its page, and log in by `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # the hub is not reached
        raise Transient(redacted(str(error).strip().splitlines()[0])) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise Permanent(
            f"the hub has no such dataset, commit or file, or does not show it to you ({type(error).__name__}); "
            "fix the address, or log in by `hf auth login`"
        ) from None
    except OSError as error:  # the client's own errors among them
        if error.errno in FULL:
            raise Permanent(
                f"the disk of the hub's cache is full ({error}); make room, set HF_HOME, or name a cache on a "
                "larger disk (data.cache of a run, --cache of a command)"
            ) from None
        raise Transient(
            redacted(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        ) from None
    except Exception as error:  # of whichever http client this version of the hub has
        raise Transient(f"{type(error).__name__}: {redacted(str(error))}") from None
    part.path.symlink_to(os.path.realpath(found))
    meter.add(len(part))


def store_of(address: Address) -> Any:
    """fsspec's file system of an object store.

    Raises:
        Permanent: the package for it is not installed.
    """
    package = FSSPEC[address.scheme]
    import fsspec

    try:
        return fsspec.filesystem(address.scheme)
    except ImportError:
        hint = "" if importlib.util.find_spec(package) else f": pip install {package}"
        raise Permanent(f"{address.scheme}:// needs the package {package}{hint}") from None


def from_store(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """Piece after piece, as long as the store says that the object is the same."""
    store = store_of(address)
    try:
        facts = store.info(address.target)
        total, mark = int(facts["size"]), str(store.ukey(address.target))
        if part.mark() != mark or len(part) > total:
            part.begin(mark)
        part.need(total - len(part))
        with part.appending() as file:
            while (start := len(part)) < total:
                piece = store.cat_file(address.target, start=start, end=min(start + STORE_PIECE, total))
                if not piece:
                    raise Transient(f"the store gave nothing at byte {start:,} of {total:,}")
                write(file, piece)
                meter.add(len(piece))
            if str(store.ukey(address.target)) != mark:
                raise Transient("it changed at the other end while it was read")
    except FileNotFoundError:
        raise Permanent("the store has no such object; fix the address") from None
    except PermissionError as error:
        if error.filename == str(part.path):
            raise
        raise Permanent(f"the store does not show it to you ({redacted(str(error))}); give credentials") from None
    except (OSError, Cancelled):
        raise
    except Exception as error:  # whatever the store's package raises
        raise Transient(f"{type(error).__name__}: {redacted(str(error))}") from None


def from_pipe(address: Address, part: Part, limits: Limits, meter: Meter) -> None:
    """What a command writes, as /bin/sh runs it; all of it, or nothing."""
    part.begin("")
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # the one place where a shell runs; `urls.parse` guards it
            address.target,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
            bufsize=0,
        )
        try:
            with part.appending() as file:
                while piece := _read_pipe(process.stdout, limits, meter):  # type: ignore[arg-type]
                    write(file, piece)
                    meter.add(len(piece))
            code = process.wait(limits.silence)
        except subprocess.TimeoutExpired:
            raise Transient(f"the command closed its output and did not end in {limits.silence:g} s") from None
        finally:
            if process.returncode is None:  # not waited for: the number is still its own
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
            process.stdout.close()  # type: ignore[union-attr]
            process.wait()
        if code:
            complaints.seek(max(0, complaints.seek(0, io.SEEK_END) - 2000))
            said = redacted(complaints.read().decode("utf-8", "replace")).strip().splitlines()
            raise Transient(f"the command ended with code {code}{f': {said[-1][:200]}' if said else ''}")


def _read_pipe(pipe: IO[bytes], limits: Limits, meter: Meter) -> bytes:
    end = time.monotonic() + limits.silence
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while not ready.poll(1000 * min(0.5, max(0.0, end - time.monotonic()))):
        meter.sleep(0)
        if time.monotonic() >= end:
            raise Transient(f"the command was silent for {limits.silence:g} s")
    return pipe.read(PIECE)
