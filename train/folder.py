"""The folder of a run: whose it is, what the run began with, and its small files, each whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.quarantine import BadSample, Quarantine
from bioclip_hc.model import HierarchicalCLIP

import checkpoint
from agreement import from_first
from config import POINTERS, Config, changed_keys
from durable import make_folder, replace_text, sync


@contextmanager
def claimed(output: Path, config: Config, resume: bool) -> Iterator[tuple[Path | None, list[str]]]:
    """The folder as this run's alone, for as long as the context lasts; all processes enter it.

    Yields:
        The checkpoint to go on from, if any, and what is wrong with damaged ones passed over.

    Raises:
        FileExistsError: the folder holds a run and --resume was not given, is in use, or holds other files.
        ValueError: --resume with a configuration that makes it another run, or nothing whole to resume from.
    """
    with ExitStack() as held:  # what the first process holds; the others have its word

        def claim() -> tuple[Path | None, list[str]]:
            _refuse_other_files(output)
            make_folder(output)
            held.enter_context(locked(output / ".lock"))
            return _find_start(output, config, resume)

        yield from_first(claim)


def _refuse_other_files(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; give run.output a folder")
    if (output / "config.json").is_file() or not output.is_dir():
        return
    if any(not path.name.startswith(".") for path in output.iterdir()):
        raise FileExistsError(f"{output} holds other files; give run.output a new or empty folder")


def _find_start(output: Path, config: Config, resume: bool) -> tuple[Path | None, list[str]]:
    """See `claimed`."""
    stored = output / "config.json"
    if not stored.is_file():
        return None, []
    if not resume:
        raise FileExistsError(
            f"{output} holds a run; add --resume to continue it, or give run.output another folder"
        )
    began = _read_json(stored)
    if not all(isinstance(section, dict) for section in began.values()):
        raise ValueError(f"{stored} is not of a run; give run.output a new or empty folder")
    # where inputs.json tells what was pointed at (`same_inputs`), the spelling of a pointer is free
    free = POINTERS if (output / "inputs.json").is_file() else frozenset()
    changes = changed_keys(began, config, free)
    if changes:
        raise ValueError(
            f"{output} holds a run of another configuration ({'; '.join(changes)}); restore these keys, or give "
            "run.output another folder"
        )
    checkpoint.sweep(output / "checkpoints")
    saved, problems = checkpoint.newest(output / "checkpoints")
    if saved is None and problems:
        raise ValueError(f"no whole checkpoint in {output}: {'; '.join(problems)}; start anew in another folder")
    return saved, problems


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which the kernel frees if this process dies.

    A record lock: it holds between hosts too where their shared file system has locks, and a loader's workers do
    not inherit it. Where there are none, it warns and goes on without.

    Raises:
        FileExistsError: another process holds it.
    """
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held, so that nobody's but ours goes
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise FileExistsError(
                    f"{path.parent} is in use by {holder}; wait for it, end it, or give run.output another folder"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                os.close(descriptor)
                raise
            print(f"warning: no locks on {path.parent} ({error}): start no second run there", file=sys.stderr)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # the one who held it removed it meanwhile: this lock is on no file


def _read_json(path: Path) -> dict[str, Any]:
    """What `replace_json` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or give run.output another folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not of a run; restore it, or give run.output another folder")
    return content


def inputs(model: HierarchicalCLIP, batches: TrainingBatches) -> dict[str, Any]:
    """What a configuration only points at: the model's shape, the shards, the taxa, what pixels come of it."""
    return {
        "architecture": model.model_cfg,
        "shards": batches.shards.fingerprints(),
        "taxonomy": batches.taxonomy.sha256,
        "decoded pixels": batches.transform.digest(),
    }


def same_inputs(path: Path, found: dict[str, Any]) -> None:
    """Hold the inputs against those that the run began with, if it has begun.

    Raises:
        ValueError: naming what has changed since.
    """
    found = json.loads(json.dumps(found))
    if path.is_file():
        began = _read_json(path)
        changed = [name for name in found if found[name] != began.get(name)]
        if changed:
            found_by = " (samples, or the taxa that data.taxonomy and data.synonyms give their captions)"
            hint = found_by if "shards" in changed else ""
            raise ValueError(
                f"{' and '.join(changed)} changed since the run in {path.parent} began{hint}; restore what it had, "
                "or give run.output another folder"
            )


def record_unusable(path: Path, bad: list[BadSample]) -> None:
    """What the shards hold that training will never meet, a JSON object a line; no file if there is nothing."""
    path.unlink(missing_ok=True)
    if bad:
        path.write_text("".join(json.dumps(sample._asdict()) + "\n" for sample in bad), encoding="utf-8")


def settle(quarantine: Quarantine) -> None:
    """Bring this process' record to disk, before a checkpoint counts its lines."""
    if quarantine.path is not None and quarantine.path.is_file():
        sync(quarantine.path)
        sync(quarantine.path.parent)  # it may be new


def restore_quarantine(output: Path, samples: list[list[int]]) -> list[str]:
    """Cut every process' quarantine-N.jsonl to what a checkpoint counts, for the steps since come again.

    Files of processes that there are no more keep their lines; those of processes that there were not yet go.

    Args:
        samples: (used, quarantined) by process, as the checkpoint has them.

    Returns:
        Which files have fewer lines than that.
    """
    problems = []
    for path in output.glob("quarantine-*.jsonl"):
        number = path.stem.removeprefix("quarantine-")
        if not number.isdigit():
            continue
        count = samples[int(number)][1] if int(number) < len(samples) else 0
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if count == 0:
            path.unlink()
        elif len(lines) > count:
            replace_text(path, "".join(lines[:count]))
        elif len(lines) < count:
            problems.append(f"{path} has {len(lines)} lines, and {count} samples were quarantined")
    return problems
