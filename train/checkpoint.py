"""Sealed checkpoints: a folder counts only once its manifest of checksums is in it and it bears its final name.

    checkpoints/step-00000400/            DeepSpeed's files, random-<world rank>.pt, manifest.json
    checkpoints/.step-00000400.partial    one being written
    checkpoints/.step-00000400.old        one on its way out
    checkpoints/.step-00000400.universal  one rearranged for another number of processes

What a kill leaves of the hidden ones is removed by the next start and the next save. DeepSpeed only says what a
checkpoint consists of; the writing is ours, so that an error on one process ends the save on all of them instead of
leaving the others in a barrier. Its own `latest` file is not used: it is written in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from agreement import FailedTogether, on_all, on_first
from durable import make_folder, need_free, plain_name, replace_json, sha256, stored_bytes, sync, write_tensors
from reshard import load_resharded

MANIFEST = "manifest.json"
DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What its pickles name besides what torch.load(weights_only=True) takes; none of it acts when it is made."""
PER_FILE = 1 << 17  # bytes of names and shapes beside a file's tensors


def save(engine: Any, folder: Path, step: int, facts: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`; all processes call it. Keeps the newest `keep` up to this one.

    (A later one is a damaged one that the run was resumed before; it must not push out those that are whole.)

    Args:
        engine: the DeepSpeed engine.
        folder: the run's checkpoints folder, shared by all processes.
        facts: JSON-able state of our own, returned by `load`.

    Raises:
        FailedTogether: on all processes, if it cannot be written whole; the checkpoints before are untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    facts = {"step": step, "world_size": engine.world_size, **facts}
    files = {**_engine_files(engine), f"random-{engine.global_rank}.pt": _random_state()}
    failed = f"the checkpoint of step {step} cannot be saved (those before are intact)"
    size = sum(on_all(failed, lambda: sum(stored_bytes(content) + PER_FILE for content in files.values())))
    try:
        on_first(failed, lambda: _begin(partial, size))
        digests = on_all(failed, lambda: {name: write_tensors(x, partial / name) for name, x in files.items()})
        on_first(failed, lambda: _publish(partial, final, facts, digests))
    except FailedTogether:
        if engine.global_rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # give back what it filled
        raise
    on_first(f"{final} is saved, but what it replaces cannot be removed", lambda: _retire(final, keep))
    return final


def load(engine: Any, path: Path) -> dict[str, Any]:
    """Restore the engine and this process' random states; returns the facts given to `save`.

    At the number of processes that wrote it, bit for bit. At another one, parameters, optimizer and schedule are
    the same numbers, shared out anew (`reshard`); the process r takes the random states of process r modulo the
    number that wrote it.

    Raises:
        ValueError: not a checkpoint of this architecture.
        FailedTogether: on all processes, if a file would run code.
    """
    facts = facts_of(path)
    on_first(f"{path} is not loaded", lambda: need_data(path))
    try:
        if engine.load_universal_checkpoint():
            load_resharded(engine, path)
        else:
            with plain_name(path.parent) as folder:
                engine.load_checkpoint(str(folder), tag=path.name)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{path} is a checkpoint of another architecture: {' '.join(lines[:2])[:300]}") from None
    random_states = path / f"random-{engine.global_rank % facts['world_size']}.pt"
    _set_random_state(torch.load(random_states, weights_only=True))
    return facts


def must_reshard(path: Path | None, zero_stage: int) -> bool:
    """Whether a checkpoint was cut for another number of processes than these; without ZeRO nothing is cut."""
    if path is None or zero_stage == 0:
        return False
    return facts_of(path)["world_size"] != dist.get_world_size()


def facts_of(path: Path) -> dict[str, Any]:
    """What `save` was given for a whole checkpoint, and its step and world_size."""
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["facts"]


def sweep(folder: Path) -> None:
    """Remove what a kill left of saving, retiring or rearranging; only for who holds the run's lock."""
    for left in folder.glob(".step-*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:  # nobody's checkpoint, but it stood in the way of one
            left.unlink()


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file matches its checksum, and what was found wrong with newer ones."""
    problems: list[str] = []
    for path in reversed(complete(folder)):
        problem = damage(path)
        if not problem:
            return path, problems
        problems.append(f"{path}: {problem}")
    return None, problems


def complete(folder: Path) -> list[Path]:
    """Checkpoints that bear their final names, oldest first; their contents are not checked."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def damage(path: Path) -> str:
    """What is wrong with a checkpoint's files, "" if nothing is.

    A file too many is wrong as well: DeepSpeed takes whatever bears a name of its own.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _sha256_of_json(manifest):
            return f"{MANIFEST} does not match its own checksum"
        facts, files = manifest["facts"], manifest["files"]
        if type(facts["step"]) is not int or type(facts["world_size"]) is not int or facts["world_size"] < 1:
            return f"{MANIFEST} tells no step and number of processes"
        for name, digest in files.items():
            if os.path.basename(name) != name or not (path / name).is_file():
                return f"{MANIFEST} names {name!r}, which is no file of the checkpoint"
            if sha256(path / name) != digest:
                return f"{name} does not match its checksum"
        found = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        if others := found - files.keys() - {MANIFEST}:
            return f"{min(others)} is not in {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def need_data(path: Path) -> None:
    """Refuse pickles that name anything but what a checkpoint of ours consists of; nothing is run to find out.

    DeepSpeed loads its files with all that a pickle can do, and whoever can change a file can seal it anew.

    Raises:
        ValueError: naming the file and what it would import.
    """
    for file in sorted(path.glob("*.pt")):
        try:
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - DEEPSPEED
        except Exception as error:  # whatever the parser of pickles raises on what is none
            raise ValueError(f"{file} is no file of torch.save ({error}); remove this checkpoint") from None
        if names:
            raise ValueError(f"{file} would run {min(names)}, which is not of training; do not load it")


def _engine_files(engine: Any) -> dict[str, Any]:
    """File name -> content: what DeepSpeed wants this process to write. A collective; nothing is written."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    files: dict[str, Any] = {}

    class Collect(CheckpointEngine):
        def create(self, info: Any) -> None: ...
        def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
        def load(self, path: str, map_location: Any = None) -> None: ...
        def commit(self, info: Any) -> bool:
            return True

        def save(self, state_dict: Any, path: str) -> None:
            files[os.path.basename(path)] = state_dict

    writer, engine.checkpoint_engine = engine.checkpoint_engine, Collect()
    copy_scripts, engine._copy_recovery_script = engine._copy_recovery_script, lambda folder: None
    try:
        engine.save_checkpoint("nowhere", tag="nothing", save_latest=False)
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = writer, copy_scripts
    return files


def _begin(partial: Path, size: int) -> None:
    """An empty folder to write to, where `size` bytes fit."""
    make_folder(partial.parent)
    sweep(partial.parent)
    need_free(partial.parent, size, "it")
    partial.mkdir()


def _publish(partial: Path, final: Path, facts: dict[str, Any], digests: list[dict[str, str]]) -> None:
    """Seal what every process has brought to disk, and give it its name."""
    files = {name: digest for process in digests for name, digest in process.items()}
    manifest: dict[str, Any] = {"facts": facts, "files": dict(sorted(files.items()))}
    manifest["sha256"] = _sha256_of_json(manifest)
    replace_json(partial / MANIFEST, manifest)
    if final.exists():  # the same step, damaged: the run was resumed before it
        os.rename(final, _old(final))
    os.rename(partial, final)
    sync(final.parent)


def _retire(final: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `final`, none of them ever half under its name."""
    retired = [path for path in complete(final.parent) if path.name <= final.name][:-keep]
    for path in retired:
        os.rename(path, _old(path))
    if retired:
        sync(final.parent)
    sweep(final.parent)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sha256_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _random_state() -> dict[str, Any]:
    """States of all generators as types that weights_only loading accepts."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []  # of this process' device
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
