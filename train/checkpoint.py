"""Sealed checkpoints: a folder counts only once its manifest of checksums is in it and it bears its final name.

    checkpoints/step-00000400/          DeepSpeed's files, random-<world rank>.pt, manifest.json
    checkpoints/.step-00000400.partial  one being written, or left by a kill; removed by the next save

DeepSpeed's own `latest` file is not used: it is written in place, so that a kill can leave half of it.
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

MANIFEST = "manifest.json"


def save(engine: Any, folder: Path, step: int, facts: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`; all processes call it. Keeps the newest `keep` up to this one.

    (A later one is a damaged one that the run was resumed before; it must not push out those that are whole.)

    Args:
        engine: the DeepSpeed engine.
        folder: the run's checkpoints folder, shared by all processes.
        facts: JSON-able state of our own, returned by `load`.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    first = engine.global_rank == 0
    if first:
        for left in folder.glob(".step-*.partial"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    _barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    torch.save(_random_state(), partial / f"random-{engine.global_rank}.pt")
    _barrier()
    if first:
        _seal(partial, {"step": step, "world_size": engine.world_size, **facts})
        if final.exists():  # the same step, saved by the run that this one resumed
            shutil.rmtree(final)
        os.rename(partial, final)
        _sync(folder)
        for old in [path for path in complete(folder) if path.name <= final.name][:-keep]:
            shutil.rmtree(old)
    _barrier()
    return final


def load(engine: Any, path: Path) -> dict[str, Any]:
    """Restore the engine and this process' random states; returns the facts given to `save`.

    Raises:
        ValueError: written by another number of processes.
    """
    facts = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["facts"]
    if facts["world_size"] != engine.world_size:
        raise ValueError(
            f"{path} was written by {facts['world_size']} processes and cannot be resumed by {engine.world_size}; "
            f"start {facts['world_size']} processes"
        )
    try:
        engine.load_checkpoint(str(path.parent), tag=path.name)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{path} is a checkpoint of another architecture: {' '.join(lines[:2])[:300]}") from None
    _set_random_state(torch.load(path / f"random-{engine.global_rank}.pt", weights_only=True))
    return facts


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
    """What is wrong with a checkpoint's files, "" if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _sha256_of_json(manifest):
            return f"{MANIFEST} does not match its own checksum"
        for name, digest in manifest["files"].items():
            if _sha256(path / name) != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _seal(partial: Path, facts: dict[str, Any]) -> None:
    """Bring every file to disk, then write the manifest of their checksums and its own, whole or not at all."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        _sync(path)
        files[str(path.relative_to(partial))] = _sha256(path)
    temporary = partial / f".{MANIFEST}"
    manifest: dict[str, Any] = {"facts": facts, "files": files}
    manifest["sha256"] = _sha256_of_json(manifest)
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, partial / MANIFEST)
    _sync(partial)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _random_state() -> dict[str, Any]:
    """States of all generators as types that weights_only loading accepts."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
